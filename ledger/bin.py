"""The waste bin: what plans took away from registries, with all that is needed to put it back, until its undo window ends."""

from __future__ import annotations

import base64
import zlib
from datetime import datetime
from enum import StrEnum
from typing import Literal

from ledger.chores import Command
from ledger.connection import Connection
from ledger.fields import Frozen
from ledger.keys import Keys


class BinState(StrEnum):
    """Where an entry stands; each is written before what it says is begun."""

    LEAVING = "leaving"
    """Its tags are being taken away."""
    BINNED = "binned"
    RETURNING = "returning"
    PURGING = "purging"
    """Its digest is being deleted for good; its bytes are kept until a look afterwards has found that nothing misses it."""


class BinEntry(Frozen):
    """A digest that a plan took away, or of which it took tags away."""

    version: Literal[1] = 1
    plan: str
    repository: str
    """With its registry."""
    project: str
    """By whose credentials."""
    digest: str
    goes: bool
    """The digest goes when the window ends; else its tags alone have gone."""
    tags: tuple[str, ...] = ()
    pushed: dict[str, datetime] = {}
    """When its tags were pushed, where that is known: with it they come back."""
    quarantine: str | None = None
    """The tag that holds it meanwhile."""
    media_type: str
    raw: str
    """The manifest's bytes, compressed, in base 64."""
    until: datetime
    order: int
    """Its place among what the plan deletes in the repository: an index comes before what it holds."""
    state: BinState = BinState.LEAVING
    despite: tuple[str, ...] = ()
    """Clusters whose silence the plan's approval took on itself."""
    asks_clusters: bool = True

    @property
    def body(self) -> bytes:
        return zlib.decompress(base64.b64decode(self.raw))

    @staticmethod
    def packed(body: bytes) -> str:
        return base64.b64encode(zlib.compress(body)).decode()


class Bin:
    """Reading it. It is written by chores alone, each write under their fence: so an entry has one writer at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._keys = connection, connection.keys

    async def repositories(self, registry: str) -> list[str]:
        """The repositories of a registry that have something in it."""
        return sorted(name.decode() for name in await self._connection.command("SMEMBERS", self._keys.bins(registry)))

    async def entries(self, repository: str) -> list[BinEntry]:
        """What is in it of a repository, in the order in which it is to be deleted."""
        stored = await self._connection.command("HVALS", self._keys.bin(repository))
        return sorted((BinEntry.model_validate_json(text) for text in stored), key=lambda entry: (entry.plan, entry.order, entry.digest))


def put(keys: Keys, entry: BinEntry) -> list[Command]:
    """The commands that put an entry in, or write it anew."""
    registry = entry.repository.partition("/")[0]
    return [
        ("HSET", keys.bin(entry.repository), f"{entry.plan} {entry.digest}", entry.model_dump_json()),
        ("SADD", keys.bins(registry), entry.repository),
    ]


def drop(keys: Keys, entry: BinEntry) -> list[Command]:
    """The command that takes an entry out."""
    return [("HDEL", keys.bin(entry.repository), f"{entry.plan} {entry.digest}")]
