"""Proof that work is done, for a probe: a file that is touched as long as each kind of work goes on, whatever comes of it.

Each loop says when it has come round (`Liveness.round`); a thread of its own touches the file while all have, so a loop that hangs, or an
event loop that is blocked, lets it grow old. Work that fails with a clear error has come round too: while Redis or the cluster is away, a
restart would mend nothing. `python -m worker.alive FILE` is the probe.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import structlog

log = structlog.get_logger()
_PULSE = 5.0


def tell_where(loop: asyncio.AbstractEventLoop) -> None:
    """On SIGUSR1, say in the log where each task of the loop waits: for a process that lives and does not go on."""

    def tell() -> None:
        for task in asyncio.all_tasks(loop):
            frames = [f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" for frame in _frames(task)]
            log.warning("waits", task=task.get_name(), at=frames)

    loop.add_signal_handler(signal.SIGUSR1, tell)


def _frames(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a task from the outermost to where it waits; `Task.get_stack` tells the first alone."""
    waits: Any = task.get_coro()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is not None:
            yield frame
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None) or getattr(waits, "ag_await", None)


class Liveness:
    """What a process has to do, and when it last did it."""

    def __init__(self, file: Path | None, **patience: float) -> None:
        """`patience`: each kind of work, and how many seconds may pass between two rounds of it."""
        self._file, self._patience = file, patience
        self._last = dict.fromkeys(patience, monotonic())
        self._stopped = threading.Event()
        if file:
            threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    def round(self, work: str) -> None:
        """This work has come round."""
        self._last[work] = monotonic()

    def expect(self, work: str, patience: float) -> None:
        """From now on this is to come round as well."""
        self._last[work] = monotonic()
        self._patience[work] = patience

    def forget(self, work: str) -> None:
        """There is none of this to do for now."""
        self._patience.pop(work, None)

    def stuck(self) -> list[str]:
        """The work that has not come round for too long."""
        return [work for work, patience in list(self._patience.items()) if monotonic() - self._last[work] > patience]

    def close(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        assert self._file is not None
        while True:
            if stuck := self.stuck():
                log.error("stuck", work=stuck)
            else:
                try:
                    self._file.touch()
                except OSError as error:
                    log.error("liveness_file_not_written", file=str(self._file), error=str(error))
            if self._stopped.wait(_PULSE):
                return
