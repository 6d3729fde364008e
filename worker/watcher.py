"""`crabpot watch`: the long-lived process. One leads, by a lease with a fence that each of its writes carries; the others stand by.

The leader observes the cluster, captures logs, follows the event stream to nudge the workers (the pump), and looks at what is due.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from time import monotonic

import click
import structlog
from uuid_utils import uuid7

from ledger.audit import Audit
from ledger.collected import CHORES
from ledger.errors import ClusterError, CrabpotError, FenceLost, LedgerError, LedgerUnavailable
from ledger.events import EventType, QueueEvent
from ledger.leases import Fence
from ledger.logging import set_up
from ledger.projects import read_projects
from ledger.settings import Settings, settings
from worker.liveness import Liveness, tell_where
from worker.logs import Captures
from worker.nudges import Nudges
from worker.observer import Observer
from worker.place import Place, open_place
from worker.reconcile import Reconciler

log = structlog.get_logger()
LEASE = "watch"
LEASE_TTL = timedelta(seconds=6)
"""How soon a standby leads after the leader was killed."""
_RENEW = 1.5
_TICK = 5.0
"""Seconds between two looks at the queue that no event caused: they make a lost nudge cheap."""
_LEADING = {"watch": 300.0, "events": 60.0, "due": 60.0, "tick": 180.0, "chores": 60.0}
"""What a leader does, and how many seconds may pass between two rounds of it; a watch may be silent for as long as nothing happens."""
_CHORES_PULSE = 1.0
"""Seconds between two looks at the chores; no cluster need answer for them."""
_DUE_PULSE = 0.4
"""Seconds between two looks at the due times: how soon a cancel is felt."""


async def stand_by(place: Place, nudges: Nudges, liveness: Liveness) -> None:
    """Wait for the lead, lead, and begin again when it is lost, for ever."""
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid7()}"
    current = asyncio.current_task()
    assert current is not None
    try:
        # A task group that fails while it is cancelled tells of the failure only: then the cancel is found here.
        while not current.cancelling():
            try:
                liveness.round("lead")
                fence = await place.ledger.leases.take(LEASE, owner, LEASE_TTL)
                if fence is None:
                    await asyncio.sleep(LEASE_TTL.total_seconds() / 4)
                    continue
                log.info("leads", owner=owner, fence=fence)
                # A task of its own: a task group that fails leaves the task that it is in marked as cancelled (until Python 3.13).
                await asyncio.create_task(lead(place, nudges, liveness, Fence(LEASE, fence), owner))
            except* CrabpotError as group:
                for error in group.exceptions:
                    log.warning("lead_lost", error=str(error), kind=type(error).__name__)
                await asyncio.sleep(random.uniform(0.2, 1.0))
    finally:
        with suppress(LedgerError):  # it runs out by itself
            await place.ledger.leases.give_back(LEASE, owner)


async def lead(place: Place, nudges: Nudges, liveness: Liveness, fence: Fence, owner: str) -> None:
    """Do the leader's work until the lease is lost (FenceLost) or the ledger is away."""
    for work, patience in _LEADING.items():
        liveness.expect(work, patience)
    try:
        async with asyncio.TaskGroup() as group:
            captures = Captures(place, fence, group)
            observer = Observer(place, fence, nudges, captures, group, liveness)
            reconciler = Reconciler(place, fence, nudges, observer)
            group.create_task(_renew(place, liveness, fence, owner))
            group.create_task(observer.run())
            group.create_task(captures.flush_for_ever())
            group.create_task(_pump(place, nudges, liveness))
            group.create_task(_watch_chores(place, nudges, liveness))
            group.create_task(_watch_due(place, nudges, liveness, observer, reconciler))
            group.create_task(_tick(place, nudges, liveness, observer, reconciler))
    finally:
        for work in _LEADING:
            liveness.forget(work)


async def _renew(place: Place, liveness: Liveness, fence: Fence, owner: str) -> None:
    while True:
        await asyncio.sleep(_RENEW)
        liveness.round("lead")
        if await place.ledger.leases.take(LEASE, owner, LEASE_TTL) != fence.value:
            raise FenceLost


_WAKING = tuple(f'"type":"{kind}"'.encode() for kind in (EventType.QUEUED, QueueEvent.LIMITED, QueueEvent.RESUMED, QueueEvent.RELEASED))
"""After these there may be something to admit."""


