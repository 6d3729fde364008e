"""What the ledger remembers of registries between two surveys: tags, manifests, ages, our own pushes, and what people have pinned.

Plain values only: what they mean is the worker's business (`worker/retention/remembered.py`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ledger.build import milliseconds, moment
from ledger.chores import Command
from ledger.codec import pairs
from ledger.connection import Connection
from ledger.references import ImageReference

_PRUNED = 500
"""Manifests that are forgotten in one call."""
_TOLD = 30 * 24 * 3600
"""Seconds that times wait which somebody told and no adoption came for."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """Our own push of a tag."""

    digest: str
    at: datetime
    branch: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What stays whatever the rules say."""

    mark: str
    """A digest, wherever it lies, or `registry/repository:tag`, whatever it stands for (`ImageReference.mark`)."""
    why: str
    image: str | None = None
    """The image as it was named: a digest alone does not say which it is."""
    by: str | None = None
    at: datetime | None = None

    def told(self) -> dict[str, Any]:
        """As commands and REST tell of it: JSON."""
        return {
            "pin": self.mark,
            "image": self.image or self.mark,
            "reason": self.why,
            "by": self.by,
            "at": self.at.isoformat() if self.at else None,
        }


class Shelf:
    """Reading and writing it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._keys = connection, connection.keys

    async def seen(self, repository: str) -> Any:
        """What was stored of a repository, None where nothing was."""
        stored = await self._connection.command("GET", self._keys.seen(repository))
        return None if stored is None else json.loads(zlib.decompress(stored))

    async def remember(self, repository: str, seen: Any) -> None:
        await self._connection.command("SET", self._keys.seen(repository), zlib.compress(json.dumps(seen).encode(), 1))

    async def manifests(self, digests: Collection[str]) -> dict[str, tuple[str, bytes]]:
        """Of those that are known the media type and the bytes."""
        found: dict[str, tuple[str, bytes]] = {}
        wanted = list(digests)
        if wanted:
            for digest, stored in zip(wanted, await self._connection.command("HMGET", self._keys.manifests, *wanted), strict=True):
                if stored is not None:
                    media_type, _, body = stored.partition(b"\n")
                    found[digest] = (media_type.decode(), zlib.decompress(body))
            await self._use(wanted)
        return found

    async def keep_manifests(self, manifests: Mapping[str, tuple[str, bytes]]) -> None:
        if manifests:
            flat = [
                word
                for digest, (media_type, body) in manifests.items()
                for word in (digest, media_type.encode() + b"\n" + zlib.compress(body))
            ]
            await self._connection.command("HSET", self._keys.manifests, *flat)
            await self._use(list(manifests))

    async def created(self, digests: Collection[str]) -> dict[str, datetime | None]:
        """Of those that were asked for their age what they said."""
        wanted = list(digests)
        if not wanted:
            return {}
        stored = await self._connection.command("HMGET", self._keys.created, *wanted)
        await self._use(wanted)
        return {
            digest: datetime.fromisoformat(text.decode()) if text else None
            for digest, text in zip(wanted, stored, strict=True)
            if text is not None
        }

    async def keep_created(self, created: Mapping[str, datetime | None]) -> None:
        if created:
            flat = [word for digest, at in created.items() for word in (digest, at.isoformat() if at else "")]
            await self._connection.command("HSET", self._keys.created, *flat)

    async def record_push(self, images: Iterable[ImageReference], pushed: Pushed) -> None:
        """A push of ours, of all these tags. Written again it is the same."""
        told = json.dumps([pushed.digest, milliseconds(pushed.at), pushed.branch])
        await self._connection.commands(*(("HSET", self._keys.pushes(image.name), image.reference, told) for image in images))

    async def pushes(self, repository: str) -> dict[str, Pushed]:
        """Our last push of each tag."""
        stored = pairs(await self._connection.command("HGETALL", self._keys.pushes(repository)))
        read = {tag: json.loads(text) for tag, text in stored.items()}
        return {tag: Pushed(digest, moment(at), branch) for tag, (digest, at, branch) in read.items()}

    async def tell(self, times: Mapping[str, Mapping[str, datetime]]) -> None:
        """Lay down when tags were pushed, by repository and tag, for the adoption that comes."""
        for repository, tags in times.items():
            flat = [word for tag, at in tags.items() for word in (tag, milliseconds(at))]
            key = self._keys.told(repository)
            await self._connection.commands(("HSET", key, *flat), ("EXPIRE", key, _TOLD))

    async def told(self, repository: str) -> dict[str, datetime]:
        """What was laid down of a repository and not yet taken."""
        stored = pairs(await self._connection.command("HGETALL", self._keys.told(repository)))
        return {tag: moment(at) for tag, at in stored.items()}

    def taken(self, repository: str) -> Command:
        """The command that takes it away."""
        return ("DEL", self._keys.told(repository))

    async def pin(self, mark: str, why: str, *, image: str | None = None, by: str | None = None) -> Pin:
        """Keep a digest, or `registry/repository:tag`, whatever the rules say. What is pinned already gets this reason."""
        at = await self._now()
        # The pin itself comes first: a kill between the two costs who and when, and no image.
        await self._connection.commands(
            ("HSET", self._keys.pins, mark, why), ("HSET", self._keys.pinned_by, mark, json.dumps([image, by, at]))
        )
        return Pin(mark=mark, why=why, image=image, by=by, at=moment(at))

    async def repin(self, mark: str, why: str, *, image: str) -> None:
        """Pin what comes back from the bin; who has pinned it himself is not overwritten."""
        told = json.dumps([image, None, await self._now()])
        await self._connection.commands(("HSETNX", self._keys.pins, mark, why), ("HSETNX", self._keys.pinned_by, mark, told))

    async def unpin(self, mark: str) -> bool:
        """Whether it was pinned."""
        removed, _ = await self._connection.commands(("HDEL", self._keys.pins, mark), ("HDEL", self._keys.pinned_by, mark))
        return bool(removed)

    async def pins(self) -> dict[str, str]:
        """Every pin, and why."""
        return pairs(await self._connection.command("HGETALL", self._keys.pins))

    async def pinned(self) -> list[Pin]:
        """Every pin with what is known of it, by what it pins."""
        reasons, told = await self._connection.commands(("HGETALL", self._keys.pins), ("HGETALL", self._keys.pinned_by))
        known = {mark: json.loads(text) for mark, text in pairs(told).items()}
        found = []
        for mark, why in sorted(pairs(reasons).items()):
            image, by, at = known.get(mark, (None, None, None))
            found.append(Pin(mark=mark, why=why, image=image, by=by, at=None if at is None else moment(at)))
        return found

    async def prune(self, now: datetime, age: timedelta) -> int:
        """Forget manifests that no survey has asked for since long, at most so many; answers how many."""
        used = self._keys.manifests_used
        old = await self._connection.command("ZRANGEBYSCORE", used, "-inf", milliseconds(now - age), "LIMIT", 0, _PRUNED)
        if old:
            await self._connection.commands(("HDEL", self._keys.manifests, *old), ("HDEL", self._keys.created, *old), ("ZREM", used, *old))
        return len(old)

    async def _use(self, digests: Collection[str]) -> None:
        now = await self._now()
        await self._connection.command("ZADD", self._keys.manifests_used, *(word for digest in digests for word in (now, digest)))

    async def _now(self) -> int:
        """Milliseconds by Redis's clock."""
        time = await self._connection.command("TIME")
        return int(time[0]) * 1000
