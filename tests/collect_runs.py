"""Driving a run of a collection against real things, with a kill or a failure wherever a test wants one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ledger.collected import CollectedHere
from ledger.evidence import Evidence
from ledger.store import Ledger
from worker.collect.doors import Doors
from worker.collect.running import Work, advance
from worker.collect.site import Site
from worker.collect.steps import Collection, Purpose, Step, begin
from worker.registry.credentials import Credentials
from worker.registry.reader import RegistryReader

SITE = ("look", "standing", "close", "dry_run", "sweep", "restart", "settled", "open")
"""A site's calls."""
SAVED = tuple(step for step in Step if step is not Step.LOOK)
"""What is written down while a run goes well."""
Around = Callable[[str], None]


class Killed(BaseException):
    """The worker is no more; another goes on from what was written."""


class Told:
    """A site whose every call is told before and after it."""

    def __init__(self, site: Site, around: Around) -> None:
        self._site, self._around = site, around

    def __getattr__(self, name: str) -> Any:
        async def told(*given: Any, **named: Any) -> Any:
            self._around(f"{name} before")
            answer = await getattr(self._site, name)(*given, **named)
            self._around(f"{name} after")
            return answer

        return told


async def drive(
    ledger: Ledger,
    settings: CollectedHere,
    site: Site,
    credentials: Credentials,
    around: Around = lambda _: None,
    *,
    purpose: Purpose = Purpose.COLLECT,
    run: str = "r1",
    seconds: float = 30.0,
    pause: float = 0.05,
) -> list[Collection]:
    """A run to its end, from what was written, however often its worker is killed; the states that were written."""
    states = [begin(settings.registry, purpose, run, await ledger.now())]

    async def save(state: Collection) -> None:
        around(f"save {state.step}")
        states.append(state)

    async def ours() -> None:
        pass

    insecure = frozenset({settings.registry} if settings.access.insecure else ())
    try:
        async with asyncio.timeout(seconds):
            while states[-1].step is not Step.DONE:
                async with RegistryReader(credentials, insecure=insecure) as reader:
                    told: Any = Told(site, around)
                    doors = Doors(settings.registry, settings.access, credentials)
                    work = Work(settings, told, doors, reader, ledger.holds, Evidence(ledger.connection), ours)
                    try:
                        await save(await advance(work, states[-1], await ledger.now(), save))
                    except Killed:
                        continue
                if states[-1].waits:
                    await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"the run has no end: {states[-1]!r}") from None
    return states
