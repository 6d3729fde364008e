"""What a registry's tags needed before its garbage was collected: written before the sweep, read after it, by whichever worker comes to it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from ledger.connection import Connection

_KEPT = 7 * 86400
"""Seconds; a collection that takes longer than that has more trouble than this."""


class Evidence:
    """Keeping and reading it, a repository at a time, by the run that it belongs to."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._keys = connection, connection.keys

    async def begin(self, registry: str, run: str) -> None:
        """Forget an earlier run's; a run's own stays."""
        key = self._keys.evidence(registry)
        owner = await self._connection.command("HGET", key, "")
        if owner != run.encode():
            await self._connection.commands(("DEL", key), ("HSET", key, "", run), ("EXPIRE", key, _KEPT))

    async def keep(self, registry: str, found: Mapping[str, Any]) -> None:
        """What repositories need, as JSON."""
        packed = [word for name, one in found.items() for word in (name, zlib.compress(json.dumps(one, separators=(",", ":")).encode()))]
        if packed:
            await self._connection.command("HSET", self._keys.evidence(registry), *packed)

    async def read(self, registry: str, run: str, *repositories: str) -> dict[str, Any]:
        """What was kept of these repositories, or of all; nothing of another run's."""
        key = self._keys.evidence(registry)
        if await self._connection.command("HGET", key, "") != run.encode():
            return {}
        if not repositories:
            repositories = tuple(name.decode() for name in await self._connection.command("HKEYS", key) if name)
        if not repositories:
            return {}
        stored = await self._connection.command("HMGET", key, *repositories)
        return {name: json.loads(zlib.decompress(one)) for name, one in zip(repositories, stored, strict=True) if one}

    async def names(self, registry: str, run: str) -> list[str]:
        """The repositories of which anything was kept."""
        key = self._keys.evidence(registry)
        owner, names = await self._connection.commands(("HGET", key, ""), ("HKEYS", key))
        return sorted(name.decode() for name in names if name) if owner == run.encode() else []

    async def forget(self, registry: str, run: str) -> None:
        if await self._connection.command("HGET", self._keys.evidence(registry), "") == run.encode():
            await self._connection.command("DEL", self._keys.evidence(registry))
