"""Builds that are due, and slots whose pod is not there: looked at by the leader, repaired by repeating the step that was lost.

Every state that is not final has a due time, so a lost message, a killed worker or a killed leader costs seconds and never a build.
What was put right is told in one event a round.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from time import monotonic

import structlog

from ledger.build import Build, Reason, ReasonClass, State, pod_name
from ledger.deadlines import allowance, deadline
from ledger.errors import ClusterError, FenceLost, LedgerFull, LedgerUnavailable, NotFound, TooLate, VersionConflict
from ledger.events import mended_event
from ledger.leases import Fence
from ledger.quantities import parse_duration
from worker.cluster import Phase, Pod, PodName
from worker.ending import end_attempt, finalize, supersede, superseded
from worker.launch import IN_FLIGHT, starts_until
from worker.nudges import Nudges
from worker.observer import Observer
from worker.outcome import Outcome
from worker.place import Place
from worker.retries import reasons_of

log = structlog.get_logger()
_LOOK_AGAIN = timedelta(seconds=15)
_SOON = timedelta(seconds=3)
_OVERDUE = timedelta(minutes=5)
_UNSETTLED = 60.0
"""Seconds between two nudges for tags that are to be looked at once more."""


class Reconciler:
    """The leader's answer to due builds."""

    def __init__(self, place: Place, fence: Fence, nudges: Nudges, observer: Observer) -> None:
        self._place, self._fence, self._nudges, self._observer = place, fence, nudges, observer
        self._absent: set[str] = set()
        self._looking: set[str] = set()
        self._unsettled: dict[str, float] = {}

    async def look_at_due(self, group: asyncio.TaskGroup) -> int:
        """Begin to look at what is due; one that the cluster keeps waiting holds up no other. How many are due."""
        due = await self._place.ledger.due()
        for build in due:
            if build not in self._looking:
                self._looking.add(build)
                group.create_task(self._look(build))
        return len(due)

    async def _look(self, build: str) -> None:
        try:
            await self.look_at(build)
        finally:
            self._looking.discard(build)

    async def look_at(self, build_id: str) -> None:
        """Look at one due build and repeat what is missing. Safe at any time and by several at once."""
        try:
            build = await self._place.ledger.read(build_id)
            await self._by_state(build)
        except (VersionConflict, TooLate, NotFound):
            return  # somebody else has just dealt with it
        except ClusterError as error:
            log.warning("due_not_handled", build=build_id, error=str(error))
            await self._place.ledger.postpone(build_id, _SOON)
        except (LedgerUnavailable, LedgerFull, FenceLost):
            raise
        except Exception:  # one build's surprise must not stop the others
            log.exception("due_not_handled", build=build_id)
            await self._place.ledger.postpone(build_id, _LOOK_AGAIN)

    async def _by_state(self, build: Build) -> None:
        now = await self._place.ledger.now()
        match build.state:
            case State.QUEUED:
                await self._queued(build, now)
            case State.STARTING | State.RUNNING:
                await self._place.ledger.postpone(build.id, _LOOK_AGAIN, build.version)
                await self._with_pod(build, self._observer.pods.get(PodName(build.current.runs[0].pod)), now)
            case State.PUBLISHING:
                await self._publishing(build, now)

    async def _queued(self, build: Build, now: datetime) -> None:
        if build.superseded_by:
            await supersede(self._place, build, self._fence)
            return
        project = await self._place.project(build.project)
        allowed = allowance(State.QUEUED, build.request.deadlines, project.deadlines)
        # A build that only ever found no room has waited since it was submitted; a retry waits anew.
        waited = all(reason.reason_class is ReasonClass.NO_ROOM for reason in reasons_of(build))
        since = build.created if waited else build.updated
        is_paused, paused_for = await self._place.ledger.limits.paused(build, since, now)
        end = since + allowed + paused_for
        if now >= end - timedelta(seconds=1) and not is_paused:
            message = f"waited longer than its deadline for being queued ({allowed}); raise deadlines.queued or the limits"
            await finalize(self._place, build, State.FAILED, self._fence, reason=Reason.QUEUED_DEADLINE, message=message)
        else:
            await self._place.ledger.postpone(build.id, max(end - now, _LOOK_AGAIN), build.version)

    async def _publishing(self, build: Build, now: datetime) -> None:
        # The step keeps this deadline itself; here it is for a step that fails before it comes to that.
        project = await self._place.project(build.project)
        held = await self._place.ledger.holds.lasted(build.request.written, build.publishing_since, now)
        if now >= deadline(build, build.publishing_since, project.deadlines) + held + _OVERDUE:
            message = build.message or "the worker's `finish` step fails; its log says why"
            await finalize(self._place, build, State.FAILED, self._fence, reason=Reason.PUBLISH_DEADLINE, message=message)
            return
        await self._place.ledger.postpone(build.id, _LOOK_AGAIN, build.version)
        self._nudges.finish(build.id)

    async def _with_pod(self, build: Build, pod: Pod | None, now: datetime) -> None:
        if pod is None:
            if build.state is State.STARTING:
                await self._without_pod(build, now)
            return
        project = await self._place.project(build.project)
        allowed = allowance(build.state, build.request.deadlines, project.deadlines)
        if pod.deleting and pod.phase in (Phase.PENDING, Phase.RUNNING):
            await self._about_to_go(build, pod)
        elif build.cancel_requested or build.reason:  # cancelled, or given up before
            await self._observer.stop(pod)
        elif build.superseded_by and project.supersede == "running":
            await self._observer.give_up(build, pod, Outcome(Reason.SUPERSEDED, superseded(build), None, None))
        elif build.state is State.STARTING and now >= (build.admitted or build.updated) + allowed:
            message = f"the pod did not start within {allowed}: {pod.detail or pod.reason or 'the cluster says no more'}"
            await self._observer.give_up(build, pod, Outcome(Reason.PENDING_DEADLINE, message, None, None))
        elif build.state is State.RUNNING and now >= deadline(build, build.started or build.updated, project.deadlines):
            message = f"ran longer than its deadline ({allowed}); raise deadlines.running or make the build smaller"
            await self._observer.give_up(build, pod, Outcome(Reason.RUN_DEADLINE, message, None, None))
        else:
            self._observer.look_again(pod.name)

    async def _without_pod(self, build: Build, now: datetime) -> None:
        """Its start was lost, or is refused again and again. Once none can be under way any more, that the pod is absent is certain."""
        if build.namespace:
            self._place.cluster.cover([build.namespace])
        project = await self._place.project(build.project)
        pending = allowance(State.STARTING, build.request.deadlines, project.deadlines)
        if now < starts_until(build, pending):
            self._nudges.restart(build.id)
        elif now >= starts_until(build, pending) + IN_FLIGHT and not await self._is_there(build):
            message = f"its pod could not be created within {pending}; the workers' logs say why (event start_failed or restart_failed)"
            lost = Outcome(Reason.PENDING_DEADLINE, message, None, None)
            await end_attempt(self._place, build, {run.platform: lost for run in build.current.runs}, fence=self._fence)
            self._nudges.dispatch()

    async def _is_there(self, build: Build) -> bool:
        """Whether the cluster has a pod of the current attempt; if so, it is taken in."""
        names = {run.pod for run in build.current.runs}
        found = [pod for pod in (await self._place.cluster.pods()).pods if pod.name in names]
        for pod in found:
            self._observer.see(pod)
        return bool(found)

    async def _about_to_go(self, build: Build, pod: Pod) -> None:
        """A node that does not answer never says that the pod has ended: after a while that is taken for granted."""
        patience = parse_duration(self._place.settings.node_lost_timeout)
        if self._observer.leaving_for(pod) < patience:
            return
        message = f"the node {pod.node} has not told of the pod's end for {patience:.0f} s after it was to be deleted"
        lost = Outcome(build.reason or Reason.NODE_LOST, build.message or message, None, None)
        await end_attempt(self._place, build, {pod.platform: lost}, pods={pod.platform: pod}, fence=self._fence)
        await self._place.ledger.note_mended("node_given_up", build.id)
        self._nudges.dispatch()
        self._observer.look_again(pod.name)

    async def look_at_slots(self) -> None:
        """A running build whose pod the cluster does not have, twice in a row, has lost it."""
        absent: set[str] = set()
        for member in await self._place.ledger.slots():
            if _pod_of(member) not in self._observer.pods:
                absent.add(member)
        lost = absent & self._absent
        self._absent = absent
        if lost:
            there = {pod.name for pod in (await self._place.cluster.pods()).pods}
            for member in lost:
                if _pod_of(member) not in there:
                    await self._lost(member)

    async def _lost(self, member: str) -> None:
        build_id, attempt, platform = member.split("/", 2)
        try:
            build = await self._place.ledger.read(build_id)
            if build.state is not State.RUNNING or build.attempt != int(attempt):
                return
            message = "its pod is gone from the cluster without its end having been seen"
            lost = Outcome(Reason.POD_LOST, message, None, None)
            ended = await end_attempt(self._place, build, {platform: lost}, fence=self._fence)
            await self._place.ledger.note_mended("pod_lost", build_id)
            self._nudges.dispatch()
            if ended.state is State.PUBLISHING:
                self._nudges.finish(build_id)
        except (VersionConflict, TooLate, NotFound):
            return

    async def look_at_tags(self) -> None:
        """Builds whose tags a stopped step may have moved late: a worker looks at them once more."""
        unsettled = await self._place.ledger.tags.unsettled(await self._place.ledger.now())
        self._unsettled = {build: since for build, since in self._unsettled.items() if build in unsettled}
        for build in unsettled:
            if monotonic() > self._unsettled.get(build, 0.0) + _UNSETTLED:
                self._unsettled[build] = monotonic()
                self._nudges.finish(build)

    async def tell_of_mended(self) -> None:
        """One event for all that was put right since the last."""
        notes = await self._place.ledger.mended()
        if notes:
            mended: dict[str, set[str]] = {}
            for what, subject in notes:
                mended.setdefault(what, set()).add(subject)
            log.info("mended", **{what: len(subjects) for what, subjects in mended.items()})
            event = mended_event({what: sorted(subjects) for what, subjects in mended.items()})
            await self._place.ledger.tell(event, fence=self._fence, mended=len(notes))


def _pod_of(member: str) -> PodName:
    """The pod that a slot is for."""
    build, attempt, platform = member.split("/", 2)
    return PodName(pod_name(build, int(attempt), platform))
