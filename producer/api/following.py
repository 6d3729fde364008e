"""Following a build and its log while they go on: answers that take minutes, and so must outlast a Redis that is restarted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import structlog

from ledger.build import Build
from ledger.errors import CrabpotError, LedgerUnavailable
from ledger.logbook import Line
from ledger.store import Ledger

T = TypeVar("T")
log = structlog.get_logger()
PATIENCE = 120.0
"""Seconds that a follower waits for Redis to come back before its answer ends."""
LATE = 10.0
"""Seconds without a line after which the log of an attempt that is over has no more: it was dropped, or could not be read."""
_SLICE = 1.0


async def changes(ledger: Ledger, build: str, seconds: float | None) -> AsyncIterator[Build]:
    """The record now and after every change, until it has ended or the time is over."""
    end = None if seconds is None else time.monotonic() + seconds

    async def follow() -> AsyncIterator[Build]:
        async with ledger.changes(build, None if end is None else max(0.0, end - time.monotonic())) as records:
            async for record in records:
                yield record

    async for record in _patiently(follow):
        yield record


class LogFollower:
    """Reads the logs of a build's attempts one after another as they come; knows where it is, and goes on from there."""

    def __init__(self, ledger: Ledger, build: Build, only: int | None) -> None:
        """`only`: this attempt's log alone; else a build that is tried again goes on being followed."""
        self._ledger, self._build, self._only = ledger, build, only
        self._attempt, self._place, self._complete = only or max(build.attempt, 1), "0-0", False

    async def lines(self) -> AsyncIterator[list[Line]]:
        """Batches of lines until the last log is complete; empty ones where there is nothing new."""
        async for batch in _patiently(self._go_on):
            yield batch

    async def _go_on(self) -> AsyncIterator[list[Line]]:
        while True:
            lines, place, complete = await self._ledger.logs.read(self._build.id, self._attempt, self._place, block=_SLICE)
            self._place, self._complete = place, self._complete or complete
            yield lines
            if lines and not complete:
                continue
            build = await self._ledger.read(self._build.id)
            more = build.attempt > self._attempt
            if self._complete or ((build.state.final or more) and await self._silent(build)):
                if self._only is not None or (build.state.final and not more):
                    return
                if more:
                    self._attempt, self._place, self._complete = self._attempt + 1, "0-0", False

    async def _silent(self, build: Build) -> bool:
        """Whether an ended attempt's log stays without an end. It may come late: the end of a build does not wait for it."""
        ran = any(run.started for attempt in build.attempts if attempt.number == self._attempt for run in attempt.runs)
        end = time.monotonic() + LATE
        while ran and time.monotonic() < end:  # in slices: no single answer of Redis may take that long
            if (await self._ledger.logs.read(self._build.id, self._attempt, self._place, block=_SLICE))[0]:
                return False
        return True


async def stored(ledger: Ledger, build: Build, attempt: int) -> AsyncIterator[list[Line]]:
    """What is stored of a log now."""
    place = "0-0"
    while True:
        lines, place, complete = await ledger.logs.read(build.id, attempt, place)
        yield lines
        if complete or not lines:
            return


async def until_broken(parts: AsyncIterator[str], say: Callable[[CrabpotError], str]) -> AsyncIterator[str]:
    """The parts of an answer whose status is already sent: an error can only be said in its text, and ends it."""
    try:
        async for part in parts:
            yield part
    except CrabpotError as error:
        log.warning("answer_broken_off", error=str(error), kind=type(error).__name__)
        yield say(error)


async def _patiently(begin: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
    """What it yields, begun anew while Redis is away."""
    away: float | None = None
    while True:
        try:
            async for item in begin():
                away = None
                yield item
            return
        except LedgerUnavailable as error:
            away = away or time.monotonic()
            if time.monotonic() - away > PATIENCE:
                raise
            log.warning("follower_waits", error=str(error))
            await asyncio.sleep(random.uniform(0.2, 1.0))
