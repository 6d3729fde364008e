"""Taking a tag away from a registry and leaving everything else, also where the registry cannot do that.

Distribution 2.8 deletes by digest only, and with a digest all its tags. There the tag is first put on a tombstone, an empty index of which
there is no second one, and then the tombstone's digest is deleted: nothing but that tag is ever on it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from ledger.errors import DeletesByDigest, RegistryConfused, RegistryUnavailable
from ledger.references import ImageReference
from worker.registry.manifests import OCI_INDEX, digest_of
from worker.registry.rehearsal import Changing

Hold = Callable[[], Awaitable[None]]
"""Called before each request that changes something: raises where this process is no longer to go on."""


def tombstone(plan: str, image: ImageReference) -> bytes:
    """What a plan puts in place of a tag before that goes; always the same for the same."""
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
        "annotations": {"dev.crabpot.tombstone": f"{plan} {image}"},
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


async def take_away(client: Changing, image: ImageReference, digest: str, plan: str, hold: Hold) -> bool:
    """Take a tag away that stands for a digest. False: it stands for something else, or is gone. RegistryUnsupported: the registry deletes
    nothing, and the tag is as it was; RegistryError.
    """
    found = await client.resolve(image)
    if found is None or found.digest != digest:
        return False
    await hold()
    try:
        await client.untag(image)
    except DeletesByDigest:  # not where it deletes nothing at all: the tag would stay on the tombstone
        await hold()
        await client.put_manifest(image, tombstone(plan, image), OCI_INDEX)
        await bury(client, image, plan, hold)
    found = await client.resolve(image)
    if found is not None and found.digest == digest:
        raise RegistryUnavailable(f"{image} is still there after it was taken away")
    if await client.resolve(image.with_digest(digest)) is None:
        raise RegistryConfused(f"{image.registry} took {digest} away with its tag {image.tag}")
    return True


async def require_deletion(client: Changing, image: ImageReference, plan: str, hold: Hold) -> None:
    """RegistryUnsupported: the registry deletes nothing, as distribution does unless `storage.delete.enabled` is set. It is asked for a tombstone
    that nothing stands for: a tag that was put on one there could not be taken away, and nobody could pull by it.
    """
    await hold()
    await client.delete(image.with_digest(digest_of(tombstone(plan, image))))


async def bury(client: Changing, image: ImageReference, plan: str, hold: Hold) -> bool:
    """Delete a tombstone that a tag stands for. Whether it did."""
    stone = digest_of(tombstone(plan, image))
    found = await client.resolve(image)
    if found is None or found.digest != stone:
        return False
    await hold()
    await client.delete(image.with_digest(stone))
    return True
