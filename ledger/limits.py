"""What holds admission back: limits and pauses, by scope. Both can be changed while everything runs, and hold from the next admission on.

A limit set by hand goes before the projects file until it is given back; a pause lasts until it is ended. Neither touches what runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from ledger.build import Build, moment
from ledger.codec import pairs
from ledger.connection import Connection
from ledger.deadlines import covered
from ledger.errors import NotFound, Problem, RequestInvalid
from ledger.events import QueueEvent, queue_event
from ledger.holds import Holds

DEFAULT = 20
"""The limit over all where nobody has said another."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_PREFIX = {"all": "", "project": "", "class": "class|", "keys": "key|"}
MOST = 100_000


@dataclass(frozen=True, slots=True)
class Scope:
    """Which builds a limit or a pause is for: all; a project's; a capacity class's; of a project those of each one concurrency key."""

    kind: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`all`, `project/NAME`, `class/NAME` or `keys/PROJECT`. RequestInvalid."""
        kind, _, name = text.partition("/")
        if kind in _PREFIX and (kind == "all") == (not name) and (not name or _NAME.fullmatch(name)):
            return cls(kind, name)
        raise RequestInvalid([Problem("scope", repr(text)[:80], "must be all, project/NAME, class/NAME or keys/PROJECT")])

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def field(self) -> str:
        """Its name in Redis's hashes."""
        return _PREFIX[self.kind] + self.name

    @classmethod
    def of(cls, field: str) -> Self:
        kind, bar, name = field.partition("|")
        if bar:
            return cls({"class": "class", "key": "keys"}[kind], name)
        return cls("project", field) if field else cls("all")


@dataclass(frozen=True, slots=True)
class Limit:
    """One scope as it is now."""

    scope: Scope
    filed: int | None
    """What the projects file says; None: nothing."""
    by_hand: int | None
    taken: int | None
    """Slots that its builds hold; None for keys, of which each has its own."""
    paused: datetime | None

    @property
    def limit(self) -> int | None:
        """What holds; None: no limit."""
        return self.filed if self.by_hand is None else self.by_hand


class Limits:
    """Reading and changing limits and pauses."""

    def __init__(self, connection: Connection, event_stream_length: int, holds: Holds) -> None:
        self._connection, self._keys, self._length = connection, connection.keys, event_stream_length
        self._holds = holds

    async def all(self) -> list[Limit]:
        """Every scope that is limited or paused, and every project and class that there is."""
        filed, by_hand, paused, projects, classes = await self._connection.commands(
            ("HGETALL", self._keys.limits), ("HGETALL", self._keys.limits_set), ("HGETALL", self._keys.paused),
            ("HKEYS", self._keys.projects), ("HKEYS", self._keys.classes),
        )  # fmt: skip
        said, hand, since = pairs(filed), pairs(by_hand), pairs(paused)
        known = {name.decode() for name in projects}
        fields = {"", *hand, *since, *known, *(f"class|{name.decode()}" for name in classes)}
        fields |= {
            field
            for field in said
            if field.startswith("class|") or (field.startswith("key|") and field[4:] in known and said[field] != "1")
        }
        scopes = sorted((Scope.of(field) for field in fields), key=lambda scope: (list(_PREFIX).index(scope.kind), scope.name))
        counted = await self._connection.commands(*(("ZCARD", self._slots(scope)) for scope in scopes))
        return [
            Limit(
                scope,
                _number(said.get(scope.field)) if scope.kind != "all" else int(said.get("", DEFAULT)),
                _number(hand.get(scope.field)),
                None if scope.kind == "keys" else taken,
                moment(since[scope.field]) if scope.field in since else None,
            )
            for scope, taken in zip(scopes, counted, strict=True)
        ]

    async def set(self, scope: Scope, limit: int) -> None:
        """Limit a scope by hand. NotFound: no such project; RequestInvalid: not a limit that it can have."""
        least = 1 if scope.kind == "keys" else 0
        if isinstance(limit, bool) or not isinstance(limit, int) or not least <= limit <= MOST:
            raise RequestInvalid([Problem("limit", repr(limit)[:80], f"must be a whole number from {least} to {MOST}")])
        await self._write(scope, str(limit), QueueEvent.LIMITED, limit)

    async def give_back(self, scope: Scope) -> None:
        """Let the projects file's limit hold again."""
        await self._write(scope, "", QueueEvent.LIMITED, None)

    async def pause(self, scope: Scope) -> bool:
        """Admit nothing of a scope any more; what waits goes on waiting, what runs goes on. Whether that changed anything."""
        return await self._pause(scope, "1", QueueEvent.PAUSED)

    async def resume(self, scope: Scope) -> bool:
        """End the pause of exactly this scope. Whether that changed anything."""
        return await self._pause(scope, "", QueueEvent.RESUMED)

    async def paused(self, build: Build, since: datetime, until: datetime) -> tuple[bool, timedelta]:
        """Whether a build's admission is paused now, or a registry of it held, and for how long of this time it was. Where pauses overlap, none
        counts twice.
        """
        fields = ("", build.project, f"class|{build.request.capacity_class}")
        paused, *ended = await self._connection.commands(
            ("HMGET", self._keys.paused, *fields), *(("LRANGE", self._keys.pauses(field), 0, -1) for field in fields)
        )
        now = [(moment(start), until) for start in paused if start]
        past = [(moment(start), moment(end)) for listed in ended for start, end in (text.decode().split(" ") for text in listed)]
        held, holds = await self._holds.spans(build.request.written, until)
        return bool(now) or held, covered([*now, *past, *holds], since)

    async def _write(self, scope: Scope, limit: str, kind: QueueEvent, told: int | None) -> None:
        await self._require(scope)
        await self._connection.run("limit", scope.field, limit, self._length, queue_event(kind, str(scope), limit=told))

    async def _pause(self, scope: Scope, flag: str, kind: QueueEvent) -> bool:
        if scope.kind == "keys":
            raise RequestInvalid([Problem("scope", str(scope), "must be all, project/NAME or class/NAME: keys are limited, not paused")])
        await self._require(scope)
        return bool(await self._connection.run("pause", scope.field, flag, self._length, queue_event(kind, str(scope))))

    async def _require(self, scope: Scope) -> None:
        if scope.kind not in ("project", "keys"):
            return
        # One that was taken out of the file may still be paused, or limited by hand.
        hashes = (self._keys.projects, scope.name), (self._keys.paused, scope.field), (self._keys.limits_set, scope.field)
        if not any(await self._connection.commands(*(("HEXISTS", *field) for field in hashes))):
            raise NotFound(f"there is no project {scope.name!r}; `crabpot limits` lists those that there are")

    def _slots(self, scope: Scope) -> str:
        return self._keys.class_slots(scope.name) if scope.kind == "class" else self._keys.slots(scope.name)


def _number(text: str | None) -> int | None:
    return int(text) if text else None
