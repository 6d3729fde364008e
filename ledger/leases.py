"""Leases with fences: who leads, proved at every write. Time is Redis's, so no two machines' clocks are compared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ledger.connection import Connection


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of holding a lease: a write that carries it fails once somebody else holds the lease."""

    lease: str
    value: int


class Leases:
    """Taking, renewing and giving back leases by name."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def take(self, name: str, owner: str, ttl: timedelta) -> int | None:
        """Take or renew a lease: its fence, or None while somebody else holds it. A new holder gets a new fence."""
        return int(await self._connection.run("lease", name, owner, round(ttl.total_seconds() * 1000))) or None

    async def give_back(self, name: str, owner: str) -> None:
        """End one's own lease at once, so that a standby need not wait for its time to run out."""
        await self._connection.run("release", name, owner)

    async def holder(self, name: str) -> str | None:
        owner = await self._connection.command("HGET", self._connection.keys.lease(name), "owner")
        return owner.decode() if owner else None
