"""The `finish` step: what the executor pushed becomes the build's result. Works from the ledger and the registry alone.

It confirms the digest, records the size, moves the mutable tags in the ledger's order, and tells of it. It holds no slot. The registry's
trouble repeats the step; it never rebuilds. After a lost pod it first asks the registry whether the image arrived all the same.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from ledger.build import ATTEMPT_LABEL, Build, Reason, State
from ledger.deadlines import deadline
from ledger.errors import ClusterError, CrabpotError, ManifestUnknown, NotFound, RegistryDenied, RegistryError, TooLate, VersionConflict
from ledger.events import EventType, event
from ledger.projects import ProjectSettings
from ledger.references import ImageReference
from worker.ending import finalize, stop, try_again
from worker.place import Place
from worker.registry.client import RegistryClient
from worker.tagging import move_tags

log = structlog.get_logger()
_DEFINITE_MISSES = 3
"""How often the registry says a definite 404 to a digest before the attempt counts as lost: some registries are eventually consistent."""


async def finish(place: Place, build: str) -> None:
    """Settle one build in `publishing`; in any other state there is nothing to do."""
    try:
        record = await place.ledger.read(build)
        if record.state is State.PUBLISHING:
            await _settle(place, record)
    except (VersionConflict, TooLate, NotFound):
        log.info("settled_elsewhere", build=build)


async def _settle(place: Place, build: Build) -> None:
    if build.cancel_requested and not build.moving_tags:
        await stop(place, build, "cancelled before its tags were moved", None)
        return
    project = await place.project(build.project)
    pushed = build.pushed_image
    assert pushed is not None, "a build that pushes nothing never publishes"
    try:
        client = place.registries.client(build.project, project, pushed.registry)
        if build.digest is None:
            build = await _recover(place, build, client, pushed)
            if build.state is not State.PUBLISHING or build.digest is None:
                return
        image = pushed.with_digest(build.digest or "")
        try:
            size = await client.image_size(image)  # it is there, and its bytes have that digest
        except ManifestUnknown:
            await _missed(place, build)
            return
        if build.further_tags:
            build = await place.ledger.transition(build, State.PUBLISHING, due=timedelta(seconds=30), moving_tags=True, size=size)
            await move_tags(place, client, build, build.further_tags)
        told = build.model_copy(update={"size": size, "state": State.SUCCEEDED, "reason": None, "message": None})
        events = [event(EventType.PUBLISHED, told, image=name) for name in build.request.images or (pushed,)]
        await place.ledger.transition(
            build, State.SUCCEEDED, due=None, events=[*events, event(EventType.FINISHED, told)], size=size, reason=None, message=None
        )
    except RegistryDenied as error:
        message = (
            f"the image was pushed, but crabpot's worker may not read or tag it: {error}; give the project a credential under `registries`"
        )
        await finalize(place, build, State.FAILED, None, reason=Reason.REGISTRY_DENIED, message=message)
    except (RegistryError, ClusterError) as error:
        await _later(place, build, project, error)


async def _recover(place: Place, build: Build, client: RegistryClient, pushed: ImageReference) -> Build:
    """After a lost pod: the image counts only if it carries the label of exactly this attempt."""
    found = await client.resolve(pushed)
    if found is not None:
        image = pushed.with_digest(found.digest)
        labels = (await client.config(image)).get("config", {}).get("Labels") or {}
        if labels.get(ATTEMPT_LABEL) == f"{build.id}.{build.attempt}":
            log.info("recovered", build=build.id, attempt=build.attempt, digest=found.digest)
            return await place.ledger.transition(
                build, State.PUBLISHING, due=timedelta(seconds=30), digest=found.digest, reason=None, message=None
            )
    reason = build.reason or Reason.POD_LOST
    return await try_again(place, build, reason, {"reason": reason, "message": build.message})


async def _missed(place: Place, build: Build) -> None:
    """A definite 404: look again, and after the third time take the attempt as failed."""
    tries = build.publish_tries + 1
    message = f"the registry does not have {build.digest}, which the executor said it pushed"
    if tries < _DEFINITE_MISSES:
        await place.ledger.transition(build, State.PUBLISHING, due=timedelta(seconds=2**tries), publish_tries=tries, message=message)
        return
    runs = tuple(run.model_copy(update={"reason": Reason.DIGEST_UNCONFIRMED, "message": message}) for run in build.current.runs)
    attempts = build.with_attempt(build.current.model_copy(update={"runs": runs}))
    record = build.model_copy(update={"attempts": attempts})
    await try_again(
        place, record, Reason.DIGEST_UNCONFIRMED, {"attempts": attempts, "reason": Reason.DIGEST_UNCONFIRMED, "message": message}
    )


async def _later(place: Place, build: Build, project: ProjectSettings, error: CrabpotError) -> None:
    """The registry's trouble: the same step again with growing pauses, until the publishing deadline."""
    if datetime.now(UTC) >= deadline(build, build.publishing_since, project.deadlines):
        message = f"the registry could not be used before the publishing deadline: {error}"
        await finalize(place, build, State.FAILED, None, reason=Reason.PUBLISH_DEADLINE, message=message)
        return
    tries = build.publish_tries + 1
    pause = max(error.retry_after or 0.0, min(60.0, 2.0 ** min(tries, 6)))
    changes: dict[str, Any] = {"publish_tries": tries, "message": f"waits for the registry: {error}"}
    await place.ledger.transition(build, State.PUBLISHING, due=timedelta(seconds=pause), **changes)
