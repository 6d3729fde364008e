"""Promoting: a bit of the chore that copies an image to where it is promoted to, and moves the tags there in the ledger's order.

Everything is copied before a tag is touched, so a tag never names what is not whole. Each part may be repeated: what is there is not sent
again, a tag that stands right is not put again, and a tag that a later push has moved stays. So a step that was killed is just done anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import structlog

from ledger.chores import Claim
from ledger.errors import ClusterError, CrabpotError, ManifestUnknown, PolicyDenied, RegistryError, RegistryUnavailable, TagFixed
from ledger.events import promotion_finished, promotion_published
from ledger.policy import check_promotion
from ledger.projects import ProjectSettings
from ledger.promotion import Promotion, PromotionState
from ledger.references import ImageReference
from ledger.shelf import Pushed
from worker.chores import Next, done, later
from worker.place import Place
from worker.registry.client import RegistryClient
from worker.registry.copying import copy_image
from worker.tagging import set_fixed, set_tags, settle_tag

log = structlog.get_logger()
_PATIENCE = timedelta(hours=6)
"""How long trouble is waited out, the registry's or the workers'."""
_LOOK_AGAIN = timedelta(minutes=1)
"""After which a step that was stopped has woken up, or will not."""


async def promote(place: Place, claim: Claim) -> Next:
    """Do a promotion, or look once more at the tags of one whose step was stopped while it moved them."""
    promotion = Promotion.model_validate(dict(claim.progress))
    if promotion.state.final:
        return await _look_once_more(place, claim, promotion)
    if promotion.tries and await place.ledger.now() >= promotion.created + _PATIENCE:
        why = promotion.message or "the workers' logs say why (events chore_failed and chore_again)"
        return await _fail(claim, RegistryUnavailable(f"it could not be done in {promotion.tries} tries within {_PATIENCE}: {why}"))
    promotion = promotion.changed(tries=promotion.tries + 1)
    await claim.write(promotion.to_progress())
    project = await place.project(promotion.request.project)
    try:
        return await _Promoting(place, claim, promotion, project).go()
    except (PolicyDenied, TagFixed) as error:
        return await _fail(claim, error)
    except (RegistryError, ClusterError) as error:
        now = await place.ledger.now()
        if error.retryable and now < promotion.created + _PATIENCE:
            return await _again(claim, error)
        return await _fail(claim, error)


class _Promoting:
    """One step at work on a claimed promotion."""

    def __init__(self, place: Place, claim: Claim, promotion: Promotion, project: ProjectSettings) -> None:
        self._place, self._claim, self._promotion = place, claim, promotion
        self._name, self._request, self._project = promotion.request.project, promotion.request, project

    async def go(self) -> Next:
        check_promotion(self._request, self._project.allowed)  # it may have been changed since the promotion was taken in
        client = self._place.registries.client(self._name, self._project, self._request.registry)
        for image in self._request.fixed:
            await self._refuse_to_move(client, image)
        for repository in self._request.repositories:
            await self._bring(client, next(image for image in self._request.images if image.name == repository))
        await self._write(moving=True, doubtful=self._promotion.doubtful or self._promotion.moving)
        for image in self._left(self._request.fixed):
            await set_fixed(client, image, self._request.digest, self._claim.hold)
            await self._tell(image)
        for repository in self._request.repositories:
            await self._move(client, repository)
        return await self._end()

    def _left(self, images: Iterable[ImageReference]) -> list[ImageReference]:
        """Those that were not set yet, by this step or one before it."""
        return [image for image in images if str(image) not in self._promotion.promoted]

    async def _refuse_to_move(self, client: RegistryClient, image: ImageReference) -> None:
        found = await client.resolve(image)
        if found is not None and found.digest != self._request.digest:
            raise TagFixed(
                f"{image} stands at {found.digest} already, and a tag that names a version does not move; promote to another tag"
            )

    async def _bring(self, client: RegistryClient, target: ImageReference) -> None:
        """Have the image in the target's repository under its digest, with all that it is made of."""
        source = self._request.source.with_digest(self._request.digest)
        try:
            if source.name == target.name:
                await client.manifest(source)
                return
            reader = self._place.registries.reader(self._name, self._project, source.registry)
            await copy_image(reader, source, client, target.with_digest(self._request.digest))
        except ManifestUnknown:
            raise ManifestUnknown(f"there is no {source}, or not all of what it is made of; `crabpot registry show` looks at it") from None

    async def _move(self, client: RegistryClient, repository: str) -> None:
        """Move the tags of a repository, but those that a later push has moved."""
        images = self._left(image for image in self._promotion.moved_tags if image.name == repository)
        if not images:
            return
        wanted = await self._place.ledger.promotions.want(self._claim, self._promotion, repository, [image.reference for image in images])
        for image in images:
            if wanted[image.reference].digest == self._request.digest:
                # A later push may want it elsewhere by the time that it is put: then that is put after it.
                await settle_tag(self._place, client, image, wanted[image.reference], self._claim.hold)
                await self._tell(image)
            elif str(image) not in self._promotion.overtaken:
                await self._write(overtaken=(*self._promotion.overtaken, str(image)))

    async def _tell(self, image: ImageReference) -> None:
        """A target is set: written down and told in one call. To retention it is a push of ours."""
        now = await self._place.ledger.now()
        await self._place.ledger.shelf.record_push([image], Pushed(self._request.digest, now, None))
        self._promotion = self._promotion.changed(promoted=(*self._promotion.promoted, str(image)))
        await self._claim.write(self._promotion.to_progress(), events=[promotion_published(self._promotion, image)])

    async def _end(self) -> Next:
        left = self._promotion.overtaken
        state = PromotionState.OVERTAKEN if left else PromotionState.PROMOTED
        message = f"{', '.join(left)}: a later push or promotion has moved it, and it stays there" if left else None
        ended = self._promotion.changed(state=state, message=message, moving=False)
        await self._claim.write(ended.to_progress(), events=[promotion_finished(ended)])
        log.info("promoted", promotion=ended.id, state=state, targets=ended.promoted)
        return _over(ended)

    async def _write(self, **changes: Any) -> None:
        self._promotion = self._promotion.changed(**changes)
        await self._claim.write(self._promotion.to_progress())


