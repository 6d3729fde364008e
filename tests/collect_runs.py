"""Driving a run of a collection against real things, with a kill or a failure wherever a test wants one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

from ledger.chores import ChoreState
from ledger.collected import CHORES, CollectedHere, CollectedOnThisMachine
from ledger.evidence import Evidence
from ledger.store import Ledger
from worker.chores import go_on
from worker.collect.doors import Doors
from worker.collect.local import LocalSite
from worker.collect.running import Work, advance
from worker.collect.site import Site
from worker.collect.steps import Collection, Purpose, Step, begin
from worker.kinds import KINDS
from worker.place import Place
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
    states: list[Collection] | None = None,
) -> list[Collection]:
    """A run to its end, from what was written, however often its worker is killed; the states that were written."""
    states = [] if states is None else states
    states.append(begin(settings.registry, purpose, run, await ledger.now()))

    async def save(state: Collection) -> None:
        around(f"save {state.step}")
        states.append(state)

    name = f"{CHORES['run']}:{settings.registry}"
    await ledger.chores.start(name, settings.registry)
    claim = await ledger.chores.claim(name)
    assert not isinstance(claim, str), claim
    insecure = frozenset({settings.registry} if settings.access.insecure else ())
    certificates = {settings.registry: str(settings.access.certificate)} if settings.access.certificate else {}
    try:
        async with asyncio.timeout(seconds):
            while states[-1].step is not Step.DONE:
                async with RegistryReader(credentials, insecure=insecure, certificates=certificates) as reader:
                    told: Any = Told(site, around)
                    doors = Doors(settings.registry, settings.access, credentials)
                    work = Work(settings, told, doors, reader, ledger.holds, Evidence(ledger.connection), claim)
                    try:
                        await save(await advance(work, states[-1], await ledger.now(), save))
                    except Killed:
                        continue
                if states[-1].waits:
                    await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"the run has no end: {states[-1]!r}") from None
    await claim.end(ChoreState.DONE)
    return states


async def to_its_end(place: Place, name: str, *, until: Step | None = None, bits: int | None = None) -> None:
    """A run as a chore, a step at a time, as workers do whom the leader sends; to its end or up to a step. The next run is
    left to others.
    """
    registry = name.partition(":")[2]
    settings = (await place.ledger.site()).collected(registry)
    left = itertools.count() if bits is None else iter(range(bits))
    first = await place.ledger.chores.read(name)
    while (chore := await place.ledger.chores.read(name)).state is ChoreState.WAITING and chore.created == first.created:
        if next(left, None) is None:
            return
        if until is not None and (chore.progress.get("state") or {}).get("step") == until:
            return
        if isinstance(settings, CollectedOnThisMachine):
            # So a step is taken once, and each run passes the same points.
            await stands_still(settings)
        elif chore.said:
            await asyncio.sleep(0.2)
        await place.ledger.connection.command("ZADD", place.ledger.connection.keys.chores, "XX", 0, name)
        await go_on(place, name, KINDS, seconds=0)


async def stands_still(settings: CollectedOnThisMachine) -> None:
    """Until the registry's process is the one that is wanted, and listens."""
    site, host, before = LocalSite(settings), settings.registry.rpartition(":"), None
    while True:
        standing = await site.standing()
        if standing.unsettled is None and standing.doors == before:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host[0], int(host[2]))
                writer.close()
                await writer.wait_closed()
                return
        before = standing.doors
        await asyncio.sleep(0.02)
