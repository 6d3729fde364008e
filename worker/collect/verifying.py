"""Reading a repository back: every manifest whole, its digest computed, and of every blob the first byte.

Nothing is believed that a registry may say from memory. What was broken before a sweep is found by the same reading, and left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ledger.errors import ManifestUnknown, RegistryConfused
from ledger.references import ImageReference
from worker.abreast import each
from worker.collect.judging import Needed
from worker.registry.reader import RegistryReader

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Absent:
    """What a repository lacks."""

    manifests: frozenset[str]
    blobs: frozenset[str]

    def say(self, repository: str) -> str:
        what = sorted(self.manifests) or sorted(self.blobs)
        return f"{len(self.manifests)} manifests and {len(self.blobs)} blobs of {repository} cannot be read any more, as {what[0]}"


async def absent_of(reader: RegistryReader, registry: str, repository: str, needed: Needed, *, read: Needed | None = None) -> Absent:
    """What of this cannot be read. `read`: manifests that were read a moment ago are not read again. RegistryError: it does not answer."""
    place = ImageReference(registry, repository)
    manifests: set[str] = set()
    blobs: set[str] = set()

    async def manifest(digest: str) -> None:
        try:
            await reader.manifest(place.with_digest(digest))
        except (ManifestUnknown, RegistryConfused):
            manifests.add(digest)

    async def blob(digest: str) -> None:
        if not await reader.can_read(place, digest):
            blobs.add(digest)

    await each(sorted(needed.manifests - (read.manifests if read else frozenset())), manifest, _AT_ONCE)
    await each(sorted(needed.blobs), blob, _AT_ONCE)
    return Absent(frozenset(manifests), frozenset(blobs))


async def sizes_of(reader: RegistryReader, registry: str, repositories: list[str], digests: frozenset[str], most: int) -> tuple[int, int]:
    """How large blobs are that no tag needs any more, and of how many the registry does not say, after at most so many questions.

    A blob is asked for by a repository's name, and which one had it is not known; those of one image lie together, so the one that knew the
    last is asked first.
    """
    total, unknown, order = 0, 0, list(repositories)
    for digest in sorted(digests):
        found: int | None = None
        for at, repository in enumerate(order):
            if most <= 0:
                break
            most -= 1
            found = await reader.blob_size(ImageReference(registry, repository), digest)
            if found is not None:
                order.insert(0, order.pop(at))
                break
        total += found or 0
        unknown += found is None
    return total, unknown


def written(needed: Needed) -> dict[str, Any]:
    return {"manifests": sorted(needed.manifests), "blobs": dict(needed.blobs)}


def without(needed: Needed, absent: Absent) -> Needed:
    return Needed(
        needed.manifests - absent.manifests, {digest: size for digest, size in needed.blobs.items() if digest not in absent.blobs}
    )
