"""The steps of a collection and what follows each of them. Pure, so that every failure at every step can be tried.

    look ▶ read ▶ hold ▶ drain ▶ close ▶ prove ▶ survey ▶ judge ▶ sweep ▶ prove again ▶ restart ▶ settle ▶ verify ▶ open ▶ prove open ▶ release ▶ done

A step is entered in the ledger before its effect begins, and each effect can be repeated. Once the registry may be read-only, every way
leads over `open` and `prove open`, which never give up. Once a sweep may have begun, every way there leads over `restart`, `settle` (no
sweeper lives, and no process that knew the swept blobs) and `verify`. A sweep begins only from `judge`, and only while its own effect finds
the registry proved read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal

from ledger.fields import Frozen

MOST_SWEEPS = 3
"""Sweeps that are begun: each but the last was cut off."""


class Purpose(StrEnum):
    """What a run is for."""

    COLLECT = "collect"
    PLAN = "plan"
    """A dry run alone, while the registry goes on."""
    MEND = "mend"
    """Whether a run that is no more has left it read-only; if so, make it read-write."""


class Step(StrEnum):
    """Where a collection stands."""

    LOOK = "look"  # is it one that can be collected, and is it as we know it
    READ = "read"  # every tag can be read: what cannot be would end the run when the registry is read-only
    HOLD = "hold"  # builds that write to it wait from here on
    DRAIN = "drain"  # those that run end
    CLOSE = "close"  # it is told to be read-only: from here on it may be
    PROVE = "prove"  # every process of it refuses uploads
    SURVEY = "survey"  # what every tag holds is read and kept, to be verified after
    JUDGE = "judge"  # a dry run deletes nothing of that
    SWEEP = "sweep"
    PROVE_AGAIN = "prove_again"  # the same processes refuse uploads: they did so all the time
    RESTART = "restart"  # it forgets what blobs it knew; what was executed in it ends
    SETTLE = "settle"  # the new processes are up, and no sweeper lives
    VERIFY = "verify"  # all that was there is there
    OPEN = "open"
    PROVE_OPEN = "prove_open"
    RELEASE = "release"
    DONE = "done"


_ORDER = tuple(Step)
_NEXT = dict(pairwise(_ORDER))
HELD = frozenset(_ORDER[_ORDER.index(Step.HOLD) : _ORDER.index(Step.RELEASE)])
"""While a run is at these, its registry is held."""
_BEFORE_CLOSE = frozenset({Step.HOLD, Step.DRAIN})
_CLOSED = frozenset({Step.CLOSE, Step.PROVE, Step.SURVEY, Step.JUDGE})
_SWEPT = frozenset({Step.SWEEP, Step.PROVE_AGAIN})
_NEVER_GIVES_UP = frozenset({Step.RESTART, Step.SETTLE, Step.OPEN, Step.PROVE_OPEN, Step.RELEASE})
PATIENCE = {
    Step.LOOK: timedelta(minutes=5),
    Step.READ: timedelta(minutes=10),
    Step.HOLD: timedelta(minutes=5),
    Step.CLOSE: timedelta(minutes=10),
    Step.PROVE: timedelta(minutes=10),
    Step.SURVEY: timedelta(minutes=3),
    Step.JUDGE: timedelta(hours=6),
    Step.SWEEP: timedelta(minutes=30),  # without a proof, or without word of the sweep; the site ends one that takes too long
    Step.PROVE_AGAIN: timedelta(minutes=10),
    Step.VERIFY: timedelta(minutes=5),
}
"""How long a step is tried, without getting on, before the run gives up. `drain` has the settings' patience; those that are not here have no end."""


class DryRun(Frozen):
    """What a sweep would delete."""

    marked: int
    """Blobs that the registry knows to be used."""
    eligible: int
    """Blobs that go."""
    bytes: int
    """Their sizes, as far as the registry tells."""
    unsized: int = 0
    """Of how many it does not."""


class Verified(Frozen):
    """What was read back."""

    repositories: int
    manifests: int
    blobs: int


class Collection(Frozen):
    """How far a run has come: what the ledger keeps of it."""

    schema_version: Literal[1] = 1
    registry: str
    purpose: Purpose
    run: str
    """A name of the run, in what it leaves outside: annotations, labels, jobs."""
    begun: datetime
    step: Step = Step.LOOK
    entered: datetime
    """Since when the step has not got on."""
    waits: str | None = None
    """What the step waits for."""
    trouble: str | None = None
    """Why the run gave up, or what is wrong with the registry; it is on its way back."""
    closed: bool = False
    """It may be read-only by us."""
    sweeps: int = 0
    """Sweeps begun."""
    sweeping: bool = False
    """One was begun, and how it ended is not known."""
    swept: bool = False
    witness: tuple[str, ...] = ()
    """The registry's processes that were proved read-only."""
    probe: str | None = None
    """A repository of it, as found by `look`: the one at which uploads are asked for."""
    dry: DryRun | None = None
    verified: Verified | None = None
    """Of `survey`: what was read so far; of `verify` and after it: what was read back."""
    cursor: str | None = None
    """The piece of a repository up to which the step has come: `REPOSITORY:TAG`."""

    @property
    def failed(self) -> bool:
        return self.trouble is not None


