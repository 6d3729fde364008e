"""Reading a registry into an inventory, with few requests: one a tag where its manifest is known by digest, none while the tag was seen lately.

It reads with a client that can do nothing else. Whatever fails stands in the repository's `trouble`, which keeps everything in it; a tag
that is listed and cannot be read is trouble too, because what it holds together is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ledger.ages import credible
from ledger.errors import ManifestUnknown, RegistryConfused, RegistryError
from ledger.references import ImageReference
from worker.abreast import each
from worker.registry.manifests import IMAGE_CONFIGS, INDEXES, KNOWN, Descriptor, Manifest, signature_subject
from worker.registry.reader import RegistryReader
from worker.retention.inventory import Blob, Inventory, Origin, Repository, Stored, Tag, parse_time
from worker.retention.memory import Memory, Raw, Recalled, Seen, Untagged
from worker.retention.protection import QUARANTINE

_MAX_DEPTH = 8
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
_REPOSITORIES_AT_ONCE = 4
_BATCH = 200
"""Manifests handed to the memory at a time."""


async def survey(
    reader: RegistryReader,
    registry: str,
    repositories: Sequence[str],
    memory: Memory,
    now: datetime,
    *,
    tag_age: timedelta = timedelta(0),
    also: Mapping[str, Collection[str]] | None = None,
    at_once: int = 16,
    untags: bool = True,
) -> Inventory:
    """An inventory of repositories (paths, without the registry) as they are now.

    A tag that was seen within `tag_age` is not asked for again. `also` names digests by repository (with its registry) that are read even
    if no tag leads to them, because somebody uses them. LedgerError: what is remembered cannot be had.
    """
    turns = asyncio.Semaphore(at_once)
    read: dict[str, Repository] = {}

    async def one(path: str) -> None:
        name = f"{registry}/{path}"
        reading = _Reading(reader, ImageReference(registry, path), memory, now, tag_age, turns, at_once)
        try:
            read[path] = await reading.repository((also or {}).get(name, ()))
        except RegistryError as error:
            read[path] = Repository(name=name, trouble=str(error))

    await each(repositories, one, _REPOSITORIES_AT_ONCE)
    return Inventory(registry=registry, taken=now, repositories=tuple(read[path] for path in sorted(read)), untags=untags)


class _Reading:
    """One repository being read. Raw manifests are passed on to the memory and not kept: a repository may have a hundred thousand tags."""

    def __init__(
        self,
        reader: RegistryReader,
        repository: ImageReference,
        memory: Memory,
        now: datetime,
        tag_age: timedelta,
        turns: asyncio.Semaphore,
        at_once: int,
    ) -> None:
        self._reader, self._repository, self._memory = reader, repository, memory
        self._now, self._tag_age, self._turns, self._at_once = now, tag_age, turns, at_once
        self._stored: dict[str, Stored] = {}
        self._strings: dict[str, str] = {}
        self._blobs: dict[str, Blob] = {}
        self._dated_by: dict[str, Descriptor | str | datetime | None] = {}
        """What tells the age of a manifest: its config, a part of it (a digest), its annotation, or nothing."""
        self._fresh: list[Raw] = []
        self._waiting: set[str] = set()
        """Parts of indexes that have not been read yet."""
        self._leaves: set[str] = set()
        """Digests that an index says are images: one of them may be absent, as nothing hangs on it."""

    async def repository(self, also: Collection[str]) -> Repository:
        """RegistryError where anything could not be read."""
        name = self._repository.name
        recalled = await self._memory.recall(name)
        try:
            listed = await self._list()
        except ManifestUnknown:
            return Repository(name=name)
        seen = await self._resolve(listed, recalled)
        untagged = await self._untagged(seen, recalled)
        await self._read_all({tag.digest for tag in seen.values()} | set(untagged), {*also})
        tags = await self._dated(seen)
        await self._flush(0)
        await self._memory.remember(name, Recalled(seen, {digest: one for digest, one in untagged.items() if digest in self._stored}, True))
        manifests = (
            Stored(
                digest=one.digest,
                media_type=one.media_type,
                size=one.size,
                blobs=one.blobs,
                children=one.children,
                subject=one.subject,
                untagged_since=untagged[one.digest].since,
            )
            if one.digest in untagged
            else one
            for _, one in sorted(self._stored.items())
        )
        return Repository(name=name, tags=tuple(tags), manifests=tuple(manifests))

    async def _list(self) -> list[str]:
        async with self._turns:
            found = [tag async for tag in self._reader.tags(self._repository.registry, self._repository.repository)]
        return sorted(set(found))

    async def _resolve(self, listed: Sequence[str], recalled: Recalled) -> dict[str, Seen]:
        """What each tag stands for. One that was never seen is read at once: most likely its manifest is new too."""
        before = recalled.tags
        seen: dict[str, Seen] = {}
        missing: list[str] = []

        async def one(tag: str) -> None:
            known = before.get(tag)
            if known is not None and self._now - known.at < self._tag_age:
                seen[tag] = known
                return
            image = self._repository.with_tag(tag)
            async with self._turns:
                if known is not None:
                    found = await self._reader.resolve(image)
                    digest = found.digest if found else None
                else:
                    digest = await self._get(image)
            if digest is None:
                missing.append(tag)
            else:
                same = known is not None and known.digest == digest
                if known and same:
                    seen[tag] = replace(known, at=self._now)
                else:
                    seen[tag] = Seen(self._same(digest), self._now, self._now if recalled.was_seen else None)

        await each(listed, one, self._at_once)
        if missing:
            still = set(await self._list()).intersection(missing)
            if still:
                raise RegistryConfused(f"{self._repository.name} lists the tag {min(still)}, and says that it is not there")
        return {tag: seen[tag] for tag in listed if tag in seen}

    async def _untagged(self, seen: Mapping[str, Seen], recalled: Recalled) -> dict[str, Untagged]:
        """Digests that had a tag once and have none now, as far as they are still there."""
        tagged = {tag.digest for tag in seen.values()}
        before = {tag.digest for tag in recalled.tags.values()} | set(recalled.untagged)
        found: dict[str, Untagged] = {}

        async def one(digest: str) -> None:
            known = recalled.untagged.get(digest)
            if known is not None and self._now - known.at < self._tag_age:
                found[digest] = known
                return
            async with self._turns:
                there = await self._reader.resolve(self._repository.with_digest(digest))
            if there is not None:
                found[digest] = Untagged(known.since if known else self._now, self._now)

        await each(sorted(before - tagged), one, self._at_once)
        return found

    async def _read_all(self, needed: Collection[str], also: Collection[str]) -> None:
        """Every manifest that is needed, with all that indexes hold. Of what somebody else uses, what is there."""
        self._waiting |= {*needed, *also} - self._stored.keys()
        absent_is_well = set(also) - set(needed)
        for _ in range(_MAX_DEPTH):
            wanted, self._waiting = sorted(self._waiting - self._stored.keys()), set()
            if not wanted:
                return
            for start in range(0, len(wanted), _BATCH):
                for raw in (await self._memory.manifests(wanted[start : start + _BATCH])).values():
                    self._take(Manifest.parse(raw.body, raw.media_type))

            async def one(digest: str) -> None:
                async with self._turns:
                    found = await self._get(self._repository.with_digest(digest))
                if found is None and digest not in self._leaves and digest not in absent_is_well:
                    raise RegistryConfused(f"{self._repository.name} says that {digest} is not there, which a tag or an index names")

            await each([digest for digest in wanted if digest not in self._stored], one, self._at_once)
        raise RegistryConfused(f"{self._repository.name} holds indexes of indexes, too deep to follow")

    async def _get(self, image: ImageReference) -> str | None:
        """Read a manifest, and return its digest; None: a definite no."""
        try:
            manifest = await self._reader.manifest(image)
        except ManifestUnknown:
            return None
        if manifest.digest not in self._stored:
            self._take(manifest)
            self._fresh.append(Raw(manifest.digest, manifest.media_type, manifest.raw))
            await self._flush(_BATCH)
        return manifest.digest

    async def _flush(self, full: int) -> None:
        if self._fresh and len(self._fresh) >= full:
            fresh, self._fresh = self._fresh, []
            await self._memory.keep_manifests(fresh)

    def _take(self, manifest: Manifest) -> None:
        """Keep of a manifest what the inventory holds, each digest once."""
        digest = self._same(manifest.digest)
        parts = [part for part in (manifest.config, *manifest.layers) if part is not None]
        self._stored[digest] = Stored(
            digest=digest,
            media_type=self._same(manifest.media_type),
            size=len(manifest.raw),
            blobs=tuple(self._blob(part) for part in parts),
            children=tuple(self._same(child.digest) for child in manifest.children),
            subject=self._same(manifest.subject) if manifest.subject else None,
        )
        first = manifest.child(None)
        annotated = parse_time(manifest.created)
        self._dated_by[digest] = annotated or (first.digest if first else None if manifest.media_type in INDEXES else manifest.config)
        for child in manifest.children:
            self._waiting.add(child.digest)
            if child.media_type in KNOWN - INDEXES:
                self._leaves.add(child.digest)

    async def _dated(self, seen: Mapping[str, Seen]) -> list[Tag]:
        """The tags with their times: of our own push, else what the image says of itself."""
        pushes = await self._memory.pushes(self._repository.name)
        undated = {one.digest for tag, one in seen.items() if (tag, one.digest) not in pushes and has_an_age(tag)}
        created = dict(await self._memory.created(undated))
        fresh: dict[str, datetime | None] = {}

        async def one(digest: str) -> None:
            try:
                fresh[digest] = await self._created(digest)
            except ManifestUnknown:  # not remembered: it may be the registry's mistake
                pass

        await each(sorted(undated - created.keys()), one, self._at_once)
        await self._memory.keep_created(fresh)
        created |= fresh
        tags = []
        for tag, known in seen.items():
            push, says = pushes.get((tag, known.digest)), created.get(known.digest)
            if push is not None:
                tags.append(Tag(name=tag, digest=known.digest, pushed=push.at, origin=Origin.PUSH, branch=push.branch))
            elif known.since is not None and known.since > (credible(says, self._now) or _LONG_AGO):
                # An old image that the tag was put on lately, or one that says nothing: as young as the tag, as far as is known.
                tags.append(Tag(name=tag, digest=known.digest, pushed=known.since, origin=known.origin))
            else:
                tags.append(Tag(name=tag, digest=known.digest, pushed=says, origin=Origin.IMAGE if says else None))
        return tags

    async def _created(self, digest: str) -> datetime | None:
        """When an image says it was made; of an index, when its first image was. ManifestUnknown: its config is not there."""
        source: Descriptor | str | datetime | None = digest
        for _ in range(_MAX_DEPTH):
            if not isinstance(source, str):
                break
            source = self._dated_by.get(source)
        if not isinstance(source, Descriptor):
            return source if isinstance(source, datetime) else None
        if source.media_type not in IMAGE_CONFIGS:
            return None
        async with self._turns:
            config = await self._reader.config_blob(self._repository, source)
        created = config.get("created")
        return parse_time(created) if isinstance(created, str) else None

    def _same(self, text: str) -> str:
        return self._strings.setdefault(text, text)

    def _blob(self, part: Descriptor) -> Blob:
        known = self._blobs.get(part.digest)
        if known is None or known.size != part.size:
            digest = self._same(part.digest)
            known = self._blobs[digest] = Blob(digest, part.size)
        return known


def has_an_age(tag: str) -> bool:
    """Signatures stay and go with what they are about, and what is in the bin with its plan."""
    return signature_subject(tag) is None and not tag.startswith(QUARANTINE)
