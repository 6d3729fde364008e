"""The `finish` step: what the executor pushed becomes the build's result. Works from the ledger and the registry alone.

It confirms the digest, records the size, moves the mutable tags in the ledger's order, and tells of it. It holds no slot. The registry's
trouble repeats the step; it never rebuilds. After a lost pod it first asks the registry whether the image arrived all the same.

A step claims its build: the record's due time says until when others leave it alone, and the record's version is the fence that each of
its writes carries. Before each request to the registry the claim is looked at and prolonged. So a step that was stopped for long and goes
on changes nothing; but a request that it was about to send may still go out, so the tags are looked at once more after the end.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog

from ledger.build import ATTEMPT_LABEL, Build, Reason, State
from ledger.deadlines import deadline
from ledger.errors import ClusterError, CrabpotError, ManifestUnknown, NotFound, RegistryDenied, RegistryError, TooLate, VersionConflict
from ledger.events import EventType, event
from ledger.projects import ProjectSettings
from ledger.references import ImageReference, branch_of
from ledger.request import GitSource
from ledger.shelf import Pushed
from worker.ending import cancel, finalize, try_again
from worker.place import Place
from worker.registry.client import RegistryClient
from worker.tagging import move_tags, set_tags

log = structlog.get_logger()
CLAIM = timedelta(seconds=45)
"""How long others leave a claimed build alone: longer than a question to a registry takes (`worker/registries.py` bounds each exchange)."""
_DEFINITE_MISSES = 3
"""How often the registry says a definite 404 to a digest before the attempt counts as lost: some registries are eventually consistent."""


async def finish(place: Place, build: str) -> None:
    """Settle one build in `publishing`, or look once more at the tags of one that has ended; otherwise there is nothing to do."""
    try:
        record, now = await place.ledger.read(build), await place.ledger.now()
        if record.state is State.PUBLISHING:
            if not (record.claimed and record.due and record.due > now):
                await _Finish(place, await _claim(place, record)).settle()
        elif await place.ledger.tags.is_unsettled(build, now):
            await _look_once_more(place, record)
    except (VersionConflict, TooLate, NotFound):
        log.info("settled_elsewhere", build=build)


async def _claim(place: Place, build: Build) -> Build:
    """Take the work on. Who finds a claim that nobody gave back knows that a step was stopped midway."""
    if build.claimed:
        await place.ledger.note_mended("publishing_taken_over", build.id)
    doubtful = build.doubtful or (build.claimed and build.moving_tags)
    return await place.ledger.transition(build, State.PUBLISHING, due=CLAIM, claimed=True, doubtful=doubtful)


async def _look_once_more(place: Place, build: Build) -> None:
    """The tags of an ended build whose publishing was doubtful: what is wanted is put, whoever wants it by now."""
    if build.state is State.SUCCEEDED and (pushed := build.pushed_image):
        project = await place.project(build.project)
        client = place.registries.client(build.project, project, pushed.registry)
        try:
            if await set_tags(place, client, build.moved_tags):
                await place.ledger.note_mended("tags_put_right", build.id)
        except ManifestUnknown:
            log.warning("wanted_digest_gone", build=build.id)
        except (RegistryError, ClusterError) as error:
            log.warning("tags_not_looked_at", build=build.id, error=str(error))
            return
    await place.ledger.tags.settled(build.id)


class _Finish:
    """One step at work on a claimed build."""

    def __init__(self, place: Place, build: Build) -> None:
        self._place, self._build = place, build

    async def settle(self) -> None:
        place, build = self._place, self._build
        if build.cancel_requested and not build.moving_tags:
            await cancel(place, build, "cancelled before its tags were moved", None)
            return
        project = await place.project(build.project)
        pushed = build.pushed_image
        assert pushed is not None, "a build that pushes nothing never publishes"
        try:
            client = place.registries.client(build.project, project, pushed.registry)
            if build.digest is None and not await self._recover(client, pushed):
                return
            await self._publish(client, pushed)
        except RegistryDenied as error:
            message = f"the image was pushed, but crabpot's worker may not read or tag it: {error}; give the project a credential under `registries`"
            await finalize(place, self._build, State.FAILED, None, reason=Reason.REGISTRY_DENIED, message=message)
        except (RegistryError, ClusterError) as error:
            await self._later(project, error)

    async def _publish(self, client: RegistryClient, pushed: ImageReference) -> None:
        build = self._build
        try:
            await self._hold()
            size = await client.image_size(pushed.with_digest(build.digest or ""))  # it is there, and its bytes have that digest
        except ManifestUnknown:
            await self._missed()
            return
        if build.further_tags:
            await self._write(due=CLAIM, moving_tags=True, size=size)
            await move_tags(self._place, client, self._build, self._hold)
        await self._record_push(pushed)
        told = self._build.model_copy(update={"size": size, "state": State.SUCCEEDED, "reason": None, "message": None, "claimed": False})
        events = [event(EventType.PUBLISHED, told, image=name) for name in build.request.images or (pushed,)]
        changes: dict[str, Any] = {"size": size, "reason": None, "message": None, "claimed": False}
        await self._place.ledger.transition(
            self._build, State.SUCCEEDED, due=None, events=[*events, event(EventType.FINISHED, told)], **changes
        )

    async def _record_push(self, pushed: ImageReference) -> None:
        """When these tags were pushed: retention goes by that, and not by what the image says of itself."""
        build, source = self._build, self._build.request.source
        branch = branch_of(source.ref) if isinstance(source, GitSource) and source.ref else None
        moved = build.moved_tags  # of one repository, the pushed image's
        wanted = await self._place.ledger.tags.all_wanted(moved[0].name, [image.reference for image in moved]) if moved else {}
        overtaken = {image for image in moved if (found := wanted.get(image.reference)) and found.digest != build.digest}
        tagged = {image for image in (pushed, *build.request.images) if image.tag} - overtaken
        await self._place.ledger.shelf.record_push(sorted(tagged, key=str), Pushed(build.digest or "", build.publishing_since, branch))

    async def _hold(self) -> None:
        """Before each request to the registry. VersionConflict: another goes on with it."""
        await self._place.ledger.hold(self._build, CLAIM)

    async def _write(self, *, due: timedelta, **changes: Any) -> None:
        self._build = await self._place.ledger.transition(self._build, State.PUBLISHING, due=due, **changes)

    async def _recover(self, client: RegistryClient, pushed: ImageReference) -> bool:
        """After a lost pod: the image counts only if it carries the label of exactly this attempt."""
        build = self._build
        await self._hold()
        found = await client.resolve(pushed)
        if found is not None:
            await self._hold()
            labels = (await client.config(pushed.with_digest(found.digest))).get("config", {}).get("Labels") or {}
            if labels.get(ATTEMPT_LABEL) == f"{build.id}.{build.attempt}":
                log.info("recovered", build=build.id, attempt=build.attempt, digest=found.digest)
                await self._write(due=CLAIM, digest=found.digest, reason=None, message=None)
                return True
        reason = build.reason or Reason.POD_LOST
        await try_again(self._place, build, reason, {"reason": reason, "message": build.message})
        return False

    async def _missed(self) -> None:
        """A definite 404: look again, and after the third time take the attempt as failed."""
        build = self._build
        misses = build.misses + 1
        message = f"the registry does not have {build.digest}, which the executor said it pushed"
        if misses < _DEFINITE_MISSES:
            await self._write(due=timedelta(seconds=2**misses), claimed=False, misses=misses, message=message)
            return
        runs = tuple(run.model_copy(update={"reason": Reason.DIGEST_UNCONFIRMED, "message": message}) for run in build.current.runs)
        attempts = build.with_attempt(build.current.model_copy(update={"runs": runs}))
        record = build.model_copy(update={"attempts": attempts})
        changes = {"attempts": attempts, "reason": Reason.DIGEST_UNCONFIRMED, "message": message}
        await try_again(self._place, record, Reason.DIGEST_UNCONFIRMED, changes)

    async def _later(self, project: ProjectSettings, error: CrabpotError) -> None:
        """The registry's trouble: the same step again with growing pauses, until the publishing deadline."""
        build, now = self._build, await self._place.ledger.now()
        # While a registry is held for maintenance it takes nothing, and that is nobody's delay.
        held = await self._place.ledger.holds.lasted(build.request.written, build.publishing_since, now)
        end = deadline(build, build.publishing_since, project.deadlines) + held
        if now >= end:
            message = f"the registry could not be used before the publishing deadline: {error}"
            await finalize(self._place, build, State.FAILED, None, reason=Reason.PUBLISH_DEADLINE, message=message)
            return
        tries = build.publish_tries + 1
        pause = timedelta(seconds=max(error.retry_after or 0.0, min(60.0, 2.0 ** min(tries, 6))))
        pause = max(timedelta(seconds=1), min(pause, end - now))
        await self._write(due=pause, claimed=False, publish_tries=tries, message=f"waits for the registry: {error}")
