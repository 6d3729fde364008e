"""Builds that are due, and slots whose pod is not there: looked at by the leader, repaired by repeating the step that was lost.

Every state that is not final has a due time, so a lost message, a killed worker or a killed leader costs seconds and never a build.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from ledger.build import Build, Reason, ReasonClass, State, pod_name
from ledger.deadlines import allowance, deadline
from ledger.errors import ClusterError, FenceLost, LedgerFull, LedgerUnavailable, NotFound, TooLate, VersionConflict
from ledger.events import EventType, event
from ledger.leases import Fence
from worker.cluster import Phase, Pod, PodName
from worker.ending import end_attempt, finalize, supersede
from worker.nudges import Nudges
from worker.observer import Observer
from worker.outcome import Outcome
from worker.place import Place
from worker.retries import reasons_of

log = structlog.get_logger()
_LOOK_AGAIN = timedelta(seconds=15)
_SOON = timedelta(seconds=3)
_OVERDUE = timedelta(minutes=5)


class Reconciler:
    """The leader's answer to due builds."""

    def __init__(self, place: Place, fence: Fence, nudges: Nudges, observer: Observer) -> None:
        self._place, self._fence, self._nudges, self._observer = place, fence, nudges, observer
        self._absent: set[str] = set()

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
        project = await self._place.project(build.project)
        now = datetime.now(UTC)
        match build.state:
            case State.QUEUED if build.superseded_by:
                await supersede(self._place, build, self._fence)
            case State.QUEUED:
                allowed = allowance(State.QUEUED, build.request.deadlines, project.deadlines)
                # A build that only ever found no room has waited since it was submitted; a retry waits anew.
                waited = all(reason.reason_class is ReasonClass.NO_ROOM for reason in reasons_of(build))
                end = (build.created if waited else build.updated) + allowed
                if now >= end - timedelta(seconds=1):
                    message = f"waited longer than its deadline for being queued ({allowed}); raise deadlines.queued or the limits"
                    await finalize(self._place, build, State.FAILED, self._fence, reason=Reason.QUEUED_DEADLINE, message=message)
                else:
                    await self._place.ledger.postpone(build.id, end - now)
            case State.STARTING | State.RUNNING:
                if build.superseded_by and project.supersede == "running" and not build.cancel_requested:
                    events = [event(EventType.CANCEL_REQUESTED, build)]
                    build = await self._place.ledger.transition(
                        build, build.state, due=_LOOK_AGAIN, events=events, fence=self._fence, cancel_requested=now
                    )
                await self._place.ledger.postpone(build.id, _LOOK_AGAIN)
                await self._with_pod(build, self._observer.pods.get(PodName(build.current.runs[0].pod)), now)
            case State.PUBLISHING:
                # The step keeps this deadline itself; here it is for a step that fails before it comes to that.
                if now >= deadline(build, build.publishing_since, project.deadlines) + _OVERDUE:
                    message = build.message or "the worker's `finish` step fails; its log says why"
                    await finalize(self._place, build, State.FAILED, self._fence, reason=Reason.PUBLISH_DEADLINE, message=message)
                    return
                await self._place.ledger.postpone(build.id, _LOOK_AGAIN)
                self._nudges.finish(build.id)

    async def _with_pod(self, build: Build, pod: Pod | None, now: datetime) -> None:
        project = await self._place.project(build.project)
        allowed = allowance(build.state, build.request.deadlines, project.deadlines)
        if pod is None:
            if build.state is State.STARTING:
                self._nudges.restart(build.id)
            return
        if build.cancel_requested or build.reason:  # cancelled, or given up before
            await self._observer.stop(pod)
        elif build.state is State.STARTING and now >= deadline(build, pod.created or build.updated, project.deadlines):
            message = f"the pod did not start within {allowed}: {pod.detail or pod.reason or 'the cluster says no more'}"
            await self._observer.give_up(build, pod, Outcome(Reason.PENDING_DEADLINE, message, None, None))
        elif build.state is State.RUNNING and now >= deadline(build, build.started or build.updated, project.deadlines):
            message = f"ran longer than its deadline ({allowed}); raise deadlines.running or make the build smaller"
            await self._observer.give_up(build, pod, Outcome(Reason.RUN_DEADLINE, message, None, None))
        else:
            self._observer.look_again(pod.name)

    async def look_at_slots(self) -> None:
        """A running build whose pod the cluster does not have, twice in a row, has lost it."""
        absent: set[str] = set()
        for member in await self._place.ledger.slots():
            build_id, attempt, platform = member.split("/", 2)
            if PodName(pod_name(build_id, int(attempt), platform)) not in self._observer.pods:
                absent.add(member)
        for member in absent & self._absent:
            build_id, attempt, platform = member.split("/", 2)
            await self._lost(build_id, int(attempt), platform)
        self._absent = absent

    async def _lost(self, build_id: str, attempt: int, platform: str) -> None:
        try:
            build = await self._place.ledger.read(build_id)
            if build.state is not State.RUNNING or build.attempt != attempt:
                return
            name = PodName(pod_name(build_id, attempt, platform))
            if any(pod.name == name and pod.phase is not Phase.GONE for pod in (await self._place.cluster.pods()).pods):
                return
            message = "its pod is gone from the cluster without its end having been seen"
            lost = Outcome(Reason.POD_LOST, message, None, None)
            ended = await end_attempt(self._place, build, {platform: lost}, fence=self._fence)
            self._nudges.dispatch()
            if ended.state is State.PUBLISHING:
                self._nudges.finish(build_id)
        except (VersionConflict, TooLate, NotFound):
            return
