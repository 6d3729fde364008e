"""What mutable tags are wanted to be. Order is the ledger's sequence, never a date: a tag's wanted digest is only ever raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.connection import Connection


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tag is wanted to be, and which build said so."""

    sequence: int
    digest: str
    build: str

    @staticmethod
    def parse(stored: bytes) -> Wanted:
        sequence, digest, build = stored.decode().split(" ")
        return Wanted(int(sequence), digest, build)


class Tags:
    """Raising and reading wanted tags."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def want(self, repository: str, tags: Sequence[str], wanted: Wanted) -> dict[str, Wanted]:
        """Raise tags of a repository (registry/path) to a build's digest where its sequence is not behind; answers what each is wanted to be now."""
        if not tags:
            return {}
        answer = await self._connection.run("want", repository, wanted.sequence, wanted.digest, wanted.build, *tags)
        return {tag: Wanted.parse(stored) for tag, stored in zip(tags, answer, strict=True)}

    async def wanted(self, repository: str, tag: str) -> Wanted | None:
        stored = await self._connection.command("HGET", self._connection.keys.tags(repository), tag)
        return Wanted.parse(stored) if stored else None
