"""The memory of surveys in the ledger (`memory.Memory`), so that tonight's asks little of what last night's saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from ledger.shelf import Shelf
from worker.retention.inventory import Origin
from worker.retention.memory import Push, Raw, Recalled, Seen, Untagged


class Remembered:
    """`Memory` on the ledger's shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def recall(self, repository: str) -> Recalled:
        stored = await self._shelf.seen(repository)
        if stored is None:
            return Recalled()
        return Recalled(
            {
                tag: Seen(digest, datetime.fromisoformat(at), datetime.fromisoformat(since) if since else None, *map(Origin, origin))
                for tag, (digest, at, since, *origin) in stored["tags"].items()
            },
            {
                digest: Untagged(datetime.fromisoformat(since), datetime.fromisoformat(at))
                for digest, (since, at) in stored["untagged"].items()
            },
            was_seen=True,
        )

    async def remember(self, repository: str, seen: Recalled) -> None:
        stored = {
            "tags": {tag: _stored(one) for tag, one in seen.tags.items()},
            "untagged": {digest: [one.since.isoformat(), one.at.isoformat()] for digest, one in seen.untagged.items()},
        }
        await self._shelf.remember(repository, stored)

    async def manifests(self, digests: Collection[str]) -> Mapping[str, Raw]:
        found = await self._shelf.manifests(digests)
        return {digest: Raw(digest, media_type, body) for digest, (media_type, body) in found.items()}

    async def keep_manifests(self, manifests: Collection[Raw]) -> None:
        await self._shelf.keep_manifests({one.digest: (one.media_type, one.body) for one in manifests})

    async def created(self, digests: Collection[str]) -> Mapping[str, datetime | None]:
        return await self._shelf.created(digests)

    async def keep_created(self, created: Mapping[str, datetime | None]) -> None:
        await self._shelf.keep_created(created)

    async def pushes(self, repository: str) -> Mapping[tuple[str, str], Push]:
        return {(tag, push.digest): Push(push.at, push.branch) for tag, push in (await self._shelf.pushes(repository)).items()}


def _stored(one: Seen) -> list[str | None]:
    """Most tags were seen, so that is not said of each."""
    said = [one.digest, one.at.isoformat(), one.since.isoformat() if one.since else None]
    return said if one.origin is Origin.SEEN else [*said, one.origin.value]
