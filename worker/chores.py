"""Going on with a chore: its kind's bits, one after another, each under the chore's claim, until it has ended, has to wait, or the time is up.

A bit does a little of the work, writes what it did with where the chore stands (`Claim.write`), and asks `Claim.hold` before each request
that changes anything outside. So a bit may be killed at any place: the next begins from what was written, and repeats at most one item.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

import structlog

from ledger.chores import ChoreState, Claim, Command
from ledger.errors import ChoreLost, CrabpotError
from worker.place import Place

log = structlog.get_logger()
_SECONDS = 120.0
"""After which a worker lets a chore go, so that its other steps get on; another nudge goes on with it."""
_HEARTBEAT = 10.0
_LONGEST = timedelta(minutes=10)
"""Between two tries of a chore that goes wrong again and again."""


@dataclass(frozen=True, slots=True)
class Next:
    """What is to become of a chore after a bit; made by the functions below."""

    after: timedelta | None = timedelta(0)
    state: ChoreState = ChoreState.WAITING
    said: str = ""
    gives_way: bool = False
    commands: tuple[Command, ...] = ()
    events: tuple[str, ...] = ()


GO_ON = Next()
"""There is more to do at once."""


def later(after: timedelta, said: str, *, gives_way: bool = False) -> Next:
    """Go on after a while; `gives_way`: other chores of the registry may go on meanwhile."""
    return Next(after, said=said, gives_way=gives_way)


def done(said: str, *, commands: Sequence[Command] = (), events: Sequence[str] = ()) -> Next:
    """It has ended; with Redis commands on keys of the ledger, and what is told, in the call that writes so."""
    return Next(None, ChoreState.DONE, said, commands=tuple(commands), events=tuple(events))


def stopped(why: str) -> Next:
    """Do no more until somebody starts it again."""
    return Next(None, ChoreState.STOPPED, why)


Bit = Callable[[Place, Claim], Awaitable[Next]]
"""A kind of chore: does a bit of it. A retryable CrabpotError is tried again after a growing while; another stops the chore."""


async def go_on(place: Place, name: str, kinds: Mapping[str, Bit], *, seconds: float = _SECONDS) -> None:
    """Go on with a chore for a while, where it is not another's. LedgerError: the ledger cannot be had; the chore is due again by itself."""
    claim = await place.ledger.chores.claim(name)
    if isinstance(claim, str):
        log.info("chore_not_taken", chore=name, why=claim)
        return
    bit = kinds.get(claim.chore.kind)
    try:
        if bit is None:
            await claim.end(ChoreState.STOPPED, f"this crabpot knows no chore of the kind {claim.chore.kind}")
        else:
            await _work(place, claim, bit, monotonic() + seconds)
    except ChoreLost:
        log.info("chore_lost", chore=name)


async def _work(place: Place, claim: Claim, bit: Bit, end: float) -> None:
    try:
        async with held(claim):
            while (found := await bit(place, claim)) == GO_ON and monotonic() < end:
                pass
    except ChoreLost:
        raise
    except Exception as error:
        await _wrong(claim, error)
        return
    if found.state is ChoreState.WAITING:
        await claim.let_go(found.after or timedelta(0), found.said, gives_way=found.gives_way)
    else:
        await claim.end(found.state, found.said, commands=found.commands, events=found.events)
    log.info("chore", chore=claim.chore.name, state=found.state, said=found.said)


async def _wrong(claim: Claim, error: Exception) -> None:
    if isinstance(error, CrabpotError) and not error.retryable:
        log.warning("chore_stopped", chore=claim.chore.name, error=str(error))
        await claim.end(ChoreState.STOPPED, str(error))
        return
    tries = claim.chore.tries + 1
    pause = min(_LONGEST, timedelta(seconds=max(2.0 ** min(tries, 10), getattr(error, "retry_after", None) or 0.0)))
    if isinstance(error, CrabpotError):
        log.warning("chore_again", chore=claim.chore.name, error=str(error), tries=tries)
    else:
        log.error("chore_again", chore=claim.chore.name, tries=tries, exc_info=error)
    await claim.let_go(pause, str(error) or type(error).__name__, tries=tries)


@asynccontextmanager
async def held(claim: Claim) -> AsyncIterator[None]:
    """Hold a claim while something goes on that writes nothing for long, such as reading a registry. ChoreLost ends the block."""
    task = asyncio.current_task()
    assert task is not None
    lost: list[ChoreLost] = []

    async def beat() -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            try:
                await claim.hold()
            except ChoreLost as error:
                lost.append(error)
                task.cancel()
                return
            except CrabpotError as error:  # the ledger is away: the next write says whether the claim still stands
                log.warning("claim_not_held", chore=claim.chore.name, error=str(error))

    beating = asyncio.create_task(beat())
    try:
        yield
    except asyncio.CancelledError:
        if lost and task.uncancel() == 0:
            raise lost[0] from None
        raise
    finally:
        beating.cancel()
