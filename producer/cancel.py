"""Cancelling a build: at once while it waits, else a flag in the record that every step looks at."""

from __future__ import annotations

from datetime import timedelta

from ledger.build import Build, Reason, State
from ledger.errors import TooLate, VersionConflict
from ledger.events import EventType, event
from ledger.store import Ledger

_TRIES = 20
"""A build's record changes a few times in its life; it never changes this often between two reads."""


async def cancel_build(ledger: Ledger, build: str) -> Build:
    """Cancel a build, or ask for it where a pod has to end first. Asking twice is no error.

    TooLate where it has ended or its tags are being moved; NotFound.
    """
    for _ in range(_TRIES):
        record = await ledger.read(build)
        try:
            return await _cancel(ledger, record)
        except VersionConflict:
            continue
    raise VersionConflict(f"build {build} changes too quickly; try again")


async def _cancel(ledger: Ledger, build: Build) -> Build:
    if build.state.final:
        raise TooLate(f"build {build.id} has ended already: {build.state}")
    if build.moving_tags:
        raise TooLate(f"too late: the tags of build {build.id} are being moved")
    if build.cancel_requested:
        return build
    if build.state is State.QUEUED:
        told = build.model_copy(update={"state": State.CANCELLED, "reason": Reason.CANCELLED, "message": "cancelled while it waited"})
        events = [event(EventType.CANCELLED, told), event(EventType.FINISHED, told)]
        return await ledger.transition(build, State.CANCELLED, due=None, events=events, reason=told.reason, message=told.message)
    events = [event(EventType.CANCEL_REQUESTED, build)]
    return await ledger.transition(build, build.state, due=timedelta(0), events=events, cancel_requested=await ledger.now())
