"""The ledger: what may be done to the builds in Redis. The truth is here; a Celery message is only a nudge.

Every change is one Lua call (ledger/lua/) that writes record, indexes, slots, due time and events together, and is refused when
somebody else has written in between.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from ledger.bin import Bin
from ledger.build import Again, Build, BuildPage, State, moment
from ledger.chores import Chores
from ledger.codec import decode, encode, pairs
from ledger.connection import Answer, Connection
from ledger.errors import FenceLost, LedgerError, NotFound, TooLate, VersionConflict
from ledger.holds import Holds
from ledger.keys import Keys
from ledger.leases import Fence, Leases
from ledger.limits import Limits
from ledger.logbook import Logbook
from ledger.plans import Plans
from ledger.projects import Projects, ProjectSettings, version_of
from ledger.promotions import Promotions
from ledger.quantities import parse_memory
from ledger.settings import Settings
from ledger.shelf import Shelf
from ledger.site import Site
from ledger.submission import Submission
from ledger.tags import Tags
from ledger.usage import Usage
from ledger.waiting import Waiting

MAX_PAGE = 500
_WRONG_INDEXES = 50
"""Entries that should not be there, of which one admission takes out so many at most."""
_FULL = 0.9
"""The share of Redis's memory from which on no new build is taken in."""
_PULSE = 15.0
"""Seconds after which a waiter reads the record again although no message came: Pub/Sub may drop one."""


