"""`crabpot watch`: the long-lived process. One leads, by a lease with a fence that each of its writes carries; the others stand by.

The leader observes the cluster, captures logs, follows the event stream to nudge the workers (the pump), and looks at what is due.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from contextlib import suppress
from datetime import timedelta

import click
import structlog
from uuid_utils import uuid7

from ledger.errors import ClusterError, CrabpotError, FenceLost, LedgerError
from ledger.events import EventType, QueueEvent
from ledger.leases import Fence
from ledger.logging import set_up
from ledger.projects import read_projects
from ledger.settings import Settings, settings
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
_DUE_PULSE = 0.4
"""Seconds between two looks at the due times: how soon a cancel is felt."""


async def stand_by(place: Place, nudges: Nudges) -> None:
    """Wait for the lead, lead, and begin again when it is lost, for ever."""
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid7()}"
    current = asyncio.current_task()
    assert current is not None
    try:
        # A task group that fails while it is cancelled tells of the failure only: then the cancel is found here.
        while not current.cancelling():
            try:
                fence = await place.ledger.leases.take(LEASE, owner, LEASE_TTL)
                if fence is None:
                    await asyncio.sleep(LEASE_TTL.total_seconds() / 4)
                    continue
                log.info("leads", owner=owner, fence=fence)
                # A task of its own: a task group that fails leaves the task that it is in marked as cancelled (until Python 3.13).
                await asyncio.create_task(lead(place, nudges, Fence(LEASE, fence), owner))
            except* CrabpotError as group:
                for error in group.exceptions:
                    log.warning("lead_lost", error=str(error), kind=type(error).__name__)
                await asyncio.sleep(random.uniform(0.2, 1.0))
    finally:
        with suppress(LedgerError):  # it runs out by itself
            await place.ledger.leases.give_back(LEASE, owner)


async def lead(place: Place, nudges: Nudges, fence: Fence, owner: str) -> None:
    """Do the leader's work until the lease is lost (FenceLost) or the ledger is away."""
    async with asyncio.TaskGroup() as group:
        captures = Captures(place, fence, group)
        observer = Observer(place, fence, nudges, captures, group)
        reconciler = Reconciler(place, fence, nudges, observer)
        group.create_task(_renew(place, fence, owner))
        group.create_task(observer.run())
        group.create_task(captures.flush_for_ever())
        group.create_task(_pump(place, nudges))
        group.create_task(_watch_due(place, nudges, observer, reconciler))
        group.create_task(_tick(place, nudges, observer, reconciler))


async def _renew(place: Place, fence: Fence, owner: str) -> None:
    while True:
        await asyncio.sleep(_RENEW)
        if await place.ledger.leases.take(LEASE, owner, LEASE_TTL) != fence.value:
            raise FenceLost


_WAKING = tuple(f'"type":"{kind}"'.encode() for kind in (EventType.QUEUED, QueueEvent.LIMITED, QueueEvent.RESUMED))
"""After these there may be something to admit."""


async def _pump(place: Place, nudges: Nudges) -> None:
    """Follow the event stream and ask for admissions; a burst of submits is a few nudges."""
    last = await place.ledger.last_event()
    nudges.dispatch()
    while True:
        events = await place.ledger.events(last, block=2.0)
        if events:
            last = events[-1][0]
            if any(kind in event for _, event in events for kind in _WAKING):
                nudges.dispatch()


async def _watch_due(place: Place, nudges: Nudges, observer: Observer, reconciler: Reconciler) -> None:
    await observer.synced.wait()
    while True:
        due = await place.ledger.due()
        # Side by side: one that the cluster keeps waiting must not hold up the others.
        for failure in await asyncio.gather(*map(reconciler.look_at, due), return_exceptions=True):
            if failure:
                raise failure
        wait = await place.ledger.next_due()
        if wait is not None and wait <= 0 and not due:
            nudges.dispatch()  # a retry's delay is over
        await asyncio.sleep(_DUE_PULSE if wait is None else min(max(wait, 0.05), _DUE_PULSE))


async def _tick(place: Place, nudges: Nudges, observer: Observer, reconciler: Reconciler) -> None:
    await observer.synced.wait()
    while True:
        try:
            await reconciler.look_at_slots()
        except ClusterError as error:
            log.warning("slots_not_looked_at", error=str(error))
        await place.projects()  # a project's new namespace is to be watched before its first build is looked for
        await place.ledger.expire()
        nudges.dispatch()
        await asyncio.sleep(_TICK)


async def watch(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    from worker.app import app

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    place = await open_place(settings)
    nudges = Nudges(app)
    try:
        if settings.projects:
            await place.ledger.store_projects(read_projects(settings.projects))
        standing = asyncio.create_task(stand_by(place, nudges))
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({standing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if standing.done():
            standing.result()
        standing.cancel()
        await asyncio.gather(standing, return_exceptions=True)
    finally:
        await nudges.close()
        await place.close()


@click.command()
def command() -> None:
    """Watch the cluster: record ends, capture logs, keep builds moving. One leads, others stand by."""
    given = settings()
    set_up(given)
    try:
        asyncio.run(watch(given))
    except CrabpotError as error:
        raise click.ClickException(str(error)) from None
