"""What comes after a failed attempt: again, later, with more memory, or not at all. Pure; the design's table of classes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from ledger.build import Again, Build, Reason, ReasonClass
from ledger.quantities import parse_memory, say_memory

BUDGETS = {ReasonClass.INFRASTRUCTURE: 4, ReasonClass.REGISTRY: 5, ReasonClass.MEMORY: 2}
"""How often a build is tried again for reasons of a class. The user's reasons and a stop never are; finding no room uses nothing up."""
UNKNOWN_BUDGET = 1
"""The same for an end that nobody can explain: it is counted by itself."""
_BACKOFF = {
    ReasonClass.INFRASTRUCTURE: (2.0, 120.0),
    ReasonClass.REGISTRY: (10.0, 600.0),
    ReasonClass.MEMORY: (1.0, 10.0),
    ReasonClass.NO_ROOM: (10.0, 300.0),
}
"""Seconds: the first delay's upper end, and the most."""
_GROWTH = 4
"""By how much memory may grow where the project says no cap."""


def reasons_of(build: Build) -> list[Reason]:
    """Why the attempts so far ended, one per attempt that did not end well."""
    return [next(run.reason for run in attempt.runs if run.reason) for attempt in build.attempts if any(run.reason for run in attempt.runs)]


def next_try(
    build: Build, reason: Reason, *, memory: str | None, retry_after: float | None, spread: Callable[[float, float], float]
) -> Again | None:
    """Whether and when a build is tried again after its current attempt, already among its attempts, ended for `reason`.

    `memory` is what the next attempt would be given (`memory_for`). `spread(low, high)` is random.uniform, or a test's choice: full jitter, so that a
    thousand builds do not come back at once.
    """
    group = reason.reason_class
    if group is ReasonClass.NO_ROOM:
        used = build.no_room + 1
    else:
        used = _used(build, reason)
        if used > (UNKNOWN_BUDGET if reason is Reason.UNKNOWN else BUDGETS.get(group, 0)):
            return None
        had = build.current.memory
        if reason is Reason.OUT_OF_MEMORY and had and memory and parse_memory(memory) <= parse_memory(had):
            return None  # the same again would end the same
    first, most = _BACKOFF[group]
    delay = max(spread(0.0, min(most, first * 2.0 ** min(used - 1, 20))), retry_after or 0.0)
    # What no node can take now lets those go first that may fit: else it would hold a slot in vain each time that it comes back.
    return Again(timedelta(seconds=delay), behind=reason is Reason.UNSCHEDULABLE)


def _used(build: Build, reason: Reason) -> int:
    """How many attempts ended for reasons of the same budget."""
    earlier = reasons_of(build)
    if reason is Reason.UNKNOWN:
        return earlier.count(Reason.UNKNOWN)
    return sum(other.reason_class is reason.reason_class and other is not Reason.UNKNOWN for other in earlier)


def memory_for(build: Build, given: str | None, cap: str | None) -> str | None:
    """The memory of the next attempt: what was given, doubled for each attempt that ran out of it, up to the cap."""
    if given is None:
        return None
    doubled = parse_memory(given) * 2 ** sum(reason is Reason.OUT_OF_MEMORY for reason in reasons_of(build))
    limit = parse_memory(cap) if cap else _GROWTH * parse_memory(given)
    return given if doubled <= parse_memory(given) else say_memory(min(doubled, max(limit, parse_memory(given))))
