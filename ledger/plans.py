"""Stored plans: what was decided about a registry, who approved it, and what became of each tag and digest.

The text is the worker's (`worker/retention/decisions.py`); here it is known by its hash. What a plan takes away is in `ledger/bin.py`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from ledger.build import milliseconds, moment
from ledger.chores import Chores, Command
from ledger.codec import pairs
from ledger.connection import Connection
from ledger.errors import Conflict, NotFound

_KEPT = 100
"""Plans of one registry."""
LIFE = timedelta(days=7)
"""An older plan is not applied: too much has changed since somebody read it."""
AUTOMATIC = "automatic"
"""Who approves what the policies let go without a person."""


class PlanState(StrEnum):
    """What has become of a plan."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    """It is being applied, or stopped while it was."""
    APPLIED = "applied"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """A plan without its text."""

    sha256: str
    registry: str
    made: datetime
    state: PlanState
    totals: Mapping[str, Any] = field(default_factory=dict)
    """How many tags and digests it is about, bytes that it frees, and why it wants a person's approval."""
    approved_by: str | None = None
    despite: tuple[str, ...] = ()
    """Clusters whose silence the approval takes on itself."""

    @property
    def awaits(self) -> tuple[str, ...]:
        """Why somebody's approval is waited for; nothing once it has been given."""
        return tuple(self.totals.get("review", ())) if self.state is PlanState.PROPOSED else ()

    def told(self) -> dict[str, Any]:
        """As commands and REST tell of it: JSON."""
        return {
            "plan": self.sha256,
            "registry": self.registry,
            "state": str(self.state),
            "made": self.made.isoformat(),
            "approved_by": self.approved_by,
            "despite": list(self.despite),
            **self.totals,
        }


class Plans:
    """Storing, listing, approving and undoing plans."""

    def __init__(self, connection: Connection, chores: Chores) -> None:
        self._connection, self._keys, self._chores = connection, connection.keys, chores

    async def store(self, sha256: str, text: str, registry: str, made: datetime, totals: Mapping[str, Any]) -> None:
        """Store a plan; the oldest of its registry go. A plan that is there already stays as it is."""
        key, listed = self._keys.plan(sha256), self._keys.plans(registry)
        if await self._connection.command("EXISTS", key):
            return
        await self._connection.commands(
            ("HSET", key, "text", zlib.compress(text.encode()), "registry", registry, "made", milliseconds(made),
             "state", PlanState.PROPOSED, "totals", json.dumps(totals)),
            ("ZADD", listed, milliseconds(made), sha256),
            ("SADD", self._keys.planned, registry),
        )  # fmt: skip
        for old in await self._connection.command("ZRANGE", listed, 0, -_KEPT - 1):
            sha = old.decode()
            await self._connection.command("DEL", self._keys.plan(sha), self._keys.report(sha))
            await self._connection.command("ZREM", listed, sha)

    async def find(self, prefix: str) -> StoredPlan:
        """A plan by its hash, or by the beginning of it that no other has. NotFound."""
        found = [plan for plan in await self.all() if plan.sha256.startswith(prefix)] if len(prefix) >= 6 else []
        if len(found) != 1:
            why = "several plans begin with" if found else "there is no plan"
            raise NotFound(f"{why} {prefix}; `crabpot retention ls` shows those that there are")
        return found[0]

    async def all(self, registry: str | None = None) -> list[StoredPlan]:
        """Plans, newest first."""
        registries = [registry] if registry else [name.decode() for name in await self._connection.command("SMEMBERS", self._keys.planned)]
        listed = [sha for name in registries for sha in await self._connection.command("ZRANGE", self._keys.plans(name), 0, -1)]
        found = [await self._read(sha.decode()) for sha in listed]
        return sorted((plan for plan in found if plan), key=lambda plan: plan.made, reverse=True)

    async def text(self, sha256: str) -> str:
        """The plan itself. NotFound."""
        stored = await self._connection.command("HGET", self._keys.plan(sha256), "text")
        if stored is None:
            raise NotFound(f"there is no plan {sha256} any more")
        return zlib.decompress(stored).decode()

    async def read(self, sha256: str) -> StoredPlan:
        """One plan. NotFound."""
        found = await self._read(sha256)
        if found is None:
            raise NotFound(f"there is no plan {sha256} any more; make a new one with `crabpot retention plan`")
        return found

    async def approve(self, sha256: str, by: str, now: datetime, despite: tuple[str, ...] = ()) -> str:
        """Let a worker apply a plan; the name of the chore that does. Conflict: it is too old, or was applied already."""
        plan = await self.read(sha256)
        if plan.state not in (PlanState.PROPOSED, PlanState.APPROVED):
            raise Conflict(f"the plan {sha256[:12]} was {plan.state} already; make a new one with `crabpot retention plan`")
        if now - plan.made > LIFE:
            raise Conflict(f"the plan {sha256[:12]} is older than {LIFE.days} days; make a new one with `crabpot retention plan`")
        await self._connection.command(
            "HSET", self._keys.plan(sha256), "state", PlanState.APPROVED, "approved_by", by, "despite", json.dumps(despite)
        )
        chore = f"apply:{sha256}"
        await self._chores.start(chore, plan.registry, {"at": 0})
        return chore

    async def undo(self, plan: StoredPlan) -> str:
        """Let a worker put back what the bin still has of a plan; the name of the chore that does."""
        chore = f"undo:{plan.sha256}"
        await self._chores.start(chore, plan.registry)
        return chore

    def marked(self, sha256: str, state: PlanState) -> Command:
        """The command that writes what has become of a plan."""
        return ("HSET", self._keys.plan(sha256), "state", state)

    def reported(self, sha256: str, outcomes: Mapping[str, str]) -> list[Command]:
        """The commands that write what became of images."""
        return [("HSET", self._keys.report(sha256), name, outcome) for name, outcome in outcomes.items()]

    async def report(self, sha256: str) -> dict[str, str]:
        """What became of each image: `registry/repository:tag` or `registry/repository@digest` -> in words."""
        return dict(sorted(pairs(await self._connection.command("HGETALL", self._keys.report(sha256))).items()))

    async def _read(self, sha256: str) -> StoredPlan | None:
        names = ("registry", "made", "state", "totals", "approved_by", "despite")
        stored = await self._connection.command("HMGET", self._keys.plan(sha256), *names)
        if stored[0] is None:
            return None
        registry, made, state, totals, by, despite = (None if word is None else word.decode() for word in stored)
        return StoredPlan(
            sha256=sha256, registry=registry or "", made=moment(made or 0), state=PlanState(state or PlanState.PROPOSED), totals=json.loads(totals or "{}"),
            approved_by=by, despite=tuple(json.loads(despite or "[]")),
        )  # fmt: skip
