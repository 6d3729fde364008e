"""The logs of attempts: compressed chunks on a stream per attempt, capped, the oldest dropped first."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from ledger.build import milliseconds, moment
from ledger.connection import Connection
from ledger.errors import FenceLost, NotFound
from ledger.leases import Fence


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log: when the container wrote it, and the text without its newline."""

    time: datetime
    text: str


class Logbook:
    """Appending to and reading the logs of attempts."""

    def __init__(self, connection: Connection, cap: int, total_cap: int) -> None:
        self._connection, self._cap, self._total_cap = connection, cap, total_cap

    async def append(self, build: str, attempt: int, lines: Sequence[Line], *, complete: bool = False, fence: Fence | None = None) -> None:
        """Add lines; `complete` says that no more will come. FenceLost; NotFound where the log is complete or the build forgotten."""
        chunk = (
            zlib.compress(json.dumps([[milliseconds(line.time), line.text] for line in lines], separators=(",", ":")).encode())
            if lines
            else b""
        )
        # To the microsecond, as the cluster tells times: a reader that goes on from there would see a line of that millisecond again, or miss one.
        until = f"{lines[-1].time.timestamp() * 1000:.3f}" if lines else ""
        answer = await self._connection.run(
            "log", fence.lease if fence else "", fence.value if fence else "", build, attempt, chunk, until, "1" if complete else "", self._cap, self._total_cap
        )  # fmt: skip
        if answer[0] == b"fence":
            raise FenceLost
        if answer[0] == b"missing":
            raise NotFound(f"the log of build {build}, attempt {attempt}, takes no more lines")

    async def last_time(self, build: str, attempt: int) -> tuple[datetime | None, bool]:
        """The time of the last stored line (None: no line yet), and whether the log is complete: where capture goes on."""
        found = await self._connection.command("XREVRANGE", self._connection.keys.log(build, attempt), "+", "-", "COUNT", 2)
        complete = bool(found) and b"end" in _fields(found[0])
        times = [_fields(entry)[b"until"] for entry in found if b"until" in _fields(entry)]
        return (moment(times[0]) if times else None), complete

    async def read(self, build: str, attempt: int, after: str = "0-0", *, block: float = 0.0) -> tuple[list[Line], str, bool]:
        """Lines after a place, waiting for the first at most `block` seconds: (lines, the next place, whether the log is complete)."""
        key = self._connection.keys.log(build, attempt)
        entries = await self._connection.read_stream(key, after, block=block or 0.001, count=100)
        lines = [line for _, fields in entries if "lines" in fields for line in _unpack(fields["lines"])]
        return lines, (entries[-1][0] if entries else after), any("end" in fields for _, fields in entries)

    async def follow(self, build: str, attempt: int) -> AsyncIterator[list[Line]]:
        """Batches of lines until the log is complete; an empty batch every 2 s while there is nothing new."""
        place = "0-0"
        while True:
            lines, place, complete = await self.read(build, attempt, place, block=2.0)
            yield lines
            if complete:
                return

    async def tail(self, build: str, attempt: int, count: int) -> list[Line]:
        """The last lines that are stored."""
        found = await self._connection.command("XREVRANGE", self._connection.keys.log(build, attempt), "+", "-", "COUNT", 20)
        lines: list[Line] = []
        for entry in found:
            fields = _fields(entry)
            if b"lines" in fields:
                lines = [*_unpack(fields[b"lines"]), *lines]
            if len(lines) >= count:
                break
        return lines[-count:]


def _fields(entry: list[list[bytes]] | tuple[bytes, dict[bytes, bytes]]) -> dict[bytes, bytes]:
    fields = entry[1]
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))


def _unpack(chunk: bytes) -> list[Line]:
    return [Line(moment(time), text) for time, text in json.loads(zlib.decompress(chunk))]
