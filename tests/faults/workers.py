"""A plant's workers: the product's steps on the test's event loop, run as they are nudged. No broker: messages are the test's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from ledger.build import State
from ledger.errors import CrabpotError
from worker.admission import dispatch
from worker.chores import go_on
from worker.finish import finish
from worker.kinds import KINDS
from worker.place import Place

log = structlog.get_logger()


class Nudges:
    """In place of `worker.nudges.Nudges`: a queue. A dispatch that waits already is not asked for again, as in the product."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()
        self._waits = False

    def dispatch(self) -> None:
        if not self._waits:
            self._waits = True
            self._queue.put_nowait(("dispatch", None))

    def restart(self, build: str) -> None:
        self._queue.put_nowait(("dispatch", build))

    def finish(self, build: str) -> None:
        self._queue.put_nowait(("finish", build))

    def chore(self, name: str) -> None:
        self._queue.put_nowait(("chore", name))

    async def take(self) -> tuple[str, str | None]:
        step, build = await self._queue.get()
        self._waits = self._waits and (step, build) != ("dispatch", None)
        return step, build


class Workers:
    """All workers of a plant."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._at_work: Counter[State] = Counter()
        self.nudges = Nudges()
        self.starts_nothing = asyncio.Event()
        """Set while no worker is about to start a pod."""
        self.starts_nothing.set()

    @property
    def states_at_work(self) -> list[State]:
        """In which states builds are that a worker may be at work on."""
        return [state for state, number in self._at_work.items() if number]

    async def run(self) -> None:
        """One worker, for ever: a step that fails is told of and forgotten, as Celery's tasks do."""
        while True:
            step, build = await self.nudges.take()
            try:
                match step:
                    case "dispatch":
                        await self.dispatch(build)
                    case "finish":
                        await self.finish(build or "")
                    case "chore":
                        await go_on(self._place, build or "", KINDS)
            except* CrabpotError as group:
                log.info("step_failed", step=step, build=build, errors=[str(error) for error in group.exceptions])

    async def dispatch(self, build: str | None = None) -> None:
        """One admission."""
        with self._working(State.STARTING):
            await dispatch(self._place, build)

    async def finish(self, build: str) -> None:
        with self._working(State.PUBLISHING):
            await finish(self._place, build)

    @contextmanager
    def _working(self, state: State) -> Iterator[None]:
        self._at_work[state] += 1
        if self._at_work[State.STARTING]:
            self.starts_nothing.clear()
        try:
            yield
        finally:
            self._at_work[state] -= 1
            if not self._at_work[State.STARTING]:
                self.starts_nothing.set()
