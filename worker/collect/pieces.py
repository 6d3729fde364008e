"""What the tags of a repository need, read some tags at a time: a repository may have a hundred thousand, and whoever reads it is killed now and then.

Pieces are cut from the sorted tags after the last piece that was read, so a closed registry is cut alike each time, and an open one is read to its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ledger.errors import ManifestUnknown, RegistryConfused
from ledger.references import ImageReference
from worker.abreast import each
from worker.collect.judging import Needed
from worker.registry.manifests import INDEXES, KNOWN, Manifest
from worker.registry.reader import RegistryReader

_PIECE = 200
"""Tags."""
_AT_ONCE = 16
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tags of a repository, up to and with `last` in their order ("": a repository without any)."""

    repository: str
    last: str
    tags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is kept, and what a run writes down of how far it has come."""
        return f"{self.repository}:{self.last}"


async def pieces_of(
    reader: RegistryReader, registry: str, repositories: Iterable[str], cursor: str | None, kept: Collection[str] = ()
) -> AsyncIterator[Piece]:
    """All pieces after the one of that name, in order. `kept`: names of pieces that come as well, without tags where these are cut otherwise now."""
    at, _, tag = (cursor or "").partition(":")
    by_repository: dict[str, list[str]] = {name: [] for name in repositories}
    for name in kept:
        repository, _, last = name.partition(":")
        by_repository.setdefault(repository, []).append(last)
    for repository in sorted(by_repository):
        if repository < at:
            continue
        after = tag if cursor is not None and repository == at else None
        try:
            tags = sorted({one async for one in reader.tags(registry, repository) if after is None or one > after})
        except ManifestUnknown:
            tags = []
        cut = {some[-1]: Piece(repository, some[-1], tuple(some)) for some in _cut(tags)}
        before = {last: Piece(repository, last) for last in by_repository[repository] if after is None or last > after}
        found = {**before, **cut} or ({"": Piece(repository, "")} if after is None else {})
        for last in sorted(found):
            yield found[last]


async def needs_of(reader: RegistryReader, registry: str, piece: Piece) -> Needed | str:
    """What the tags of a piece need now, every manifest read anew; or why nobody can say, with what mends it. RegistryError: it does not answer.

    An image that an index names may be absent: nothing hangs on it.
    """
    reading = _Reading(reader, ImageReference(registry, piece.repository))
    if (broken := await reading.tags(piece.tags)) or (broken := await reading.parts()):
        return broken
    return Needed(frozenset(reading.manifests), reading.blobs)


class _Reading:
    def __init__(self, reader: RegistryReader, place: ImageReference) -> None:
        self._reader, self._place = reader, place
        self.manifests: set[str] = set()
        self.blobs: dict[str, int] = {}
        self._ahead: dict[str, str] = {}
        """Parts of indexes that are not read yet -> a tag that leads there."""
        self._leaves: set[str] = set()

    async def tags(self, tags: Iterable[str]) -> str | None:
        absent: list[str] = []

        async def one(tag: str) -> None:
            if not await self._take(self._place.with_tag(tag), tag):
                absent.append(tag)

        await each(tags, one, _AT_ONCE)
        if absent:
            # Somebody may just have taken it away.
            listed = {tag async for tag in self._reader.tags(self._place.registry, self._place.repository)}
            for tag in sorted(listed.intersection(absent)):
                if not await self._take(self._place.with_tag(tag), tag):
                    return self._broken(tag, "its manifest")
        return None

    async def parts(self) -> str | None:
        for _ in range(_MAX_DEPTH):
            ahead, self._ahead = self._ahead, {}
            if not ahead:
                return None
            if lacking := await self._lacking(ahead):
                return self._broken(ahead[lacking], f"the index {lacking} in it")
        raise RegistryConfused(f"{self._place.name} holds indexes of indexes, too deep to follow")

    async def _lacking(self, ahead: Mapping[str, str]) -> str | None:
        """One of these parts that something hangs on and that is not there."""
        absent: list[str] = []

        async def one(digest: str) -> None:
            if not await self._take(self._place.with_digest(digest), ahead[digest]) and digest not in self._leaves:
                absent.append(digest)

        await each([digest for digest in ahead if digest not in self.manifests], one, _AT_ONCE)
        return min(absent, default=None)

    async def _take(self, image: ImageReference, tag: str) -> bool:
        """Read a manifest, and keep what it needs; False: a definite no."""
        try:
            manifest = await self._reader.manifest(image)
        except ManifestUnknown:
            return False
        self._keep(manifest, tag)
        return True

    def _keep(self, manifest: Manifest, tag: str) -> None:
        self.manifests.add(manifest.digest)
        self.blobs |= {part.digest: part.size for part in (manifest.config, *manifest.layers) if part is not None}
        for child in manifest.children:
            if child.digest not in self.manifests:
                self._ahead.setdefault(child.digest, tag)
            if child.media_type in KNOWN - INDEXES:
                self._leaves.add(child.digest)

    def _broken(self, tag: str, what: str) -> str:
        named = self._place.with_tag(tag)
        return (
            f"{self._place.name} lists the tag {tag}, and says that {what} is not there, so nobody knows what it needs; "
            f"push it again, or take it away: crabpot registry untag {named}"
        )


def gathered(kept: Mapping[str, Mapping[str, Any]]) -> dict[str, Needed]:
    """By repository, what was kept by piece."""
    manifests: dict[str, set[str]] = {}
    blobs: dict[str, dict[str, int]] = {}
    for name, one in kept.items():
        repository = name.partition(":")[0]
        manifests.setdefault(repository, set()).update(one["manifests"])
        blobs.setdefault(repository, {}).update(one["blobs"])
    return {repository: Needed(frozenset(found), blobs[repository]) for repository, found in manifests.items()}


def _cut(tags: list[str]) -> Iterable[list[str]]:
    return (tags[start : start + _PIECE] for start in range(0, len(tags), _PIECE))
