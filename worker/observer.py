"""What the cluster tells of our pods, written into the ledger the moment it happens.

One list, then one watch; a list is treated as events. Each pod's changes are handled one after another, different pods' at once.
The end of a container is the end of its attempt: the pod's phase turns terminal up to two seconds later.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import Any

import structlog

from ledger.build import Build, Reason, State
from ledger.deadlines import allowance
from ledger.errors import ClusterError, CrabpotError, FenceLost, NotFound, TooLate, VersionConflict, WatchExpired
from ledger.events import EventType, event
from ledger.leases import Fence
from worker.cluster import Phase, Pod, PodName
from worker.complaint import excerpt
from worker.ending import end_attempt
from worker.liveness import Liveness
from worker.logs import Captures
from worker.nudges import Nudges
from worker.outcome import Outcome, outcome, pending
from worker.place import Place

log = structlog.get_logger()
RELIST = timedelta(minutes=3)
"""A watch that silently lost something is repaired by listing again."""
_LOG_PATIENCE = timedelta(seconds=30)
"""How long an ended pod is kept for its log."""
_TAIL_PATIENCE = timedelta(seconds=5)
"""How long the record of a failure waits for the end of its log, which says what failed."""
_CANCEL_GRACE = timedelta(seconds=2)
_HOPELESS_GRACE = {Reason.UNSCHEDULABLE: 20.0, Reason.IMAGE_PULL: 60.0, Reason.CONFIG_ERROR: 5.0}
"""Seconds that a pod may stay unable to start, by what keeps it: some of it mends itself."""
_SILENCE = 10.0
"""Seconds after which a pod that has not started and does not say why is asked about: a missing mounted Secret is told by an event only."""
_ASK_AGAIN = 20.0
"""Seconds between two such questions about one pod."""
_BUSY = timedelta(seconds=10)
_PROVEN = 5.0
"""Seconds between two looks for the build of a pod that has none: what is to be deleted is proved twice."""
_ORDER = {Phase.PENDING: 0, Phase.RUNNING: 1, Phase.ENDED: 2, Phase.GONE: 3}


class Observer:
    """The leader's view of the cluster, and what it writes of it."""

    def __init__(
        self, place: Place, fence: Fence, nudges: Nudges, captures: Captures, group: asyncio.TaskGroup, liveness: Liveness
    ) -> None:
        self._place, self._fence, self._nudges, self._captures, self._group = place, fence, nudges, captures, group
        self._liveness = liveness
        self.pods: dict[PodName, Pod] = {}
        self.synced = asyncio.Event()
        self._waiting: dict[PodName, Pod] = {}
        self._busy: set[PodName] = set()
        self._orphans: dict[str, float] = {}
        self._leaving: set[str] = set()
        self._asked: dict[str, float] = {}
        self._first_seen: dict[str, float] = {}
        self._asked_to_go: dict[str, float] = {}
        self._asking = asyncio.Semaphore(4)

    async def run(self) -> None:
        """List and watch for ever; every failure backs off and lists again."""
        failures = 0
        while True:
            self._liveness.round("watch")
            try:
                version = await self._list()
                failures = 0
                try:
                    async with asyncio.timeout(RELIST.total_seconds()):
                        async for pod in self._place.cluster.watch(version):
                            self._liveness.round("watch")
                            self.see(pod)
                except TimeoutError:
                    pass
            except WatchExpired:
                continue
            except ClusterError as error:
                failures += 1
                log.warning("watch_failed", error=str(error), failures=failures)
                await asyncio.sleep(error.retry_after or random.uniform(0.1, min(30.0, 0.5 * 2**failures)))

    async def _list(self) -> str:
        snapshot = await self._place.cluster.pods()
        present = {pod.name for pod in snapshot.pods}
        for name, pod in list(self.pods.items()):
            if name not in present:
                self.see(replace(pod, phase=Phase.GONE))
        for pod in snapshot.pods:
            self.see(pod)
        self.synced.set()
        return snapshot.version

    def see(self, pod: Pod) -> None:
        """Take in one change; only the latest state of a pod is handled. A pod's life goes one way: what says otherwise comes late."""
        known = self.pods.get(pod.name)
        if known and known.uid == pod.uid and _ORDER[pod.phase] < _ORDER[known.phase]:
            return
        if pod.phase is Phase.GONE:
            if known is None or known.uid == pod.uid:
                self.pods.pop(pod.name, None)
            for times in (self._asked, self._first_seen, self._asked_to_go):
                times.pop(pod.uid, None)
        else:
            self.pods[pod.name] = pod
            self._first_seen.setdefault(pod.uid, monotonic())
            if pod.deleting:
                self._asked_to_go.setdefault(pod.uid, monotonic())
        self._waiting[pod.name] = pod
        if pod.name not in self._busy:
            self._busy.add(pod.name)
            self._group.create_task(self._work(pod.name))

    def leaving_for(self, pod: Pod) -> float:
        """Seconds for which a pod has been about to go, as far as this leader has seen."""
        return monotonic() - self._asked_to_go.get(pod.uid, monotonic())

    def _seen_for(self, pod: Pod) -> float:
        return monotonic() - self._first_seen.get(pod.uid, monotonic())

    def look_again(self, name: PodName) -> None:
        """Handle a pod's last known state once more: its build has changed."""
        if name in self.pods:
            self.see(self.pods[name])

    async def _work(self, name: PodName) -> None:
        try:
            failures = 0
            while name in self._waiting:
                pod = self._waiting.pop(name)
                try:
                    await self._handle(pod)
                    failures = 0
                except FenceLost:
                    raise
                except (VersionConflict, TooLate):
                    self._waiting.setdefault(name, pod)  # somebody else wrote: read again
                except CrabpotError as error:
                    failures += 1
                    log.warning("pod_not_handled", pod=name, error=str(error), kind=type(error).__name__)
                    self._waiting.setdefault(name, pod)
                    await asyncio.sleep(error.retry_after or random.uniform(0.1, min(10.0, 0.2 * 2**failures)))
                except Exception:  # one pod's surprise must not stop the others; the next list brings it back
                    log.exception("pod_not_handled", pod=name)
        finally:
            self._busy.discard(name)

    async def _handle(self, pod: Pod) -> None:
        try:
            build = await self._place.ledger.read(pod.build)
        except NotFound:
            await self._orphan(pod)
            return
        if build.attempt != pod.attempt or not build.state.holds_slots:
            await self._settled(pod)
        elif pod.phase in (Phase.ENDED, Phase.GONE) or (pod.deleting and pod.phase is Phase.PENDING and pod.node is None):
            await self._end(build, pod)
        elif build.cancel_requested:
            await self.stop(pod)
        elif pod.phase is Phase.RUNNING:
            self._captures.start(pod)
            if build.state is State.STARTING:
                await self._started(build, pod)
        else:
            await self.consider_pending(build, pod)

    async def _started(self, build: Build, pod: Pod) -> None:
        project = await self._place.project(build.project)
        run = build.current.runs[0].model_copy(update={"uid": pod.uid, "node": pod.node, "started": pod.started})
        attempt = build.current.model_copy(update={"runs": (run,), "memory": await self._place.memory_of(build)})
        due = allowance(State.RUNNING, build.request.deadlines, project.deadlines)
        told = build.model_copy(update={"state": State.RUNNING})
        events = [event(EventType.STARTED, told)]
        changes: dict[str, Any] = {
            "started": pod.started or await self._place.ledger.now(),
            "attempts": build.with_attempt(attempt),
            "no_room": 0,
        }
        await self._place.ledger.transition(build, State.RUNNING, due=due, events=events, fence=self._fence, **changes)

    async def _end(self, build: Build, pod: Pod) -> None:
        """Record the end; then let the pod go once its log is safe."""
        self._captures.start(pod)
        failed = pod.exit_code != 0
        tail = await self._captures.tail(pod, _TAIL_PATIENCE) if failed and pod.phase is Phase.ENDED else ()
        result = outcome(pod, tail, pushes=build.request.push)
        if build.reason and build.state.holds_slots:  # given up by a deadline, or because it could never start
            result = Outcome(build.reason, build.message or str(build.reason), result.exit_code, None)
        ended = await end_attempt(
            self._place, build, {pod.platform: result}, pods={pod.platform: pod}, log_tail=tuple(excerpt(tail)), fence=self._fence
        )
        if ended.state is State.PUBLISHING:
            self._nudges.finish(build.id)  # first: people wait for it
        self._nudges.dispatch()
        log.info(
            "attempt_ended", build=build.id, attempt=build.attempt, state=str(ended.state), reason=result.reason and str(result.reason)
        )
        await self._settled(pod)

    async def consider_pending(self, build: Build, pod: Pod) -> None:
        """A pod that has not started: is there any hope?"""
        age = self._seen_for(pod)
        result = pending(pod)
        if result is None and age > _SILENCE and (told := await self._ask_why(pod)):
            result = pending(replace(pod, reason=told[0], detail=told[1]))
        if result is None or result.reason is None:
            return
        grace = _HOPELESS_GRACE.get(result.reason, 0.0)
        if age < grace:  # the cluster may tell nothing new of it: look again by ourselves
            await self._place.ledger.postpone(build.id, timedelta(seconds=grace - age + 0.1), build.version)
        else:
            await self.give_up(build, pod, result)

    async def _ask_why(self, pod: Pod) -> tuple[str, str] | None:
        """What the cluster's events tell of a pod, asked now and then: a thousand that wait for a slow scheduler must not slow it more."""
        if monotonic() < self._asked.get(pod.uid, 0.0) + _ASK_AGAIN:
            return None
        self._asked[pod.uid] = monotonic()
        async with self._asking:
            return await self._place.cluster.explain(pod.name, pod.uid)

    async def give_up(self, build: Build, pod: Pod, result: Outcome) -> None:
        """Write down why, then ask for the pod's end; the end itself is recorded when it is seen."""
        if build.reason is None:
            await self._place.ledger.transition(
                build, build.state, due=_BUSY, fence=self._fence, reason=result.reason, message=result.message
            )
        await self.stop(pod)

    async def stop(self, pod: Pod) -> None:
        if not pod.deleting:
            await self._place.cluster.delete(pod.name, pod.uid, _CANCEL_GRACE)

    async def _settled(self, pod: Pod) -> None:
        """A pod whose attempt is over, or was never the current one: it goes, by uid."""
        if pod.phase is Phase.GONE:
            self._leaving.discard(pod.uid)
            self._captures.ended(pod)
            return
        if pod.uid not in self._leaving:
            self._leaving.add(pod.uid)
            self._group.create_task(self._leave(pod))

    async def _leave(self, pod: Pod) -> None:
        if pod.phase is Phase.ENDED:
            await self._captures.complete(pod, _LOG_PATIENCE)
        failures = 0
        while True:
            try:
                await self._remove(pod, timedelta(0) if pod.phase is not Phase.ENDED else _CANCEL_GRACE)
                if pod.phase is not Phase.ENDED:
                    await self._place.ledger.note_mended("late_pod_deleted", pod.name)
                return
            except CrabpotError as error:  # again soon: the next list may be minutes away, and its slot is another's by now
                failures += 1
                log.warning("pod_not_deleted", pod=pod.name, error=str(error), failures=failures)
                await asyncio.sleep(error.retry_after or random.uniform(0.1, min(30.0, 0.2 * 2**failures)))

    async def _remove(self, pod: Pod, grace: timedelta) -> None:
        if not pod.deleting:
            await self._place.cluster.delete(pod.name, pod.uid, grace)
        if pod.held:
            await self._place.cluster.release(pod.name, pod.uid)

    async def _orphan(self, pod: Pod) -> None:
        """A pod without a build: its record may have expired. It goes once that is found twice, some time apart."""
        if pod.phase is Phase.GONE:
            self._orphans.pop(pod.uid, None)
        elif monotonic() - self._orphans.setdefault(pod.uid, monotonic()) > _PROVEN:
            await self._remove(pod, _CANCEL_GRACE)
            await self._place.ledger.note_mended("orphan_deleted", pod.name)

    def look_at_orphans(self) -> None:
        """Look once more at the pods that had no build."""
        for name, pod in list(self.pods.items()):
            if pod.uid in self._orphans:
                self.look_again(name)
