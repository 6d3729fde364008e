"""What goes wrong in a soak: one thing after another, at random but by a seed, each undone after some seconds."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.soak.site import Site
from tests.soak.witness import Witness


class Mischief:
    """Does harm for ever; each kind is counted."""

    def __init__(self, site: Site, witness: Witness, dice: random.Random) -> None:
        self._site, self._witness, self._dice = site, witness, dice
        self.done: Counter[str] = Counter()
        self._kinds: dict[str, tuple[Callable[[], Awaitable[None]], int]] = {
            "a worker killed": (self._kill("worker"), 4),
            "a watcher killed": (self._kill("watch"), 4),
            "a worker stopped": (self._stop("worker"), 3),
            "a watcher stopped": (self._stop("watch"), 3),
            "Redis killed": (self._kill_redis, 2),
            "a line cut": (self._cut, 5),
            "a line silent": (self._silence, 3),
            "a line slow": (self._slow, 2),
            "an answer lost": (self._lose_answer, 5),
            "a pod deleted": (self._delete_pod("--grace-period=1"), 4),
            "a pod deleted by force": (self._delete_pod("--grace-period=0", "--force"), 3),
            "nudges doubled": (self._nudge, 2),
        }

    async def run(self, pause: float) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.3 * pause, 1.7 * pause))
            kind = self._dice.choices(list(self._kinds), [weight for _, weight in self._kinds.values()])[0]
            self.done[kind] += 1
            await self._kinds[kind][0]()

    def _kill(self, kind: str) -> Callable[[], Awaitable[None]]:
        async def kill() -> None:
            name = self._dice.choice(self._site.running(kind))
            await self._site.kill(name)
            await asyncio.sleep(self._dice.uniform(0.0, 4.0))
            await self._site.start(name)

        return kill

    def _stop(self, kind: str) -> Callable[[], Awaitable[None]]:
        async def stop() -> None:
            name = self._dice.choice(self._site.running(kind))
            self._site.pause(name)
            await asyncio.sleep(self._dice.uniform(2.0, 14.0))
            self._site.resume(name)

        return stop

    async def _kill_redis(self) -> None:
        await self._site.kill_redis()
        await asyncio.sleep(self._dice.uniform(0.5, 6.0))
        await self._site.start_redis()

    async def _cut(self) -> None:
        self._dice.choice(self._site.lines).cut()

    async def _silence(self) -> None:
        line = self._dice.choice(self._site.lines)
        line.go_silent()
        await asyncio.sleep(self._dice.uniform(1.0, 8.0))
        await line.heal()

    async def _slow(self) -> None:
        line = self._dice.choice(self._site.lines)
        line.delay = self._dice.uniform(0.02, 0.3)
        await asyncio.sleep(self._dice.uniform(2.0, 6.0))
        await line.heal()

    async def _lose_answer(self) -> None:
        self._dice.choice(self._site.lines).lose_answer()

    def _delete_pod(self, *how: str) -> Callable[[], Awaitable[None]]:
        async def delete() -> None:
            if self._witness.live:
                await self._site.kubectl("delete", "pod", self._dice.choice(list(self._witness.live)), "--wait=false", *how)

        return delete

    async def _nudge(self) -> None:
        for _ in range(5):
            await self._site.nudge()
