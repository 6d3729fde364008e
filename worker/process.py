"""This worker process's one event loop, and the clients that live on it: the bridge from Celery's sync tasks to async steps.

A client belongs to the loop that it was opened on, so the loop lives as long as the process: one thread runs it, task threads wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from itertools import count
from time import monotonic
from typing import TypeVar

from ledger.settings import settings
from worker.place import Place, open_place

T = TypeVar("T")
STEP_SECONDS = 300.0
"""No step takes this long; one that does is stuck, and its build's due time repeats it."""


class Process:
    """The loop's thread and the place on it, both made at the first step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._place: asyncio.Task[Place] | None = None
        self._steps: dict[int, float] = {}
        self._number = count()

    def run(self, step: Callable[[Place], Awaitable[T]]) -> T:
        """Run a step on the loop and wait for it. TimeoutError where it is stuck."""
        return asyncio.run_coroutine_threadsafe(self._step(step), self._started()).result()

    def oldest_step(self) -> float:
        """Seconds since the step began that is at work the longest; 0 where none is."""
        begun = list(self._steps.values())
        return monotonic() - min(begun) if begun else 0.0

    async def _step(self, step: Callable[[Place], Awaitable[T]]) -> T:
        number = next(self._number)
        self._steps[number] = monotonic()
        try:
            async with asyncio.timeout(STEP_SECONDS):
                return await step(await self._opened())
        finally:
            del self._steps[number]

    async def _opened(self) -> Place:
        """One task opens the place, whoever comes first; a failed opening is tried anew by the next step."""
        if self._place is None or (self._place.done() and (self._place.cancelled() or self._place.exception())):
            self._place = asyncio.ensure_future(open_place(settings()))
        return await asyncio.shield(self._place)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="steps", daemon=True).start()
            return self._loop

    def close(self) -> None:
        """Let go of the clients when the worker ends."""
        with self._lock:
            loop, place = self._loop, self._place
        if loop and place and place.done() and not place.cancelled() and not place.exception():
            asyncio.run_coroutine_threadsafe(place.result().close(), loop).result(10)


process = Process()
