"""The `dispatch` step: admit what fits, one atomic call each, and start what was admitted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from ledger.build import Build, Reason, State
from ledger.errors import CrabpotError, LedgerError, NotFound
from worker.launch import give_up, start
from worker.outcome import Outcome
from worker.place import Place

log = structlog.get_logger()
_STARTS_AT_ONCE = 32
"""Pods created at once by one step: enough to hide the API server's latency, few enough not to be throttled."""


async def dispatch(place: Place, build: str | None = None) -> int:
    """Admit until nothing fits; starts go on meanwhile. Answers how many were admitted. A build's id repeats its start first."""
    admitted = 0
    gate = asyncio.Semaphore(_STARTS_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        if build:
            group.create_task(_restart(place, build))
        while True:
            await gate.acquire()
            taken = await place.ledger.admit(timedelta(seconds=place.start_timeout))
            if taken is None:
                break
            admitted += 1
            task = group.create_task(_start(place, taken))
            task.add_done_callback(lambda _: gate.release())
    return admitted


async def _restart(place: Place, build: str) -> None:
    """Start a build again that has been `starting` for too long: the same pods, by the same names."""
    try:
        record = await place.ledger.read(build)
    except NotFound:
        return
    if record.state is State.STARTING:
        await _start(place, record)


async def _start(place: Place, build: Build) -> None:
    """One build's trouble must not stop the others': it is told of, and its due time brings it back."""
    try:
        await start(place, build)
    except CrabpotError as error:
        log.warning("start_failed", build=build.id, error=str(error), kind=type(error).__name__)
        if error.retryable and not isinstance(error, LedgerError):
            await place.ledger.postpone(build.id, timedelta(seconds=max(error.retry_after or 0.0, 2.0)))
    except Exception:  # a surprise of one build, which would come again at each try
        log.exception("start_failed", build=build.id)
        await give_up(
            place, build, Outcome(Reason.START_FAILED, "crabpot could not compose its pod; the worker's log says why", None, None)
        )
