"""What clusters say they run. A cluster reports in by REST with a token of its own; one that has not for an hour is silent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta

from ledger.build import milliseconds, moment
from ledger.connection import Connection

FRESH = timedelta(hours=1)


class Usage:
    """Storing and reading the reports."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._keys = connection, connection.keys

    async def store(self, cluster: str, images: Mapping[str, str], now: datetime) -> None:
        """Replace what a cluster said: digest, or registry/repository:tag -> who runs it."""
        await self._connection.command("SET", self._keys.usage(cluster), json.dumps({"at": milliseconds(now), "images": dict(images)}))

    async def report(self, cluster: str, now: datetime) -> dict[str, str] | None:
        """What a cluster said last; None where that is too old, or never was."""
        stored = await self._connection.command("GET", self._keys.usage(cluster))
        if stored is None:
            return None
        told = json.loads(stored)
        return dict(told["images"]) if now - moment(told["at"]) <= FRESH else None
