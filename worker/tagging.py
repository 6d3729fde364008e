"""Setting tags after the push. Mutable ones never go backwards, whoever finishes first: the order is the ledger's sequence.

A finisher raises a mutable tag's wanted digest, puts what is wanted, and reads both again until they agree; so whichever of two finishers
comes last, the tag ends at the later push. A tag that never moves (the commit in it, a full version) is just set.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ledger.build import Build
from ledger.errors import RegistryUnavailable
from ledger.references import ImageReference
from ledger.tags import Wanted
from worker.place import Place
from worker.registry.client import RegistryClient

_ROUNDS = 5
"""Each round follows one other finisher's raise; more than a few in a row means that something else moves the tag."""
Hold = Callable[[], Awaitable[None]]
"""Called before each request to the registry: raises where the step is no longer to go on."""


async def move_tags(place: Place, client: RegistryClient, build: Build, hold: Hold) -> None:
    """Set the further tags of the pushed image's repository. RegistryError; RegistryUnavailable where one will not stay; what `hold` raises."""
    assert build.digest is not None
    moved = build.moved_tags
    for image in build.further_tags:
        if image not in moved:
            await set_fixed(client, image, build.digest, hold)
    wanted = await place.ledger.tags.want(moved[0].name, [image.reference for image in moved], build) if moved else {}
    for image in moved:
        await settle_tag(place, client, image, wanted[image.reference], hold)


async def set_tags(place: Place, client: RegistryClient, images: Sequence[ImageReference]) -> bool:
    """Bring mutable tags to what they are wanted to be now. Whether any was not. RegistryError."""
    changed = False
    for image in images:
        wanted = await place.ledger.tags.wanted(image.name, image.reference)
        if wanted:
            found = await client.resolve(image)
            changed |= found is None or found.digest != wanted.digest
            await settle_tag(place, client, image, wanted, _free)
    return changed


async def set_fixed(client: RegistryClient, image: ImageReference, digest: str, hold: Hold) -> None:
    """Set a tag that never moves. RegistryError; RegistryUnavailable where it will not stay; what `hold` raises."""
    if await _point(client, image, digest, hold) != digest:
        raise _restless(image)


async def settle_tag(place: Place, client: RegistryClient, image: ImageReference, wanted: Wanted, hold: Hold) -> Wanted:
    """Bring a mutable tag to what it is wanted to be, and to what others want meanwhile; what it is wanted to be in the end."""
    for _ in range(_ROUNDS):
        found = await _point(client, image, wanted.digest, hold)
        wanted = await place.ledger.tags.wanted(image.name, image.reference) or wanted
        if found == wanted.digest:
            return wanted
    raise _restless(image)


async def _point(client: RegistryClient, image: ImageReference, digest: str, hold: Hold) -> str | None:
    """Point a tag at a digest of its repository; what it points to then."""
    await hold()
    found = await client.resolve(image)
    if found is None or found.digest != digest:
        await hold()
        manifest = await client.manifest(image.with_digest(digest))
        await hold()
        await client.put_manifest(image, manifest.raw, manifest.media_type)
        await hold()
        found = await client.resolve(image)
    return found.digest if found else None


def _restless(image: ImageReference) -> RegistryUnavailable:
    return RegistryUnavailable(f"the tag {image} does not stay where it is put; something else moves it")


async def _free() -> None:
    """Nobody else minds: what is wanted is put, whoever puts it."""