class Ledger:
    """All builds, slots, due times and events, over one connection. Async; safe to share within its event loop."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection, self._keys, self._settings = connection, connection.keys, settings
        self.leases = Leases(connection)
        self.logs = Logbook(connection, parse_memory(settings.log_bytes_per_build), parse_memory(settings.log_bytes_total))
        self.tags = Tags(connection)
        self.holds = Holds(connection, settings.event_stream_length)
        self.limits = Limits(connection, settings.event_stream_length, self.holds)
        self.shelf = Shelf(connection)
        self.chores = Chores(connection, settings.event_stream_length)
        self.plans = Plans(connection, self.chores)
        self.bin = Bin(connection)
        self.usage = Usage(connection)
        self.promotions = Promotions(connection, self.chores)
        self.submissions = Submission(settings.event_stream_length)
        self._offset: float | None = None

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """A ledger on the Redis that the settings name; connects when first used."""
        return cls(Connection(settings.redis_url, Keys(settings.prefix)), settings)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Self]:
        """The same for the length of a block."""
        ledger = cls.open(settings)
        try:
            yield ledger
        finally:
            await ledger.close()

    @property
    def connection(self) -> Connection:
        return self._connection

    async def close(self) -> None:
        await self._connection.close()

    async def identity(self) -> str:
        """Which ledger this is: made once, and another after Redis has lost its data."""
        stored = await self._connection.command("GET", self._keys.identity)
        if stored is None:
            await self._connection.command("SET", self._keys.identity, secrets.token_hex(6), "NX")
            stored = await self._connection.command("GET", self._keys.identity)
        return str(stored.decode())

    async def read(self, build: str) -> Build:
        """One build. NotFound where there is none."""
        fields = await self._connection.command("HGETALL", self._keys.build(build))
        if not fields:
            raise NotFound(f"there is no build {build}; `crabpot list` shows those that there are")
        return decode(build, fields)

    async def page(
        self, *, project: str | None = None, state: State | None = None, cursor: str | None = None, limit: int = 50
    ) -> BuildPage:
        """Builds newest first; give `cursor` back to read on."""
        count = min(limit, MAX_PAGE)
        states = [state] if state else list(State)
        found = await self._connection.run("page", project or "", f"({cursor}" if cursor else "+", count + 1, *states)
        builds = []
        for build, fields in found[:count]:
            try:
                builds.append(decode(build.decode(), fields))
            except LedgerError as error:  # one that a newer crabpot wrote hides no other
                _complain("record_unreadable", build=build.decode(), error=str(error))
        return BuildPage(builds=tuple(builds), cursor=found[count - 1][0].decode() if len(found) > count else None)

    async def admit(self, look_again: timedelta) -> Build | None:
        """Take the slots for the build whose turn it is and make it `starting`; None when nothing fits or waits."""
        for _ in range(_WRONG_INDEXES):
            answer = await self._connection.run("admit", _ms(look_again))
            if answer[0] != b"again":
                return decode(answer[1].decode(), answer[2]) if answer[0] == b"admitted" else None
        _complain("indexes_wrong", mend="crabpot doctor --ledger --mend")
        return None

    async def transition(
        self,
        build: Build,
        state: State,
        *,
        due: timedelta | None,
        events: Sequence[str] = (),
        again: Again | None = None,
        fence: Fence | None = None,
        **changes: Any,
    ) -> Build:
        """Write one change: the new state, changed fields of the record, when it is due again, and what is told of it.

        `due` None leaves the due time as it is. `again` says when and where a build goes back into the queue.
        VersionConflict, TooLate (it has ended), FenceLost, NotFound. Slots go back when it leaves starting and running.
        """
        flat = encode(changes)
        answer = await self._connection.run(
            "transition", build.id, build.version, fence.lease if fence else "", fence.value if fence else "", state,
            "" if due is None else _ms(due), "" if again is None else _ms(again.delay), "1" if again and again.behind else "",
            int(self._settings.keep_finished_seconds * 1000),
            self._settings.event_stream_length, len(flat) // 2, *flat, *events,
        )  # fmt: skip
        _check(answer, build)
        now = moment(answer[2])
        marks: dict[str, Any] = {"finished": now} if state.final else {}
        if due is not None:
            marks["due"] = now + due
        self._offset = now.timestamp() - time.time()
        return build.model_copy(update={**changes, **marks, "state": state, "version": int(answer[1]), "updated": now})

    async def now(self) -> datetime:
        """Redis's clock, by which leases, due times and deadlines are measured: one's own, put right by how far it is off."""
        if self._offset is None:
            await self._look_at_clock()
        return datetime.fromtimestamp(time.time() + (self._offset or 0.0), UTC)

    async def _look_at_clock(self) -> int:
        """Redis's time in ms."""
        seconds, microseconds = await self._connection.command("TIME")
        self._offset = int(seconds) + int(microseconds) / 1e6 - time.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def due(self, count: int = 200) -> list[str]:
        """Builds whose due time has come."""
        now = await self._look_at_clock()
        found = await self._connection.command("ZRANGEBYSCORE", self._keys.due, "-inf", now, "LIMIT", 0, count)
        return [word.decode() for word in found]

    async def postpone(self, build: str, delay: timedelta, version: int | None = None) -> bool:
        """Look at a due build again after a while; not where it has ended, or was written since the version that was read. Whether it was."""
        return bool(await self._connection.run("postpone", build, "" if version is None else version, _ms(delay), ""))

    async def hold(self, build: Build, time: timedelta) -> None:
        """Go on with a step for a while longer, before an outside effect. VersionConflict: another goes on with it; do nothing more."""
        if not await self._connection.run("postpone", build.id, build.version, _ms(time), "1"):
            raise VersionConflict(f"build {build.id} is no longer at version {build.version}: somebody else goes on with it")

    async def next_due(self) -> float | None:
        """Seconds until the next due or delayed build, by Redis's clock; negative when it is late, None when there is none."""
        time, due, delayed = await self._connection.commands(
            ("TIME",), ("ZRANGE", self._keys.due, 0, 0, "WITHSCORES"), ("ZRANGE", self._keys.delayed, 0, 0, "WITHSCORES")
        )
        now = int(time[0]) * 1000 + int(time[1]) // 1000
        scores = [float(found[0][1] if isinstance(found[0], list | tuple) else found[1]) for found in (due, delayed) if found]
        return min((score - now) / 1000 for score in scores) if scores else None

    async def slots(self) -> dict[str, datetime]:
        """Every slot that is taken, `build/attempt/platform` -> since when."""
        found = await self._connection.command("ZRANGE", self._keys.slots(), 0, -1, "WITHSCORES")
        rows = found if not found or isinstance(found[0], list | tuple) else list(zip(found[::2], found[1::2], strict=True))
        return {member.decode(): moment(score) for member, score in rows}

    async def waiting(self, build: Build) -> Waiting | None:
        """Why a queued build waits, as things stand; None once it waits no more."""
        return Waiting.of(await self._connection.run("waiting", build.id))

    async def tell(self, event: str, *, fence: Fence, mended: int = 0) -> None:
        """Put an event into the stream that no change of a build carries; with it goes what of `mended` it tells. FenceLost."""
        if not await self._connection.run("tell", fence.lease, fence.value, self._settings.event_stream_length, event, mended):
            raise FenceLost

    async def note_mended(self, what: str, subject: str) -> None:
        """A step has put something right; the leader's next event of such tells of it."""
        await self._connection.run("note", "mended", what, subject)

    async def mended(self) -> list[tuple[str, str]]:
        """What was put right and not told yet: (what, subject)."""
        found = await self._connection.command("LRANGE", self._keys.mended, 0, 999)
        return [(what, subject) for what, _, subject in (note.decode().partition(" ") for note in found)]

    async def guard_memory(self) -> bool:
        """Refuse new builds while less than a tenth of Redis's memory is left, so that what runs can end. Whether it is so."""
        told = await self._connection.command("INFO", "memory")
        memory = told if isinstance(told, dict) else dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
        most = int(memory["maxmemory"])
        if not most or int(memory["used_memory"]) < most * _FULL:
            return False
        await self._connection.run("note", "full", 30)
        return True

    async def count(self) -> dict[State, int]:
        """How many builds there are in each state."""
        answers = await self._connection.commands(*(("ZCARD", self._keys.index(None, state)) for state in State))
        return dict(zip(State, answers, strict=True))

    async def forget_ref(self, project: str, ref: str) -> None:
        """A ref is no more: should it come back at the commit that it had, it is built again."""
        await self._connection.command("HDEL", self._keys.accepted(project), ref)

    async def events(self, after: str = "$", *, block: float = 1.0, count: int = 500) -> list[tuple[str, bytes]]:
        """Events after a stream id, waiting for the first at most `block` seconds: [(id, CloudEvent's JSON)]."""
        return [
            (entry, fields["event"])
            for entry, fields in await self._connection.read_stream(self._keys.events, after, block=block, count=count)
        ]

    async def last_event(self) -> str:
        """The id of the newest event; read on from there."""
        found = await self._connection.command("XREVRANGE", self._keys.events, "+", "-", "COUNT", 1)
        return found[0][0].decode() if found else "0-0"

    async def expire(self, count: int = 100) -> int:
        """Forget finished builds whose time has come, at most so many; answers how many."""
        return int(await self._connection.run("expire", count))

    async def store_projects(self, projects: Projects) -> None:
        """Store the projects file; its policies and limits take effect at the next submit and admission."""
        rows: list[str | int] = []
        for name, project in projects.projects.items():
            stored = project.model_dump_json(exclude_defaults=True)
            limit = "" if project.max_builds is None else project.max_builds
            rows += (name, stored, version_of(stored), limit, project.max_builds_per_key, project.weight)
        classes = [word for pair in projects.limits.classes.items() for word in pair]
        site = projects.site.model_dump_json(exclude_defaults=True)
        await self._connection.run("projects", site, projects.limits.max_builds, len(classes) // 2, *classes, *rows)

    async def project(self, name: str) -> ProjectSettings:
        """A project as the projects file said it. NotFound where it is not there."""
        stored = await self._connection.command("HGET", self._keys.projects, name)
        if stored is None:
            raise NotFound(f"there is no project {name!r}; add it to the projects file and restart `crabpot serve` or `crabpot watch`")
        return ProjectSettings.model_validate_json(stored)

    async def site(self) -> Site:
        """What the projects file says that is no project's."""
        stored = await self._connection.command("GET", self._keys.site)
        return Site() if stored is None else Site.model_validate_json(stored)

    async def projects(self) -> dict[str, ProjectSettings]:
        """All projects by name."""
        stored = pairs(await self._connection.command("HGETALL", self._keys.projects))
        return {name: ProjectSettings.model_validate_json(text) for name, text in stored.items()}

    @asynccontextmanager
    async def changes(self, build: str, seconds: float | None = None) -> AsyncIterator[AsyncIterator[Build]]:
        """Follow one build: its record now, and again after every change until it has ended, or until the time is over.

        Costs other waiters nothing.
        """
        end = math.inf if seconds is None else time.monotonic() + seconds

        async def follow() -> AsyncIterator[Build]:
            while True:
                left = end - time.monotonic()
                record = await self.read(build)
                yield record
                if record.state.final or left <= 0:
                    return
                async with asyncio.timeout(_PULSE + 5):
                    await pubsub.get_message(ignore_subscribe_messages=True, timeout=min(_PULSE, left))

        async with self._connection.subscribed(self._keys.build(build)) as pubsub:
            yield follow()


def _check(answer: Answer, build: Build) -> None:
    match answer[0]:
        case b"missing":
            raise NotFound(f"there is no build {build.id} any more")
        case b"version":
            raise VersionConflict(f"build {build.id} is at version {int(answer[1])}, not {build.version}: somebody else wrote it")
        case b"fence":
            raise FenceLost
        case b"ended":
            raise TooLate(f"build {build.id} has ended: {answer[1].decode()}")


def _ms(time: timedelta) -> int:
    return max(0, round(time.total_seconds() * 1000))


def _complain(event: str, **told: str) -> None:
    import structlog  # it brings rich along, half of what a program that only submits would import

    structlog.get_logger().error(event, **told)
