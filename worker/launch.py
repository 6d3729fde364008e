"""Starting a build that was admitted: its pods, created by names that are a function of the attempt, so that twice is once."""

from __future__ import annotations

from datetime import datetime, timedelta
from time import monotonic

import structlog

from ledger.build import Build, Reason, State
from ledger.deadlines import allowance
from ledger.errors import (
    ClusterDenied,
    ClusterError,
    ClusterUnavailable,
    CrabpotError,
    LaunchRefused,
    NoRoom,
    NotFound,
    PodConflict,
    TooLate,
    VersionConflict,
)
from worker.cluster import Launch, Wanted
from worker.ending import end_attempt
from worker.kaniko import launch
from worker.outcome import Outcome
from worker.place import Place

log = structlog.get_logger()
IN_FLIGHT = timedelta(seconds=70)
"""How long after the last moment for a start its create may still be under way: the launch goes on for 45 s, the server for 20 s more."""
_CANCELLED_FOR = timedelta(seconds=15)
_GRACE = timedelta(minutes=5)
"""By how much the cluster's own deadline is later than ours: it is the second line of defence."""


async def start(place: Place, build: Build, until: float) -> None:
    """Create the pods of a build that was just admitted. Writes the record only where the cluster refuses for good, or has no room.

    `until` (by `monotonic()`) is when somebody else may begin to start the same build. Before, a refusal is certain: nobody else can
    have created the pod. After it, and after an answer that leaves open whether the pod exists (ClusterUnavailable), nothing is given
    up: the start is repeated under the same name, and what comes of it is seen when the pod is, or when its time is up.
    """
    composed = await _compose_all(place, build)
    if composed is None:
        return
    wanted = _wanted(place, build)
    for each in composed:
        if monotonic() > until:  # this process was stopped in between
            raise ClusterUnavailable(f"the start of build {build.id} took too long and is left to whoever repeats it")
        try:
            await place.cluster.launch(each, wanted)
        except (NoRoom, LaunchRefused, ClusterDenied, PodConflict) as error:
            if monotonic() > until:
                raise
            await give_up(place, build, _refused(error), error.retry_after)
            return


def starts_until(build: Build, pending: timedelta) -> datetime:
    """Until when the start of a `starting` build is repeated: its time for starting, and less where it is cancelled. Pure."""
    end = (build.admitted or build.updated) + pending
    return min(end, build.cancel_requested + _CANCELLED_FOR) if build.cancel_requested else end


async def restart(place: Place, build: Build) -> None:
    """Create the pods of a `starting` build once more, where the first start may have been lost.

    A refusal proves nothing now: the first create may just be on its way, and the quota may be used up by the very pod. It is told of,
    and the build's time for starting decides (`worker/reconcile.py`). A build that is being cancelled is started too: that its pod is
    ours to delete is how a cancel can be certain that no late create comes after it.
    """
    project = await place.project(build.project)
    if await place.ledger.now() < starts_until(build, allowance(State.STARTING, build.request.deadlines, project.deadlines)):
        for each in await _compose_all(place, build) or ():
            await place.cluster.launch(each, _wanted(place, build))


def _wanted(place: Place, build: Build) -> Wanted:
    """Whether the attempt still waits for its pod. A pod goes only once its end is recorded: where it was seen, none is to follow it."""

    async def wanted() -> bool:
        try:
            record = await place.ledger.read(build.id)
        except NotFound:
            return False
        return record.state is State.STARTING and record.attempt == build.attempt

    return wanted


async def _compose_all(place: Place, build: Build) -> list[Launch] | None:
    """What is to be run; None where it cannot be said, which ends the attempt."""
    try:
        return [await compose(place, build, run.platform) for run in build.current.runs]
    except LaunchRefused as error:
        await give_up(place, build, _refused(error))
    except CrabpotError:
        raise
    except Exception:  # a surprise of one build, which would come again at each try
        log.exception("start_failed", build=build.id)
        message = "crabpot could not compose its pod; the worker's log says why"
        await give_up(place, build, Outcome(Reason.START_FAILED, message, None, None))
    return None


async def compose(place: Place, build: Build, platform: str) -> Launch:
    """What is to be run for a platform of the current attempt."""
    settings = place.settings
    project = await place.project(build.project)
    running = allowance(State.RUNNING, build.request.deadlines, project.deadlines)
    pending = allowance(State.STARTING, build.request.deadlines, project.deadlines)
    return launch(
        build,
        platform,
        namespace=build.namespace or settings.namespace,
        executor_image=settings.executor_image,
        cpu=build.request.resources.cpu or project.resources.cpu or settings.cpu,
        memory=await place.memory_of(build),
        ephemeral_storage=build.request.resources.ephemeral_storage or project.resources.ephemeral_storage,
        run_deadline=running + pending + _GRACE,
    )


def _refused(error: ClusterError | PodConflict) -> Outcome:
    """What a refusal means."""
    match error:
        case NoRoom():
            reason = Reason.QUOTA
        case LaunchRefused():
            reason = Reason.ADMISSION_DENIED
        case _:
            reason = Reason.START_FAILED
    return Outcome(reason, str(error), None, None)


async def give_up(place: Place, build: Build, outcome: Outcome, retry_after: float | None = None) -> None:
    """The cluster's definite no: no pod of this attempt exists or ever will."""
    try:
        await end_attempt(place, build, {run.platform: outcome for run in build.current.runs}, retry_after=retry_after)
    except (TooLate, VersionConflict):
        log.info("already_settled", build=build.id, attempt=build.attempt)
