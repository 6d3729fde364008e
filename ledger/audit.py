"""Holding the whole ledger's indexes against its records, and its records against the indexes: `crabpot doctor --ledger`, and the leader.

Every change keeps them together in one Lua call, so there is nothing to find; unless somebody wrote into Redis by hand, or crabpot has a
fault. It goes through Redis by SCAN, a few keys at a time, and holds nothing up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ledger.connection import Connection

_AT_ONCE = 50
"""Items judged by one call: a few milliseconds of Redis's time."""
_SORTED = ("i:", "due", "delayed", "finished", "q:", "lane:", "slots", "logs", "tags:unsettled")
_UNSORTED = ("logs:sizes",)
_NOTES = ("lanes:", "lanes|key|")


@dataclass(frozen=True, slots=True)
class Fault:
    """One place where an index and the records disagree."""

    key: str
    member: str
    what: str

    def __str__(self) -> str:
        return f"{self.member or 'the empty key'} in {self.key} {self.what}"


class Audit:
    """Looking at everything once, bit by bit."""

    def __init__(self, connection: Connection, *, mend: bool) -> None:
        """`mend`: write what is wrong anew from the records."""
        self._connection, self._mend = connection, "1" if mend else ""

    async def unfinished(self) -> AsyncIterator[list[Fault]]:
        """The same for the builds that have not ended and the slots alone, whose number does not grow with history."""
        async for builds in self._members("due"):
            yield await self._ask("record", *builds)
        async for slots in self._members("slots:"):
            yield await self._ask("member", "slots:", *slots)

    async def all(self) -> AsyncIterator[list[Fault]]:
        """The faults of one bit after another, many of them none; the caller may stop or pause between two."""
        for group in _grouped(await self._gates()):
            yield await self._ask("gate", *group)
        for group in _grouped(await self._holds()):
            yield await self._ask("hold", *group)
        root = self._connection.keys.root
        cursor = b"0"
        while True:
            cursor, found = await self._connection.command("SCAN", cursor, "MATCH", f"{_escaped(root)}*", "COUNT", 200)
            names = [key.decode().removeprefix(root) for key in found]
            async for faults in self._judge(names):
                yield faults
            if int(cursor) == 0:
                return

    async def _gates(self) -> set[str]:
        """The fields of all limits and pauses."""
        keys = self._connection.keys
        told = await self._connection.commands(*(("HKEYS", key) for key in (keys.limits, keys.limits_set, keys.paused, keys.gates)))
        named = {field.decode() for fields in told for field in fields}
        return {field.removeprefix("p|") for field in named if not field.startswith("h|")}

    async def _holds(self) -> set[str]:
        """The registries that anything says are held."""
        keys = self._connection.keys
        holds, gates, until = await self._connection.commands(
            ("HKEYS", keys.holds), ("HKEYS", keys.gates), ("ZRANGE", keys.holds_until, 0, -1)
        )
        held = {host.decode() for host in (*holds, *until)}
        return held | {field.decode().removeprefix("h|") for field in gates if field.startswith(b"h|")}

    async def _judge(self, names: Sequence[str]) -> AsyncIterator[list[Fault]]:
        for group in _grouped(_behind("b:", names)):
            yield await self._ask("record", *group)
        for group in _grouped(name for name in names if name.startswith("idem:")):
            yield await self._ask("key", *group)
        for name in names:
            if name.startswith(_SORTED) and name not in _UNSORTED:
                async for members in self._members(name):
                    yield await self._ask("member", name, *members)
        for name in names:
            if name.startswith(_NOTES):
                async for members in self._members(name, "SSCAN"):
                    yield await self._ask("note", name, *members)
        lanes, turns = set(_behind("lane:", names)), set[str]()
        for project_and_class in _behind("open:", names):
            turns.add(project_and_class)
            async for members in self._members(f"open:{project_and_class}"):
                lanes |= {f"{project_and_class}|{member}" for member in members}
        for group in _grouped(lanes):
            yield await self._ask("lane", *group)
        for capacity_class in _behind("turns:", names):
            async for members in self._members(f"turns:{capacity_class}"):
                turns |= {f"{member}|{capacity_class}" for member in members}
        for group in _grouped(turns | {"|".join(lane.split("|", 2)[:2]) for lane in lanes}):
            yield await self._ask("turn", *group)

    async def _members(self, name: str, scan: Literal["ZSCAN", "SSCAN"] = "ZSCAN") -> AsyncIterator[list[str]]:
        """The members of a sorted set, or of a set, a few at a time."""
        cursor = b"0"
        while True:
            cursor, flat = await self._connection.command(scan, f"{self._connection.keys.root}{name}", cursor, "COUNT", _AT_ONCE)
            for group in _grouped(member.decode() for member in (_unpacked(flat) if scan == "ZSCAN" else flat)):
                yield group
            if int(cursor) == 0:
                return

    async def _ask(self, kind: str, *items: str) -> list[Fault]:
        answer = await self._connection.run("audit", self._mend, kind, *items)
        return [Fault(key.decode(), member.decode(), what.decode()) for key, member, what in answer]


def _behind(prefix: str, names: Iterable[str]) -> Iterator[str]:
    return (name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _grouped(items: Iterable[str]) -> Iterator[list[str]]:
    found = list(items)
    return (found[start : start + _AT_ONCE] for start in range(0, len(found), _AT_ONCE))


def _unpacked(flat: Sequence[Any]) -> Iterable[bytes]:
    """The members of ZSCAN's answer, whichever protocol version shaped it."""
    return (row[0] for row in flat) if flat and isinstance(flat[0], list | tuple) else flat[::2]


def _escaped(text: str) -> str:
    """A text as SCAN's pattern takes it literally."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)
