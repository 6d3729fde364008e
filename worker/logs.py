"""Capturing the logs of running pods: followed line by line, cleaned, and stored in batches, so that they outlive their pods.

A capture that begins again (a new leader, a broken stream) goes on after the last stored line.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from datetime import datetime, timedelta

import structlog

from ledger.errors import ClusterError, CrabpotError, FenceLost, LedgerUnavailable, NotFound
from ledger.leases import Fence
from ledger.logbook import Line
from ledger.redaction import clean
from worker.cluster import LogLine, Phase, Pod, PodName
from worker.place import Place

log = structlog.get_logger()
TAIL_LINES = 150
"""Lines from the end of a log by which a failure is judged: Kaniko prints some 80 lines of usage after some complaints."""
_BATCH_LINES = 500
_FLUSH_SECONDS = 0.4
_TRIES = 5
_END_PATIENCE = 8.0
"""Seconds from the end of a stream to the news that its container has ended."""
_LONGEST_PATIENCE = 120.0


class Capture:
    """The capture of one pod's log."""

    def __init__(self, place: Place, pod: Pod, fence: Fence) -> None:
        self._place, self._pod, self._fence = place, pod, fence
        self._buffer: list[Line] = []
        self._batch: list[Line] = []
        """What is being stored. It stays as it is until the ledger has it, which knows a batch that is sent again."""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._last: datetime | None = None
        self._lock = asyncio.Lock()
        self.ended = asyncio.Event()
        """Set when the container is known to have ended: only then is the end of the stream the end of the log."""
        self.done = asyncio.Event()

    async def run(self) -> None:
        """Follow to the end, then mark the log complete. Gives up after a few broken streams, saying so in the log."""
        try:
            self._last, complete = await self._place.ledger.logs.last_time(self._pod.build, self._pod.attempt)
            if complete:
                stored = await self._place.ledger.logs.tail(self._pod.build, self._pod.attempt, TAIL_LINES)
                self._tail.extend(line.text for line in stored)
                return
            for attempt in range(_TRIES):
                try:
                    await self._follow_to_the_end()
                    break
                except ClusterError as error:
                    log.info("log_interrupted", pod=self._pod.name, error=str(error))
                    await asyncio.sleep(min(2.0**attempt, 8.0))
            else:
                self._add(
                    LogLine(
                        time=self._last or datetime.now().astimezone(),
                        text="crabpot: the rest of this log could not be read from the cluster",
                    )
                )
            await self._flush_patiently(complete=True)
        except FenceLost:
            raise
        except NotFound:
            pass  # complete already, or the build was forgotten
        except CrabpotError as error:
            log.warning("log_lost", pod=self._pod.name, error=str(error))
        finally:
            self.done.set()

    async def _follow_to_the_end(self) -> None:
        """A stream may end before its container does (a kubelet restarts, a proxy cuts it): then it is taken up again, ever less often
        while nothing comes.
        """
        patience = _END_PATIENCE
        while True:
            before = self._last
            await self._follow(self._last)
            patience = _END_PATIENCE if self._last != before else min(2 * patience, _LONGEST_PATIENCE)
            try:
                async with asyncio.timeout(patience):
                    await self.ended.wait()
                return
            except TimeoutError:
                log.info("log_ended_early", pod=self._pod.name)

    async def _follow(self, last: datetime | None) -> None:
        """Read on after `last`. Lines of one moment are one batch to the cluster, so none is split by it."""
        async for line in self._place.cluster.logs(self._pod.name, since=last):
            if last is None or line.time > last:
                self._add(line)
                if len(self._buffer) >= _BATCH_LINES:
                    await self._flush_patiently()

    def _add(self, line: LogLine) -> None:
        text = clean(line.text)
        self._last = line.time
        self._tail.append(text)
        self._buffer.append(Line(line.time, text))

    async def flush(self, *, complete: bool = False) -> None:
        """Store what has come so far."""
        async with self._lock:
            if self._batch and self._buffer:  # left over from a call that failed
                await self._append()
            if not self._batch:
                self._batch, self._buffer = self._buffer, []
            if self._batch or complete:
                await self._append(complete=complete)

    async def _append(self, *, complete: bool = False) -> None:
        try:
            await self._place.ledger.logs.append(self._pod.build, self._pod.attempt, self._batch, complete=complete, fence=self._fence)
        except NotFound:  # it takes no more, ever
            self._batch, self._buffer = [], []
            raise
        self._batch = []

    async def _flush_patiently(self, *, complete: bool = False) -> None:
        """Wait for Redis, as long as we lead: what is not stored now would be lost, or fill the memory."""
        while True:
            try:
                await self.flush(complete=complete)
                return
            except LedgerUnavailable as error:
                log.warning("log_flush_failed", pod=self._pod.name, error=str(error))
                await asyncio.sleep(random.uniform(0.2, 1.0))

    @property
    def tail(self) -> tuple[str, ...]:
        return tuple(self._tail)


class Captures:
    """All captures of the leader, by pod."""

    def __init__(self, place: Place, fence: Fence, group: asyncio.TaskGroup) -> None:
        self._place, self._fence, self._group = place, fence, group
        self._captures: dict[PodName, Capture] = {}

    def start(self, pod: Pod) -> Capture | None:
        """Begin, unless it has begun; a pod whose container never started has no log."""
        if pod.name not in self._captures:
            if pod.phase not in (Phase.RUNNING, Phase.ENDED) or pod.started is None:
                return None
            self._captures[pod.name] = Capture(self._place, pod, self._fence)
            self._group.create_task(self._captures[pod.name].run())
        if pod.phase is Phase.ENDED:
            self._captures[pod.name].ended.set()
        return self._captures[pod.name]

    def ended(self, pod: Pod) -> None:
        """A pod that is gone writes no more; its capture ends by itself."""
        if capture := self._captures.pop(pod.name, None):
            capture.ended.set()

    async def tail(self, pod: Pod, patience: timedelta) -> tuple[str, ...]:
        """The last lines of an ended pod's log, once it was read to its end or patience has run out."""
        capture = self.start(pod)
        if capture is None:
            return ()
        await self._finished(capture, patience)
        return capture.tail

    async def complete(self, pod: Pod, patience: timedelta) -> None:
        """Wait until the log is stored whole, or patience has run out; then forget the capture."""
        capture = self.start(pod)
        if capture:
            await self._finished(capture, patience)
        self._captures.pop(pod.name, None)

    async def flush_for_ever(self) -> None:
        """Store what came in, so that followers see lines while the build runs."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            for capture in list(self._captures.values()):
                try:
                    await capture.flush()
                except FenceLost:
                    raise
                except CrabpotError as error:
                    log.warning("log_flush_failed", error=str(error))

    @staticmethod
    async def _finished(capture: Capture, patience: timedelta) -> None:
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await capture.done.wait()
        except TimeoutError:
            log.info("log_unfinished")
