"""Moving mutable tags: never backwards, whoever finishes first. The order is the ledger's sequence.

A finisher raises the tag's wanted digest, puts what is wanted, and reads both again until they agree; so whichever of two finishers
comes last, the tag ends at the later push.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.build import Build
from ledger.errors import RegistryUnavailable
from ledger.references import ImageReference
from ledger.tags import Wanted
from worker.place import Place
from worker.registry.client import RegistryClient

_ROUNDS = 5
"""Each round follows one other finisher's raise; more than a few in a row means that something else moves the tag."""


async def move_tags(place: Place, client: RegistryClient, build: Build, images: Sequence[ImageReference]) -> None:
    """Bring tags of one repository to what they are wanted to be. RegistryError; RegistryUnavailable where they will not stay."""
    assert build.digest is not None
    repository = images[0].name
    wanted = await place.ledger.tags.want(repository, [image.reference for image in images], Wanted(build.sequence, build.digest, build.id))
    for image in images:
        await _settle(place, client, image, wanted[image.reference])


async def _settle(place: Place, client: RegistryClient, image: ImageReference, wanted: Wanted) -> None:
    for _ in range(_ROUNDS):
        found = await client.resolve(image)
        if found is None or found.digest != wanted.digest:
            manifest = await client.manifest(image.with_digest(wanted.digest))
            await client.put_manifest(image, manifest.raw, manifest.media_type)
            found = await client.resolve(image)
        now = await place.ledger.tags.wanted(image.name, image.reference) or wanted
        if found is not None and found.digest == now.digest:
            return
        wanted = now
    raise RegistryUnavailable(f"the tag {image} does not stay where it is put; something else moves it")
