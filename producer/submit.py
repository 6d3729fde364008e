"""`submit_build()`: put a build into the queue from any Python program, with nothing but CRABPOT_REDIS_URL.

One atomic call to Redis; no broker, no import of celery. The request is checked against its project's policy, which the ledger holds.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ledger.blocking import SyncConnection
from ledger.build import Build
from ledger.codec import decode
from ledger.errors import LedgerError, LedgerFull, LedgerUnavailable, NotFound, QueueFull, RequestInvalid
from ledger.keys import Keys
from ledger.request import BuildRequest
from ledger.settings import Settings, settings
from ledger.store import Ledger
from ledger.submission import Draft, Push, Seen, Stale, Submission, draft

_LONGEST_PAUSE = 3.0
_ATTEMPTS = 3
"""A policy may change between two tries of one submit; more often than this it does not."""


def submit_build(request: BuildRequest | Mapping[str, Any], *, idempotency_key: str | None = None, timeout: float = 0.0) -> Build:
    """Queue a build and return it (id, state, position within its project).

    `request` is a `BuildRequest` or a mapping of its shape (docs/requests.md). With an `idempotency_key`, a repeat returns the first
    build. RequestInvalid names each bad field; PolicyDenied what the project does not allow; NotFound an unknown project.
    LedgerUnavailable, LedgerFull and QueueFull can be tried again: for `timeout` seconds, give or take an answer's time, that is done
    here, without ever making two builds. Thread-safe.
    """
    drafts = [draft(_parsed(request), idempotency_key)]
    patience = _Patience(timeout)
    while True:
        try:
            return _submit(drafts)
        except (LedgerUnavailable, LedgerFull, QueueFull) as error:
            time.sleep(patience.pause(error))


def _submit(drafts: Sequence[Draft]) -> Build:
    sync = _sync()
    project = drafts[0].request.project
    for _ in range(_ATTEMPTS):
        answer = sync.connection.run("submit", *sync.submission.arguments(project, drafts))
        try:
            taken = sync.submission.result(answer, project, drafts)
        except Stale:
            continue
        assert not isinstance(taken, Seen)
        return taken[0] if taken[0].version else sync.read(taken[0].id)
    raise LedgerError(f"the policy of project {project!r} changes too quickly; try again")


async def submit_build_async(
    request: BuildRequest | Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    timeout: float = 0.0,  # noqa: ASYNC109 - as the sync call has it; what is over is the trying, not the call
    ledger: Ledger,
) -> Build:
    """`submit_build` for a program with an event loop; the ledger is `Ledger.open(Settings.load())`, kept open."""
    drafts = [draft(_parsed(request), idempotency_key)]
    patience = _Patience(timeout)
    while True:
        try:
            taken = await submit_drafts(ledger, drafts)
        except (LedgerUnavailable, LedgerFull, QueueFull) as error:
            await asyncio.sleep(patience.pause(error))
        else:
            assert not isinstance(taken, Seen)
            return taken[0] if taken[0].version else await ledger.read(taken[0].id)


class _Patience:
    """How long to go on trying, and the pauses in between: they grow, with jitter."""

    def __init__(self, seconds: float) -> None:
        self._end, self._tries = time.monotonic() + seconds, 0

    def pause(self, error: LedgerError) -> float:
        """Seconds until the next try; the error itself once the time is over."""
        self._tries += 1
        pause = random.uniform(0.05, min(_LONGEST_PAUSE, 0.1 * 2**self._tries))
        if time.monotonic() + pause > self._end:
            raise error
        return pause


async def submit_drafts(ledger: Ledger, drafts: Sequence[Draft], push: Push | None = None) -> list[Build] | Seen:
    """Take in builds of one project, all or none; with a push, unless it was seen before."""
    project = drafts[0].request.project
    for _ in range(_ATTEMPTS):
        answer = await ledger.connection.run("submit", *ledger.submissions.arguments(project, drafts, push))
        try:
            return ledger.submissions.result(answer, project, drafts)
        except Stale:
            continue
    raise LedgerError(f"the policy of project {project!r} changes too quickly; try again")


def wait_for_build(build: str, *, timeout: float | None = None) -> Build:
    """Wait until a build has ended and return its record. TimeoutError after `timeout` seconds; NotFound."""

    async def wait() -> Build:
        async with _opened() as ledger:
            return await wait_for_build_async(build, ledger=ledger)

    async def bounded() -> Build:
        async with asyncio.timeout(timeout):
            return await wait()

    return asyncio.run(bounded())


async def wait_for_build_async(build: str, *, ledger: Ledger) -> Build:
    """Wait until a build has ended: subscribe, read the record, wait for a message. Bound it with `asyncio.timeout`."""
    async with ledger.changes(build) as changes:
        async for record in changes:
            if record.state.final:
                return record
    raise LedgerError(f"following build {build} ended before it did")


def _parsed(request: BuildRequest | Mapping[str, Any]) -> BuildRequest:
    if isinstance(request, BuildRequest):
        return request
    if not isinstance(request, Mapping):
        raise RequestInvalid(f"a request must be a BuildRequest or a mapping, not {type(request).__name__}")
    return BuildRequest.parse(dict(request))


class _opened:  # noqa: N801 - used as a function
    """A ledger for the length of a block."""

    async def __aenter__(self) -> Ledger:
        self._ledger = Ledger.open(settings())
        return self._ledger

    async def __aexit__(self, *_: object) -> None:
        await self._ledger.close()


class _Sync:
    def __init__(self, given: Settings) -> None:
        self.connection = SyncConnection(given.redis_url, Keys(given.prefix))
        self.submission = Submission(given.event_stream_length)
        self.process = os.getpid()

    def read(self, build: str) -> Build:
        fields = self.connection.command("HGETALL", self.connection.keys.build(build))
        if not fields:
            raise NotFound(f"the first build of this idempotency key, {build}, has been forgotten in the meantime; submit again")
        return decode(build, fields)


_lock = threading.Lock()
_current: _Sync | None = None


def _sync() -> _Sync:
    """This process's connection: opened at the first submit, and anew in a forked child."""
    global _current
    with _lock:
        if _current is None or _current.process != os.getpid():
            _current = _Sync(settings())
            atexit.register(_current.connection.close)
        return _current
