"""Starting a build that was admitted: its pods, created by names that are a function of the attempt, so that twice is once."""

from __future__ import annotations

from datetime import timedelta

import structlog

from ledger.build import Attempt, Build, Reason, State
from ledger.deadlines import allowance
from ledger.errors import ClusterDenied, LaunchRefused, NoRoom, PodConflict, TooLate, VersionConflict
from worker.cluster import Launch
from worker.ending import end_attempt
from worker.kaniko import launch
from worker.outcome import Outcome
from worker.place import Place
from worker.retries import memory_for

log = structlog.get_logger()
_GRACE = timedelta(minutes=5)
"""By how much the cluster's own deadline is later than ours: it is the second line of defence."""


async def start(place: Place, build: Build) -> None:
    """Create the pods of a `starting` build. Writes the record only where the cluster refuses for good, or has no room.

    After an answer that leaves open whether the pod exists (ClusterUnavailable) nothing is given up: the start is repeated under
    the same name until the cluster says yes or no. A cancelled build is started too: that its pod is ours to delete is how a cancel
    can be certain that no late create comes after it.
    """
    try:
        for run in build.current.runs:
            await place.cluster.launch(await compose(place, build, run.platform))
    except NoRoom as error:
        await give_up(place, build, Outcome(Reason.QUOTA, str(error), None, None), error.retry_after)
    except LaunchRefused as error:
        await give_up(place, build, Outcome(Reason.ADMISSION_DENIED, str(error), None, None))
    except (ClusterDenied, PodConflict) as error:
        await give_up(place, build, Outcome(Reason.START_FAILED, str(error), None, None))


async def compose(place: Place, build: Build, platform: str) -> Launch:
    """What is to be run for a platform of the current attempt."""
    settings = place.settings
    project = await place.project(build.project)
    given = build.request.resources.memory or project.resources.memory or settings.memory
    running = allowance(State.RUNNING, build.request.deadlines, project.deadlines)
    pending = allowance(State.STARTING, build.request.deadlines, project.deadlines)
    return launch(
        build,
        platform,
        namespace=project.namespace or settings.namespace,
        executor_image=settings.executor_image,
        cpu=build.request.resources.cpu or project.resources.cpu or settings.cpu,
        memory=memory_for(build, given, project.policy.max_memory),
        ephemeral_storage=build.request.resources.ephemeral_storage or project.resources.ephemeral_storage,
        run_deadline=running + pending + _GRACE,
    )


async def give_up(place: Place, build: Build, outcome: Outcome, retry_after: float | None = None) -> None:
    """The cluster's definite no: no pod of this attempt exists or ever will."""
    attempt: Attempt = build.current
    try:
        await end_attempt(place, build, {run.platform: outcome for run in attempt.runs}, retry_after=retry_after)
    except (TooLate, VersionConflict):
        log.info("already_settled", build=build.id, attempt=build.attempt)
