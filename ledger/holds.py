"""Holds of registries: builds that push to or cache in a held one wait, all others go on. For maintenance that no push may meet.

A hold belongs to who took it and ends by itself, so that nobody's death holds builds for ever. What runs goes on; `writers` tells of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from ledger.build import moment
from ledger.chores import Claim
from ledger.codec import pairs
from ledger.connection import Connection
from ledger.deadlines import covered
from ledger.errors import ChoreLost, RegistryHeld
from ledger.events import QueueEvent, queue_event


@dataclass(frozen=True, slots=True)
class Hold:
    """A registry as it is held now."""

    registry: str
    since: datetime
    until: datetime
    """When it ends unless it is prolonged."""
    by: str

    @classmethod
    def parse(cls, registry: str, stored: str) -> Self:
        since, until, by = stored.split(" ", 2)
        return cls(registry, moment(since), moment(until), by)

    def say(self) -> str:
        return (
            f"the registry {self.registry}, which is under maintenance since {self.since:%Y-%m-%d %H:%M:%S} UTC"
            f" ({self.by}; until {self.until:%H:%M:%S} UTC at the latest)"
        )


class Holds:
    """Taking, prolonging and ending holds."""

    def __init__(self, connection: Connection, event_stream_length: int) -> None:
        self._connection, self._keys, self._length = connection, connection.keys, event_stream_length

    async def take(self, registries: Sequence[str], by: str, ttl: timedelta, *, claim: Claim | None = None) -> datetime:
        """Hold registries (all names of one) for that time from now, or hold them longer; since when. RegistryHeld: somebody else does.

        With a claim, only while that stands, else ChoreLost: a worker that slept would hold builds for a run that is over.
        """
        event = queue_event(QueueEvent.HELD, f"registry/{registries[0]}")
        under = (claim.chore.name, claim.chore.fence) if claim else ("", "")
        answer = await self._connection.run("hold", by, round(ttl.total_seconds() * 1000), self._length, event, *under, *registries)
        if answer[0] == -1:
            raise ChoreLost(f"the hold of {registries[0]} was another worker's to take; this one stops")
        if not answer[0]:
            raise RegistryHeld(f"the registry {answer[1].decode()} is held by {answer[2].decode()}; try again when that has ended")
        return moment(answer[0])

    async def release(self, registries: Sequence[str], by: str) -> bool:
        """End one's own holds. Whether there were any."""
        event = queue_event(QueueEvent.RELEASED, f"registry/{registries[0]}")
        return bool(await self._connection.run("unhold", by, self._length, event, *registries))

    async def writers(self, registries: Sequence[str]) -> list[str]:
        """The builds with a pod, or about to have one, that push to or cache in one of these."""
        return [build.decode() for build in await self._connection.run("writers", *registries)]

    async def all(self) -> list[Hold]:
        """Every hold, by registry."""
        found = pairs(await self._connection.command("HGETALL", self._keys.holds))
        return [Hold.parse(registry, stored) for registry, stored in sorted(found.items())]

    async def lasted(self, registries: Sequence[str], since: datetime, until: datetime) -> timedelta:
        """For how long of a time any of these was held."""
        return covered((await self.spans(registries, until))[1], since)

    async def spans(self, registries: Sequence[str], until: datetime) -> tuple[bool, list[tuple[datetime, datetime]]]:
        """Whether one of these is held now, and when they were held until now, as far back as is remembered."""
        if not registries:
            return False, []
        holds, *ended = await self._connection.commands(
            ("HMGET", self._keys.holds, *registries), *(("LRANGE", self._keys.pauses(f"h|{host}"), 0, -1) for host in registries)
        )
        now = [(moment(stored.split(b" ")[0]), until) for stored in holds if stored]
        past = [(moment(start), moment(end)) for listed in ended for start, end in (text.decode().split(" ") for text in listed)]
        return bool(now), now + past
