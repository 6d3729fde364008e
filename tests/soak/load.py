"""What the soak asks for: builds on the crowd that end in every way, and real ones that push and move a tag; some of them cancelled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from ledger.errors import LedgerFull, LedgerUnavailable, NotFound, QueueFull, TooLate, VersionConflict
from ledger.request import BuildRequest
from ledger.store import Ledger
from producer.cancel import cancel_build
from producer.submit import submit_build_async

CROWD = {"node_selector": {"crowd": "true"}, "tolerations": [{"key": "crowd", "operator": "Exists"}]}
ENDS = {
    "well": ({"crowd/run": "700ms"}, 70),
    "fails": ({"crowd/run": "400ms", "crowd/exit": "1", "crowd/reason": "Error", "crowd/message": "no"}, 10),
    "out of memory": ({"crowd/run": "300ms", "crowd/exit": "137", "crowd/reason": "OOMKilled", "crowd/message": ""}, 5),
    "never ends": ({"crowd/run": "24h"}, 5),
    "slow": ({"crowd/run": "6s"}, 10),
}
"""What becomes of a pod of the crowd, and how often."""
REAL_PROJECT = "real"
"""Whose builds are real ones, on the node that has a kubelet."""
_AWAY = (LedgerUnavailable, LedgerFull, QueueFull)


class Load:
    """Keeps so many builds unfinished, from any number of projects, until it is told to stop."""

    def __init__(self, ledger: Ledger, image: str, source: dict[str, Any], dice: random.Random, insecure: str) -> None:
        self._ledger, self._image, self._source, self._dice, self._insecure = ledger, image, source, dice, insecure
        self._number = 0
        self.accepted: dict[str, str] = {}
        """Build -> its idempotency key."""
        self.doubtful: dict[str, BuildRequest] = {}
        """Keys of submits whose answer never came, and what they asked for."""
        self.real: list[str] = []
        self.kinds: Counter[str] = Counter()

    async def run(self, *, crowd: int, real: int) -> None:
        """Go on for ever: so many of each kind are to be unfinished."""
        while True:
            try:
                counted = await self._ledger.count()
                unfinished = sum(count for state, count in counted.items() if not state.final)
                open_real = [build for build in self.real[-40:] if not (await self._ledger.read(build)).state.final]
            except _AWAY:
                await asyncio.sleep(0.3)
                continue
            for _ in range(min(20, max(0, crowd - unfinished))):
                await self._submit(self._crowd_build())
            if len(open_real) < real and (build := await self._submit(self._real_build())):
                self.real.append(build)
            if self._dice.random() < 0.3:
                await self._cancel_one()
            await asyncio.sleep(0.1)

    async def settle_doubts(self) -> None:
        """Ask once more for what nobody answered: the same keys make the same builds."""
        for key, request in list(self.doubtful.items()):
            build = await submit_build_async(request, idempotency_key=key, ledger=self._ledger)
            self.accepted[build.id] = key
            del self.doubtful[key]

    async def _submit(self, request: BuildRequest) -> str | None:
        key = f"soak-{self._number}"
        try:
            build = await submit_build_async(request, idempotency_key=key, ledger=self._ledger)
        except QueueFull:
            return None
        except _AWAY:
            self.doubtful[key] = request
            return None
        self.accepted[build.id] = key
        return build.id

    async def _cancel_one(self) -> None:
        if self.accepted:
            build = self._dice.choice(list(self.accepted)[-100:])
            try:
                await cancel_build(self._ledger, build)
            except (TooLate, NotFound, VersionConflict, *_AWAY):
                pass

    def _crowd_build(self) -> BuildRequest:
        self._number += 1
        kind = self._dice.choices(list(ENDS), [weight for _, weight in ENDS.values()])[0]
        self.kinds[kind] += 1
        more: dict[str, Any] = {}
        if self._dice.random() < 0.2:
            more["concurrency_key"] = f"key-{self._dice.randrange(5)}"
        return BuildRequest.parse(
            {
                "project": self._dice.choice(["one", "two", "three"]),
                "source": {"kind": "config_map", "config_map": "none"},
                "destinations": [f"{self._image}/crowd:1.0.{self._number}"],
                "push": False,
                "tar": {"host_path": "/tmp"},
                "placement": CROWD,
                "identity": {"annotations": {"crowd/start": "100ms", **ENDS[kind][0]}},
                "deadlines": {"running": "20s", "pending": "60s"},
                "priority": self._dice.randrange(-3, 4),
                **more,
            }
        )

    def _real_build(self) -> BuildRequest:
        self._number += 1
        self.kinds["real"] += 1
        return BuildRequest.parse(
            {
                "project": REAL_PROJECT,
                "source": self._source,
                "destinations": [f"{self._image}/real:1.0.{self._number}", f"{self._image}/real:latest"],
                "registries": {"insecure": [self._insecure]},
                "resources": {"memory": "500Mi"},
                "deadlines": {"running": "3m", "pending": "2m"},
            }
        )
