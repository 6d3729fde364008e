"""What comes after a failed attempt: again, later, with more memory, or not at all. Pure; the design's table of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ledger.build import Build, Reason, ReasonClass
from ledger.quantities import parse_memory, say_memory

BUDGETS = {ReasonClass.INFRASTRUCTURE: 4, ReasonClass.REGISTRY: 5, ReasonClass.MEMORY: 2, ReasonClass.NO_ROOM: 1_000_000}
"""How often a build is tried again for reasons of a class; the user's reasons and a stop never are."""
_UNKNOWN_BUDGET = 1
_BACKOFF = {
    ReasonClass.INFRASTRUCTURE: (2.0, 120.0),
    ReasonClass.REGISTRY: (10.0, 600.0),
    ReasonClass.MEMORY: (1.0, 10.0),
    ReasonClass.NO_ROOM: (10.0, 60.0),
}
"""Seconds: the first delay's upper end, and the most."""


@dataclass(frozen=True, slots=True)
class Again:
    """The build goes back to the queue."""

    delay: timedelta


def reasons_of(build: Build) -> list[Reason]:
    """Why the attempts so far ended, one per attempt that did not end well."""
    return [next(run.reason for run in attempt.runs if run.reason) for attempt in build.attempts if any(run.reason for run in attempt.runs)]


def next_try(build: Build, reason: Reason, *, retry_after: float | None, spread: Callable[[float, float], float]) -> Again | None:
    """Whether and when a build is tried again after its current attempt, already among its attempts, ended for `reason`.

    `spread(low, high)` is random.uniform, or a test's choice: full jitter, so that a thousand builds do not come back at once.
    """
    group = reason.reason_class
    used = sum(earlier.reason_class is group for earlier in reasons_of(build))
    budget = _UNKNOWN_BUDGET if reason is Reason.UNKNOWN else BUDGETS.get(group, 0)
    if used > budget:
        return None
    first, most = _BACKOFF[group]
    delay = spread(0.0, min(most, first * 2 ** max(0, used - 1)))
    return Again(timedelta(seconds=max(delay, retry_after or 0.0)))


def memory_for(build: Build, given: str | None, cap: str | None) -> str | None:
    """The memory of the next attempt: doubled for each attempt that ran out of it, up to the cap."""
    if given is None:
        return None
    doubled = parse_memory(given) * 2 ** sum(reason is Reason.OUT_OF_MEMORY for reason in reasons_of(build))
    limit = parse_memory(cap) if cap else 4 * parse_memory(given)
    return given if doubled <= parse_memory(given) else say_memory(min(doubled, max(limit, parse_memory(given))))