@dataclass(frozen=True, slots=True)
class Well:
    """The step is done."""

    witness: tuple[str, ...] | None = None
    dry: DryRun | None = None
    verified: Verified | None = None
    probe: str | None = None
    left_over: bool = False
    """Of `look`: a run that is no more has left its mark on the registry."""


@dataclass(frozen=True, slots=True)
class More:
    """Of `read`, `survey` and `verify`: so far it is well."""

    cursor: str
    verified: Verified


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet; look again."""

    why: str
    goes_on: bool = False
    """What is waited for is seen to go on, so patience counts from now."""


@dataclass(frozen=True, slots=True)
class No:
    """It cannot be, or must not go on."""

    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Of `sweep`: it was cut off, and what it did is not known."""

    why: str


Finding = Well | More | Wait | No | Lost


def begin(registry: str, purpose: Purpose, run: str, now: datetime) -> Collection:
    return Collection(registry=registry, purpose=purpose, run=run, begun=now, entered=now)


def before(state: Collection) -> Collection:
    """What is written before the step's effect begins."""
    if state.step is Step.CLOSE:
        return _with(state, closed=True)
    if state.step is Step.SWEEP and not state.sweeping:
        return _with(state, sweeping=True, sweeps=state.sweeps + 1)
    return state


def after(state: Collection, finding: Finding, now: datetime, drain: timedelta) -> Collection:
    """Where the run stands after what its step's effect found. `drain`: how long running builds are waited for."""
    match finding:
        case Well():
            return _go_on(state, finding, now)
        case More(cursor=cursor, verified=verified):
            return _with(state, cursor=cursor, verified=verified, waits=None, entered=now)
        case Lost(why=why):
            return _enter(state, Step.RESTART, now, waits=f"{why}; it is restarted before anything else")
        case No(why=why):
            return _give_up(state, why, now)
        case Wait(why=why, goes_on=True):
            return _with(state, waits=why, entered=now)
        case Wait(why=why):
            patience = drain if state.step is Step.DRAIN else PATIENCE.get(state.step)
            if patience is not None and now - state.entered > patience:
                return _give_up(state, f"{why}, for more than {patience}", now)
            return _with(state, waits=why)


def _go_on(state: Collection, found: Well, now: datetime) -> Collection:
    learned: dict[str, Any] = {
        name: value for name in ("witness", "dry", "verified", "probe") if (value := getattr(found, name)) is not None
    }
    step = _NEXT[state.step]
    match state.step:
        case Step.LOOK if found.left_over:
            # Nobody knows how far that run had come: it may have swept, and its sweeper may live.
            learned["trouble"] = "a run that is no more had left it read-only"
            learned["closed"] = True
            step = Step.HOLD
        case Step.LOOK if state.purpose is Purpose.MEND:
            step = Step.DONE
        case Step.LOOK if state.purpose is Purpose.PLAN:
            step = Step.SURVEY
        case Step.HOLD if state.closed:
            step = Step.RESTART
        case Step.JUDGE if state.purpose is Purpose.PLAN:
            step = Step.DONE
        case Step.JUDGE if found.dry is not None and not found.dry.eligible and not state.sweeps:
            step = Step.OPEN
        case Step.JUDGE if state.dry is not None:
            learned["dry"] = state.dry  # a sweep that was cut off has freed some of it: the first dry run tells of all
        case Step.SWEEP:
            learned |= {"sweeping": False, "swept": True}
        case Step.SETTLE:
            learned["sweeping"] = False
            again = not state.failed and not state.swept and state.sweeps < MOST_SWEEPS
            if not state.failed and not state.swept and not again:
                learned["trouble"] = f"{state.sweeps} sweeps were cut off; with `how: job` a sweep outlives its collector"
            step = Step.PROVE if again else Step.VERIFY
        case _:
            pass
    return _enter(state, step, now, **learned)


def _give_up(state: Collection, why: str, now: datetime) -> Collection:
    told = state.trouble or f"{state.step.value.replace('_', ' ')}: {why}"
    step = state.step
    if step in _NEVER_GIVES_UP:
        return _with(state, waits=why)
    if step is Step.VERIFY:
        found = f"verify: {why}"
        return _enter(state, Step.OPEN, now, trouble=found if state.trouble in (None, found) else f"{state.trouble}; {found}")
    if step in (Step.LOOK, Step.READ) or (state.purpose is Purpose.PLAN and not state.closed):
        return _enter(state, Step.DONE, now, trouble=told)
    if step in _BEFORE_CLOSE:
        # A registry that a run has left read-only is mended even where builds cannot be held.
        return _enter(state, Step.RESTART if state.closed else Step.RELEASE, now, trouble=told)
    if step in _SWEPT or (step in _CLOSED and state.sweeps):
        return _enter(state, Step.RESTART, now, trouble=told)
    return _enter(state, Step.OPEN, now, trouble=told)


def _enter(state: Collection, step: Step, now: datetime, **changes: Any) -> Collection:
    return _with(state, **{"step": step, "entered": now, "waits": None, "cursor": None, **changes})


def _with(state: Collection, **changes: Any) -> Collection:
    return state.model_copy(update=changes)
