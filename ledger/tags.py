"""What mutable tags are wanted to be. Order is the ledger's sequence, never a date: a tag's wanted digest is only ever raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ledger.build import Build, milliseconds
from ledger.connection import Connection
from ledger.errors import NotFound, VersionConflict


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tag is wanted to be, and which build or promotion said so."""

    sequence: int
    digest: str
    by: str

    @staticmethod
    def parse(stored: bytes) -> Wanted:
        sequence, digest, by = stored.decode().split(" ")
        return Wanted(int(sequence), digest, by)


class Tags:
    """Raising and reading wanted tags."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def want(self, repository: str, tags: Sequence[str], build: Build) -> dict[str, Wanted]:
        """Raise tags of a repository (registry/path) to a publishing build's digest where its push is not behind; answers what each is
        wanted to be now. VersionConflict where somebody else publishes it; NotFound.
        """
        if not tags:
            return {}
        answer = await self._connection.run("want", repository, build.id, build.version, build.digest or "", *tags)
        if answer[0] == b"missing":
            raise NotFound(f"there is no build {build.id} any more")
        if answer[0] == b"version":
            raise VersionConflict(f"build {build.id} is at version {int(answer[1])}, not {build.version}: somebody else publishes it")
        return {tag: Wanted.parse(stored) for tag, stored in zip(tags, answer[1:], strict=True)}

    async def wanted(self, repository: str, tag: str) -> Wanted | None:
        return (await self.all_wanted(repository, [tag])).get(tag)

    async def all_wanted(self, repository: str, tags: Sequence[str]) -> dict[str, Wanted]:
        """Those of the tags for which something is wanted."""
        stored = await self._connection.command("HMGET", self._connection.keys.tags(repository), *tags)
        return {tag: Wanted.parse(found) for tag, found in zip(tags, stored, strict=True) if found}

    async def retire(self, repository: str, tag: str, digest: str) -> bool:
        """Want a tag no more, so that nobody puts it back. False: a build wants it to be something else by now."""
        return bool(await self._connection.run("retire", repository, tag, digest))

    async def unsettled(self, now: datetime) -> list[str]:
        """Builds whose tags are to be looked at once more: the step that moved them was stopped midway, and may have woken up since."""
        found = await self._connection.command("ZRANGEBYSCORE", self._connection.keys.unsettled, "-inf", milliseconds(now), "LIMIT", 0, 100)
        return [build.decode() for build in found]

    async def settled(self, build: str) -> None:
        """Its tags were looked at, or there is nothing more to look at."""
        await self._connection.command("ZREM", self._connection.keys.unsettled, build)

    async def is_unsettled(self, build: str, now: datetime) -> bool:
        """Whether it is time to look at its tags once more."""
        at = await self._connection.command("ZSCORE", self._connection.keys.unsettled, build)
        return at is not None and float(at) <= milliseconds(now)
