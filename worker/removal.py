"""Removing images that somebody names: what goes, and what stands against it. Stricter than retention, because nobody reviews it first.

A digest goes with all its tags, so each of them must be named. A part of an index goes only with that. A tag whose manifest is gone is named alone:
it holds nothing together, but nobody can tell what else its repository has lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.errors import ImageInUse, ManifestUnknown, RegistryError
from ledger.references import ImageReference
from worker.registry.reader import RegistryReader
from worker.registry.rehearsal import Changing
from worker.retention.decisions import Reason, Why
from worker.retention.inventory import Repository
from worker.retention.memory import LocalMemory
from worker.retention.protection import Protected, Web
from worker.retention.survey import survey


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes, in order: digests of one repository, each with all its tags; and the signatures' tags that stay without them. Or tags alone
    whose manifests are gone already (`broken`).
    """

    repository: ImageReference
    digests: tuple[tuple[str, tuple[str, ...]], ...]
    orphans: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


class _Ageless(LocalMemory):
    """Nobody asks here how old an image is."""

    async def created(self, digests: Collection[str]) -> Mapping[str, datetime | None]:
        return dict.fromkeys(digests)


async def look(reader: RegistryReader, named: Sequence[ImageReference], protected: Protected) -> Removal:
    """See what removing images of one repository would mean. ImageInUse: something stands against it; ManifestUnknown, RegistryError."""
    place = ImageReference(named[0].registry, named[0].repository)
    if broken := [image for image in named if await _is_broken(reader, image)]:
        if left := [str(image) for image in named if image not in broken]:
            raise RegistryError(f"the manifest of {broken[0]} is gone; remove that tag first, and then {', '.join(left)}")
        for image in broken:
            require_unused(image, protected)
        return Removal(place, (), broken=tuple(image.tag for image in broken if image.tag))
    also = {place.name: [image.digest for image in named if image.digest]}
    inventory = await survey(reader, place.registry, [place.repository], _Ageless(), datetime.now(UTC), also=also)
    return judge(place, inventory.repositories[0], named, protected)


def judge(place: ImageReference, repository: Repository, named: Sequence[ImageReference], protected: Protected) -> Removal:
    """Pure: whether images may go, all of those named at once."""
    if repository.trouble is not None:
        raise RegistryError(f"{place} was not wholly read, so nothing is removed: {repository.trouble}")
    web = Web.of(repository)
    by_tag = {tag.name: tag.digest for tag in repository.tags}
    going = [_digest_of(image, by_tag, web) for image in named]
    tags_named = {image.tag for image in named if image.digest is None}
    tags: dict[str, list[str]] = {digest: [] for digest in going}
    for name, digest in sorted(by_tag.items()):
        if digest in tags:
            tags[digest].append(name)
    for digest, names in tags.items():
        if left := [name for name in names if name not in tags_named]:
            raise ImageInUse(f"{place.with_digest(digest)} is also {', '.join(left)}; name each of its tags, or take one away with `untag`")
        if holders := sorted(set(web.parents.get(digest, ())) - tags.keys()):
            raise ImageInUse(f"{place.with_digest(digest)} is part of the index {holders[0]}; remove that first")
        for name in names:
            require_unused(place.with_tag(name), protected)
    for mark, meant in web.meant(protected.marks):
        if {meant, *web.holders(meant)} & tags.keys():
            raise _in_use(place.with_digest(meant), protected.reasons(mark)[0])
    orphans = sorted(tag.name for digest in tags for tag in web.signatures.get(digest, ()) if tag.name not in tags_named)
    return Removal(place, tuple((digest, tuple(tags[digest])) for digest in web.in_order(tags)), tuple(orphans))


def require_unused(image: ImageReference, protected: Protected) -> None:
    """ImageInUse: somebody uses it, has pinned it, or builds it."""
    if reasons := protected.reasons(image.mark):
        raise _in_use(image, reasons[0])


def _in_use(image: ImageReference, reason: Reason) -> ImageInUse:
    over = f"; if that is over: crabpot registry unpin {image}" if reason.why is Why.PINNED else ""
    return ImageInUse(f"{image} stays ({reason}){over}")


async def remove(client: Changing, removal: Removal) -> None:
    """Delete what was looked at, each digest only if its tags still stand for it. ImageInUse: one has moved; what went before it is gone."""
    for digest, tags in removal.digests:
        for tag in tags:
            found = await client.resolve(removal.repository.with_tag(tag))
            if found is not None and found.digest != digest:
                raise ImageInUse(f"{removal.repository.with_tag(tag)} stands for {found.digest} by now; look again")
        await client.delete(removal.repository.with_digest(digest))
    for tag in removal.broken:
        image = removal.repository.with_tag(tag)
        if (found := await client.resolve(image)) is not None:
            raise ImageInUse(f"{image} stands for {found.digest} by now; look again")
        await client.untag(image)


async def _is_broken(reader: RegistryReader, image: ImageReference) -> bool:
    return image.tag is not None and image.digest is None and await reader.resolve(image) is None and await reader.lists_tag(image)


def _digest_of(image: ImageReference, by_tag: Mapping[str, str], web: Web) -> str:
    if image.digest is not None:
        if image.digest not in web.manifests:
            raise ManifestUnknown(f"there is no {image}")
        return image.digest
    if image.tag is None or image.tag not in by_tag:
        raise ManifestUnknown(f"there is no {image}" if image.tag else f"name a tag or digest of {image}")
    return by_tag[image.tag]
