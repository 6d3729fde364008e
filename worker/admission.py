"""The `dispatch` step: admit what fits, one atomic call each, and start what was admitted."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic

import structlog

from ledger.build import Build, State
from ledger.errors import CrabpotError, LedgerError, NotFound
from worker.launch import restart, start
from worker.place import Place

log = structlog.get_logger()
_ADMITS_FOR = 60.0
"""Seconds after which a step leaves the rest to the next: under steady load something always fits."""
_AGAIN = timedelta(seconds=2)


async def dispatch(place: Place, build: str | None = None) -> int:
    """Admit until nothing fits; starts go on meanwhile. Answers how many were admitted. A build's id repeats its start first."""
    async with asyncio.TaskGroup() as group:
        if build:
            group.create_task(_restart(place, build))
        return await _admit(place, group)


async def _admit(place: Place, group: asyncio.TaskGroup) -> int:
    """One step of a process does it at a time: more would only have more pods in the making, each with a connection of its own."""
    turn = place.turn
    if turn.taken:
        turn.asked_again = True
        return 0
    turn.taken = True
    try:
        admitted, end = 0, monotonic() + _ADMITS_FOR
        while monotonic() < end:
            await turn.starts.acquire()
            task: asyncio.Task[None] | None = None
            try:
                turn.asked_again = False
                until = monotonic() + place.start_timeout
                taken = await place.ledger.admit(timedelta(seconds=place.start_timeout))
                if taken is not None:
                    admitted += 1
                    task = group.create_task(_start(place, taken, until))
                    task.add_done_callback(lambda _: turn.starts.release())
                elif not turn.asked_again:
                    break
            finally:
                if task is None:
                    turn.starts.release()
        return admitted
    finally:
        turn.taken = False


async def _restart(place: Place, build: str) -> None:
    """Start a build again that has been `starting` for too long: the same pods, by the same names."""
    try:
        record = await place.ledger.read(build)
        if record.state is State.STARTING:
            await place.ledger.note_mended("start_repeated", build)
            await restart(place, record)
    except NotFound:
        return
    except CrabpotError as error:
        log.warning("restart_failed", build=build, error=str(error), kind=type(error).__name__)


async def _start(place: Place, build: Build, until: float) -> None:
    """One build's trouble must not stop the others': it is told of, and its due time brings it back."""
    try:
        await start(place, build, until)
    except CrabpotError as error:
        log.warning("start_failed", build=build.id, error=str(error), kind=type(error).__name__)
        if error.retryable and not isinstance(error, LedgerError):
            await place.ledger.postpone(build.id, max(timedelta(seconds=error.retry_after or 0.0), _AGAIN), build.version)
    except Exception:  # whether its pod exists is not known, so its slots stay: its due time brings it back
        log.exception("start_failed", build=build.id)
