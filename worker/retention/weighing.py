"""How many bytes a plan frees: what the manifests that go hold, and nothing that stays holds too.

A registry stores a layer once, whichever repositories name it. So all repositories of an inventory are weighed together, and repositories
outside of it may hold more: the figure is what a collection frees at most.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.retention.inventory import Repository, Stored


def freed_bytes(goes: Sequence[tuple[Repository, Sequence[str]]]) -> list[int]:
    """For each repository and its digests that go, the bytes that are freed. What several give up together is counted at the first."""
    sizes: list[dict[str, int]] = []
    for repository, digests in goes:
        going = set(digests)
        sizes.append(_sizes([manifest for manifest in repository.manifests if manifest.digest in going] if going else []))
    freed = {digest for found in sizes for digest in found}
    if freed:
        for repository, digests in goes:
            _keep(freed, repository.manifests, set(digests))
    weighed = []
    for found in sizes:
        mine = freed & found.keys()
        weighed.append(sum(found[digest] for digest in mine))
        freed -= mine
    return weighed


def _sizes(manifests: Sequence[Stored]) -> dict[str, int]:
    found: dict[str, int] = {}
    for manifest in manifests:
        found[manifest.digest] = manifest.size
        for blob in manifest.blobs:
            found[blob.digest] = blob.size
    return found


def _keep(freed: set[str], manifests: Sequence[Stored], going: set[str]) -> None:
    """Take out of what would be freed all that manifests hold which stay."""
    for manifest in manifests:
        if manifest.digest not in going:
            freed.discard(manifest.digest)
            for blob in manifest.blobs:
                freed.discard(blob.digest)
