"""A followed log that survives being asked for again: each line once, in order, with its time.

The kubelet takes the time to resume from in whole seconds, so some lines come twice; they are told apart by their times, and lines of
the same microsecond by counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from worker.cluster import LogLine

LONGEST = 64 * 1024
"""Bytes of a line that are kept."""


def read_line(raw: bytes) -> LogLine | None:
    """`2026-11-23T22:04:40.123456789Z text`; None for the kubelet's own remarks, which carry no time.

    Of a progress line that was written over with carriage returns, the last state is the text.
    """
    time, _, text = raw.decode(errors="replace").partition(" ")
    try:
        return LogLine(time=datetime.fromisoformat(time), text=text.rstrip("\r").rpartition("\r")[2])
    except ValueError:
        return None


def since_time(moment: datetime) -> str:
    """The whole second, as the API takes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class Place:
    """How far a log has been read."""

    time: datetime | None
    """Of the last line, or the first to be read."""
    count: int = 0
    """Lines of exactly that time that were read."""
    _catching_up: int = 0
    _caught_up: bool = False

    def resume(self) -> None:
        """The log begins again, at or before `time`."""
        self._catching_up, self._caught_up = self.count, self.time is None

    def is_new(self, line: LogLine) -> bool:
        """Whether this line was not read before; counts it as read. A clock set back while it runs loses nothing."""
        if not self._caught_up and self.time is not None:
            if line.time < self.time:
                return False
            if line.time == self.time and self._catching_up:
                self._catching_up -= 1
                return False
            self._caught_up = True
        self.count = self.count + 1 if line.time == self.time else 1
        self.time = line.time
        return True
