"""What surveys remember, so that the next one asks the registry for little: manifests by their digest for ever, tags for a while.

A protocol, because the ledger keeps it for real. The one in this process is for commands that look once, and for tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from worker.retention.inventory import Origin


@dataclass(frozen=True, slots=True)
class Seen:
    """What a tag stood for, and when the registry last said so."""

    digest: str
    at: datetime
    since: datetime | None = None
    """When it was first seen to stand for it, where it did not before: it was pushed no longer ago than that is near to. Or, by the origin,
    when somebody says that it was pushed, or when it was adopted.
    """
    origin: Origin = Origin.SEEN
    """Where `since` is from."""


@dataclass(frozen=True, slots=True)
class Untagged:
    """Since when a digest has been without a tag, as far as we saw, and when the registry last said that it is there."""

    since: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class Push:
    """Our own record of a push: when, and from which branch."""

    at: datetime
    branch: str | None = None


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the last survey saw of a repository: its tags, and the digests that had lost theirs."""

    tags: Mapping[str, Seen] = field(default_factory=dict)
    untagged: Mapping[str, Untagged] = field(default_factory=dict)
    was_seen: bool = False
    """Whether it was ever looked at: then a tag that is not among these is new."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A manifest as it was sent. Its bytes are what its digest is of, and what is put back when a deletion is undone."""

    digest: str
    media_type: str
    body: bytes = field(repr=False)


class Memory(Protocol):
    """Repositories are named with their registry. Every call may raise LedgerError."""

    async def recall(self, repository: str) -> Recalled:
        """What was seen last; nothing where it was never looked at."""
        ...

    async def remember(self, repository: str, seen: Recalled) -> None:
        """Replace what was seen of a repository."""
        ...

    async def manifests(self, digests: Collection[str]) -> Mapping[str, Raw]:
        """Those of the manifests that are known."""
        ...

    async def keep_manifests(self, manifests: Collection[Raw]) -> None: ...

    async def created(self, digests: Collection[str]) -> Mapping[str, datetime | None]:
        """What images of these digests say of their age (None: nothing), for those that were asked."""
        ...

    async def keep_created(self, created: Mapping[str, datetime | None]) -> None: ...

    async def pushes(self, repository: str) -> Mapping[tuple[str, str], Push]:
        """Our own pushes, by tag and digest."""
        ...


class LocalMemory:
    """In this process, and gone with it."""

    def __init__(self) -> None:
        self._seen: dict[str, Recalled] = {}
        self._manifests: dict[str, Raw] = {}
        self._created: dict[str, datetime | None] = {}
        self._pushes: dict[str, dict[tuple[str, str], Push]] = {}

    async def recall(self, repository: str) -> Recalled:
        return self._seen.get(repository, Recalled())

    async def remember(self, repository: str, seen: Recalled) -> None:
        self._seen[repository] = seen

    async def manifests(self, digests: Collection[str]) -> Mapping[str, Raw]:
        return {digest: self._manifests[digest] for digest in digests if digest in self._manifests}

    async def keep_manifests(self, manifests: Collection[Raw]) -> None:
        self._manifests.update((manifest.digest, manifest) for manifest in manifests)

    async def created(self, digests: Collection[str]) -> Mapping[str, datetime | None]:
        return {digest: self._created[digest] for digest in digests if digest in self._created}

    async def keep_created(self, created: Mapping[str, datetime | None]) -> None:
        self._created.update(created)

    async def pushes(self, repository: str) -> Mapping[tuple[str, str], Push]:
        return self._pushes.get(repository, {})

    def record_push(self, repository: str, tag: str, digest: str, push: Push) -> None:
        """A push of ours, as the ledger would know it."""
        self._pushes.setdefault(repository, {})[tag, digest] = push
