"""Chores: long work on registries in short steps, such as a plan, its application, or a collection of garbage.

A chore is a name with a kind before its colon (`apply:<plan>`), a registry that it is about, and a state of its own that its steps write.
The leader nudges what is due; a worker claims it, and each of its writes names the claim's fence, so that of two workers only one goes on.
A killed worker costs the rest of its claim. Of the chores of one registry one is under way at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from ledger.build import milliseconds, moment
from ledger.codec import pairs
from ledger.connection import Connection
from ledger.errors import ChoreLost, NotFound

CLAIM = timedelta(seconds=45)
"""How long a chore is another's after its last write: longer than a request to a registry takes."""
_BEHIND = timedelta(seconds=10)
"""How soon a chore is looked at again that waits for another of its registry."""
_NUDGED = timedelta(seconds=30)
"""How soon a nudge is repeated that no worker has followed."""
_KEPT = timedelta(days=30)
Command = tuple[str | float | bytes, ...]


class ChoreState(StrEnum):
    """Where a chore stands."""

    WAITING = "waiting"
    """It has work left: a worker is at it, or comes when it is due."""
    DONE = "done"
    STOPPED = "stopped"
    """It goes on where it stands once somebody starts it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore:
    """A chore as it is written down."""

    name: str
    registry: str
    state: ChoreState
    progress: Mapping[str, Any] = field(default_factory=dict)
    """What its kind keeps of it: JSON."""
    said: str | None = None
    """How it ended, what it waits for, or what went wrong last."""
    tries: int = 0
    """How often it went wrong in a row."""
    created: datetime
    updated: datetime
    due: datetime | None = None
    """When a worker comes, or its claim ends; None: it has ended."""
    fence: int = 0

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def subject(self) -> str:
        """What it is about: a plan, or a registry."""
        return self.name.partition(":")[2]


class Chores:
    """The list of chores."""

    def __init__(self, connection: Connection, event_stream_length: int) -> None:
        self._connection, self._keys, self._length = connection, connection.keys, event_stream_length

    async def start(self, name: str, registry: str, progress: Mapping[str, Any] | None = None, *, after: timedelta = timedelta(0)) -> bool:
        """Put a chore on the list, or let a stopped one go on, with the progress that is given or where it stands. False: it is there and
        has not ended; then it comes soon.
        """
        return bool(await self._connection.run("chore_start", name, registry, _text(progress or {}), _ms(after), "", 0))

    async def occur(self, schedule: str, occurrence: datetime, name: str, registry: str, *, after: timedelta) -> bool:
        """The same for an occurrence of a schedule, unless that, or a later one, was taken already, by whomever."""
        return bool(await self._connection.run("chore_start", name, registry, "{}", _ms(after), schedule, milliseconds(occurrence)))

    async def occurrence(self, schedule: str, now: datetime) -> datetime:
        """Which occurrence of a schedule was taken last. A schedule that was never looked at begins now."""
        await self._connection.command("HSETNX", self._keys.schedules, schedule, milliseconds(now))
        return moment(await self._connection.command("HGET", self._keys.schedules, schedule))

    async def due(self, count: int = 50) -> list[str]:
        """Chores whose time has come; they are due again soon, lest a lost nudge is a lost chore."""
        time = await self._connection.command("TIME")
        now = int(time[0]) * 1000 + int(time[1]) // 1000
        found = await self._connection.command("ZRANGEBYSCORE", self._keys.chores, "-inf", now, "LIMIT", 0, count)
        for name in found:
            await self._connection.command("ZADD", self._keys.chores, "XX", now + _ms(_NUDGED), name)
        return [name.decode() for name in found]

    async def claim(self, name: str) -> Claim | str:
        """Take a chore on; or why that cannot be now."""
        answer = await self._connection.run("chore_claim", name, _ms(CLAIM), _ms(_BEHIND))
        if answer[0] == b"no":
            return str(answer[1].decode())
        return Claim(self._connection, self._length, _chore(name, pairs(answer[2:]), None))

    async def read(self, name: str) -> Chore:
        """One chore. NotFound: there is none, or it ended long ago."""
        fields, due = await self._connection.commands(("HGETALL", self._keys.chore(name)), ("ZSCORE", self._keys.chores, name))
        if not fields:
            raise NotFound(f"there is no chore {name}")
        return _chore(name, pairs(fields), due)

    async def follow(self, name: str, pulse: float) -> AsyncIterator[Chore]:
        """A chore now, and every so many seconds until it has ended: the last is how it ended. NotFound."""
        while True:
            found = await self.read(name)
            yield found
            if found.state is not ChoreState.WAITING:
                return
            await asyncio.sleep(pulse)

    async def all(self, *kinds: str) -> list[Chore]:
        """The chores of some kinds (none: of all), those under way first, then those that have ended, newest first."""
        listed, ended = await self._connection.commands(
            ("ZRANGE", self._keys.chores, 0, -1), ("ZRANGE", self._keys.chores_ended, 0, -1, "REV")
        )
        names = [name.decode() for name in (*listed, *ended)]
        found = []
        for name in names:
            if not kinds or name.partition(":")[0] in kinds:
                try:
                    found.append(await self.read(name))
                except NotFound:
                    continue
        return found

    async def active(self, registry: str) -> str | None:
        """The chore of a registry that is under way."""
        name = await self._connection.command("HGET", self._keys.chores_active, registry)
        return name.decode() if name else None


class Claim:
    """A chore that this process is at work on. Every call raises ChoreLost once another has taken it on; then nothing more may be done."""

    def __init__(self, connection: Connection, event_stream_length: int, chore: Chore) -> None:
        self._connection, self._length, self.chore = connection, event_stream_length, chore

    @property
    def progress(self) -> Mapping[str, Any]:
        """What was written last."""
        return self.chore.progress

    async def hold(self) -> None:
        """Go on for a while longer: called before each request that changes anything outside."""
        await self._write({}, (), (), claim=CLAIM)

    async def write(
        self, progress: Mapping[str, Any] | None = None, *, commands: Sequence[Command] = (), events: Sequence[str] = ()
    ) -> None:
        """Write what was done (Redis commands on keys of the ledger), where the chore stands, and what is told, all at once; and go on."""
        await self._write({} if progress is None else {"progress": _text(progress)}, commands, events, claim=CLAIM)
        if progress is not None:
            self.chore = _with(self.chore, progress)

    async def let_go(self, after: timedelta, said: str = "", *, tries: int = 0, gives_way: bool = False) -> None:
        """End the claim; a worker goes on after a while. Unless the chore gives way, no other of its registry begins meanwhile."""
        await self._write({"said": said, "tries": tries}, (), (), due=after, gives_way=gives_way)

    async def end(self, state: ChoreState, said: str = "", *, commands: Sequence[Command] = (), events: Sequence[str] = ()) -> None:
        """The chore is done, or stopped until somebody starts it again."""
        await self._write({"said": said}, commands, events, state=state)

    async def _write(
        self,
        fields: Mapping[str, str | int],
        commands: Sequence[Command],
        events: Sequence[str],
        *,
        claim: timedelta | None = None,
        due: timedelta = timedelta(0),
        state: ChoreState = ChoreState.WAITING,
        gives_way: bool = False,
    ) -> None:
        flat = [word for pair in fields.items() for word in pair]
        done = await self._connection.run(
            "chore_write", self.chore.name, self.chore.fence, "" if claim is None else _ms(claim), _ms(due), state, "1" if gives_way else "",
            _ms(_KEPT), self._length, len(fields), *flat, len(events), *events,
            *(word for command in commands for word in (len(command), *command)),
        )  # fmt: skip
        if not done:
            raise ChoreLost(f"the chore {self.chore.name} was taken on by another worker; this one stops")


def _chore(name: str, fields: Mapping[str, str], due: float | bytes | None) -> Chore:
    return Chore(
        name=name,
        registry=fields["registry"],
        state=ChoreState(fields["state"]),
        progress=json.loads(fields["progress"]),
        said=fields.get("said") or None,
        tries=int(fields.get("tries", 0)),
        created=moment(fields["created"]),
        updated=moment(fields["updated"]),
        due=None if due is None else moment(float(due)),
        fence=int(fields.get("fence", 0)),
    )


def _with(chore: Chore, progress: Mapping[str, Any]) -> Chore:
    return Chore(**{**{name: getattr(chore, name) for name in chore.__slots__}, "progress": progress})


def _text(progress: Mapping[str, Any]) -> str:
    return json.dumps(progress, separators=(",", ":"), sort_keys=True)


def _ms(time: timedelta) -> int:
    return round(time.total_seconds() * 1000)