async def _look_once_more(place: Place, claim: Claim, promotion: Promotion) -> Next:
    """What is wanted is put, whoever wants it by now. The registry's trouble is the chore's to repeat."""
    if promotion.doubtful:
        project = await place.project(promotion.request.project)
        client = place.registries.client(promotion.request.project, project, promotion.request.registry)
        try:
            if await set_tags(place, client, promotion.moved_tags):
                await place.ledger.note_mended("tags_put_right", f"promotion:{promotion.id}")
        except ManifestUnknown:
            log.warning("wanted_digest_gone", promotion=promotion.id)
        await claim.write(promotion.changed(doubtful=False).to_progress())
    return done(promotion.message or "promoted")


async def _again(claim: Claim, error: CrabpotError) -> Next:
    """The registry's trouble: the same again with growing pauses, while other chores of the registry get on."""
    promotion = Promotion.model_validate(dict(claim.progress))
    message = f"waits for the registry: {error}"
    await claim.write(promotion.changed(message=message, moving=False).to_progress())  # no step was stopped: this one ends in order
    pause = max(error.retry_after or 0.0, min(60.0, 2.0 ** min(promotion.tries, 6)))
    log.warning("promotion_again", promotion=promotion.id, tries=promotion.tries, error=str(error))
    return later(timedelta(seconds=pause), message, gives_way=True)


async def _fail(claim: Claim, error: CrabpotError) -> Next:
    promotion = Promotion.model_validate(dict(claim.progress))
    failed = promotion.changed(state=PromotionState.FAILED, message=str(error), moving=False)
    await claim.write(failed.to_progress(), events=[promotion_finished(failed)])
    log.warning("promotion_failed", promotion=promotion.id, error=str(error))
    return _over(failed)


def _over(ended: Promotion) -> Next:
    if ended.doubtful:
        return later(_LOOK_AGAIN, "its tags are looked at once more", gives_way=True)
    return done(ended.message or "promoted")
