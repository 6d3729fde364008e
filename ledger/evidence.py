"""What a registry's tags needed before its garbage was collected: written before the sweep, read after it, by whichever worker comes to it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from ledger.chores import Claim
from ledger.connection import Connection

_KEPT = 7 * 86400
"""Seconds; a collection that takes longer than that has more trouble than this."""


class Evidence:
    """Keeping and reading it, a repository at a time, by the run that it belongs to.

    What is written is written under the run's claim (else ChoreLost): a worker that slept would spoil the evidence of the next run.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._keys = connection, connection.keys

    async def begin(self, registry: str, run: str, claim: Claim) -> None:
        """Forget an earlier run's; a run's own stays."""
        key = self._keys.evidence(registry)
        if await self._connection.command("HGET", key, "") != run.encode():
            await claim.write(commands=[("DEL", key), ("HSET", key, "", run), ("EXPIRE", key, _KEPT)])

    async def keep(self, registry: str, found: Mapping[str, Any], claim: Claim) -> None:
        """What repositories need, as JSON."""
        packed = [word for name, one in found.items() for word in (name, zlib.compress(json.dumps(one, separators=(",", ":")).encode()))]
        if packed:
            await claim.write(commands=[("HSET", self._keys.evidence(registry), *packed)])

    async def read(self, registry: str, run: str, *repositories: str) -> dict[str, Any] | None:
        """What was kept of these repositories, or of all; None where there is nothing of this run's."""
        key = self._keys.evidence(registry)
        if await self._connection.command("HGET", key, "") != run.encode():
            return None
        if not repositories:
            repositories = tuple(name.decode() for name in await self._connection.command("HKEYS", key) if name)
        if not repositories:
            return {}
        stored = await self._connection.command("HMGET", key, *repositories)
        return {name: json.loads(zlib.decompress(one)) for name, one in zip(repositories, stored, strict=True) if one}

    async def names(self, registry: str, run: str) -> list[str] | None:
        """The repositories of which anything was kept; None where there is nothing of this run's."""
        key = self._keys.evidence(registry)
        owner, names = await self._connection.commands(("HGET", key, ""), ("HKEYS", key))
        return sorted(name.decode() for name in names if name) if owner == run.encode() else None

    async def forget(self, registry: str, claim: Claim) -> None:
        await claim.write(commands=[("DEL", self._keys.evidence(registry))])
