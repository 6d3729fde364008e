"""How many bytes a plan frees: what the manifests that go hold, and nothing that stays holds too.

A registry stores a layer once, whichever repositories name it. So all repositories of an inventory are weighed together, and repositories
outside of it may hold more: the figure is what a collection frees at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.retention.inventory import Repository, Stored


def freed_bytes(goes: Sequence[tuple[Repository, Sequence[str]]]) -> list[int]:
    """For each repository and its digests that go, the bytes that are freed. What several give up together is counted at the first."""
    counted: set[str] = set()
    gone: list[list[Stored]] = []
    for repository, digests in goes:
        going = set(digests)
        gone.append([manifest for manifest in repository.manifests if manifest.digest in going])
        for manifest in repository.manifests:
            if manifest.digest not in going:
                counted.add(manifest.digest)
                counted.update(blob.digest for blob in manifest.blobs)
    return [sum(_sizes(manifests, counted)) for manifests in gone]


def _sizes(manifests: Iterable[Stored], counted: set[str]) -> Iterable[int]:
    for manifest in manifests:
        if manifest.digest not in counted:
            counted.add(manifest.digest)
            yield manifest.size
        for blob in manifest.blobs:
            if blob.digest not in counted:
                counted.add(blob.digest)
                yield blob.size