async def _pump(place: Place, nudges: Nudges, liveness: Liveness) -> None:
    """Follow the event stream and ask for admissions; a burst of submits is a few nudges."""
    last = await place.ledger.last_event()
    nudges.dispatch()
    while True:
        events = await place.ledger.events(last, block=2.0)
        liveness.round("events")
        if events:
            last = events[-1][0]
            if any(kind in event for _, event in events for kind in _WAKING):
                nudges.dispatch()


async def _watch_chores(place: Place, nudges: Nudges, liveness: Liveness) -> None:
    for collected in (await place.ledger.site()).collect:
        if collected.kind != "own":  # a run that the ledger has forgotten may have left its registry read-only
            await place.ledger.chores.start(f"{CHORES['mend']}:{collected.registry}", collected.registry)
    while True:
        liveness.round("chores")
        for name in await place.ledger.chores.due():
            nudges.chore(name)
        await asyncio.sleep(_CHORES_PULSE)


async def _watch_due(place: Place, nudges: Nudges, liveness: Liveness, observer: Observer, reconciler: Reconciler) -> None:
    await _synced(observer, liveness, "due")
    nudged = 0.0
    async with asyncio.TaskGroup() as group:
        while True:
            liveness.round("due")
            due = await reconciler.look_at_due(group)
            wait = await place.ledger.next_due()
            if wait is not None and wait <= 0 and not due and monotonic() > nudged + 1.0:
                nudges.dispatch()  # a retry's delay is over; where no worker takes it, one message a second is enough
                nudged = monotonic()
            await asyncio.sleep(_DUE_PULSE if wait is None else min(max(wait, 0.05), _DUE_PULSE))


async def _tick(place: Place, nudges: Nudges, liveness: Liveness, observer: Observer, reconciler: Reconciler) -> None:
    await _synced(observer, liveness, "tick")
    audit = _audited(place)
    while True:
        liveness.round("tick")
        try:
            await reconciler.look_at_slots()
        except ClusterError as error:
            log.warning("slots_not_looked_at", error=str(error))
        observer.look_at_orphans()
        await reconciler.look_at_tags()
        await anext(audit)
        await reconciler.tell_of_mended()
        await place.projects()  # a project's new namespace is to be watched before its first build is looked for
        await place.ledger.expire()
        if await place.ledger.guard_memory():
            log.warning("memory_short", mend="raise Redis's maxmemory, or keep finished builds and logs for less long")
        nudges.dispatch()
        await asyncio.sleep(_TICK)


async def _synced(observer: Observer, liveness: Liveness, work: str) -> None:
    """Wait until the cluster has answered for the first time; while it does not, there is none of this work to do."""
    while True:
        try:
            async with asyncio.timeout(_TICK):
                await observer.synced.wait()
                return
        except TimeoutError:
            liveness.round(work)


async def _audited(place: Place) -> AsyncIterator[None]:
    """Hold the unfinished builds' indexes against their records, a bit at each turn, and mend what is wrong; for ever."""
    while True:
        async for faults in Audit(place.ledger.connection, mend=True).unfinished():
            for fault in faults:
                log.error("index_wrong", fault=str(fault))
                await place.ledger.note_mended("index_wrong", f"{fault.key}:{fault.member}")
            yield
        yield


async def watch(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tell_where(loop)
    standing, stopping = asyncio.create_task(_run(settings)), asyncio.create_task(stopped.wait())
    await asyncio.wait({standing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if standing.done():
        standing.result()
    standing.cancel()
    await asyncio.gather(standing, return_exceptions=True)


async def _run(settings: Settings) -> None:
    from worker.app import app

    liveness = Liveness(settings.alive_file, lead=60.0)
    place = await _opened(settings, liveness)
    nudges = Nudges(app)
    try:
        await stand_by(place, nudges, liveness)
    finally:
        liveness.close()
        await nudges.close()
        await place.close()


async def _opened(settings: Settings, liveness: Liveness) -> Place:
    """The place, with the projects file in the ledger, as soon as Redis answers: it may come up after us."""
    while True:
        liveness.round("lead")
        try:
            place = await open_place(settings)
            if settings.projects:
                await place.ledger.store_projects(read_projects(settings.projects))
        except LedgerUnavailable as error:
            log.warning("waits_for_redis", error=str(error))
            await asyncio.sleep(random.uniform(0.5, 2.0))
        else:
            return place


@click.command()
def command() -> None:
    """Watch the cluster: record ends, capture logs, keep builds moving. One leads, others stand by."""
    given = settings()
    set_up(given)
    try:
        asyncio.run(watch(given))
    except CrabpotError as error:
        raise click.ClickException(str(error)) from None
