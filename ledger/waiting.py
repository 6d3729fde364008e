"""Why a queued build waits, who is in its way, and when it may start: from one look at the queue. Pure but for the shape of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Any

from ledger.build import Estimate, moment
from ledger.holds import Hold
from ledger.limits import Scope

_ENOUGH = 3
"""Durations below which no estimate is made."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A scope in which a build needs a slot."""

    scope: Scope
    taken: int
    limit: int | None
    paused: datetime | None
    holders: tuple[str, ...]
    """Builds that hold slots of a full scope; not all of many."""

    @property
    def full(self) -> bool:
        return self.limit is not None and self.taken >= self.limit

    def say(self) -> str:
        name = {
            "all": "the limit over all",
            "project": "the project's limit",
            "class": f"the limit of class {self.scope.name}",
            "keys": "the limit of its concurrency key",
        }[self.scope.kind]
        more = ", …" if self.taken > len(self.holders) else ""
        by = f" ({', '.join(self.holders)}{more})" if self.holders else ""
        return f"{name}: {self.taken} of {self.limit} run{by}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """What stands between a queued build and its start."""

    position: int | None
    """How many of its project go before it; None while it waits for a time."""
    standings: tuple[Standing, ...]
    durations: tuple[float, ...]
    """Seconds that recent builds of the project ran."""
    behind_key: int = 0
    """How many with its concurrency key go before it."""
    share: float = 1.0
    """The part of all slots that is the project's while as many others wait as now."""
    newer: str | None = None
    """The build of a newer push that makes it needless."""
    holds: tuple[Hold, ...] = ()
    """Of registries that it writes to."""

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Waiting | None:
        """From the answer of waiting.lua; None where the build does not wait any more."""
        if not answer:
            return None
        place, own, standings, took, weight, total, newer, held = answer
        return cls(
            None if place < 0 else place,
            tuple(
                Standing(
                    Scope.of(field.decode()),
                    taken,
                    None if limit < 0 else limit,
                    moment(paused) if paused else None,
                    tuple(dict.fromkeys(member.decode().split("/")[0] for member in members)),
                )
                for field, taken, limit, paused, members in standings
            ),
            tuple(int(milliseconds) / 1000 for milliseconds in took),
            own,
            float(weight) / max(float(weight), float(total)),
            newer.decode() or None,
            tuple(Hold.parse(host.decode(), hold.decode()) for host, hold in zip(held[::2], held[1::2], strict=True)),
        )

    def say(self, not_before: datetime | None) -> str:
        if self.newer:
            return f"its end: build {self.newer} is of a newer push of the same image"
        paused = next((standing for standing in self.standings if standing.paused), None)
        if paused:
            end = f"`crabpot resume {paused.scope}` ends it" if paused.scope.name else "`crabpot resume` ends it"
            return f"a pause of {paused.scope} since {paused.paused:%Y-%m-%d %H:%M:%S} UTC; {end}"
        if self.holds:
            return self.holds[0].say()
        if self.position is None:
            return f"a retry's delay, until {not_before:%H:%M:%S} UTC" if not_before else "its turn"
        before = f"{self.position} of the project go before it"
        # The narrowest first: a full key is what its owner can do most about.
        full = next((standing for standing in reversed(self.standings) if standing.full), None)
        return f"{full.say()}; {before}" if full else f"its turn; {before}"

    def estimate(self, now: datetime, not_before: datetime | None) -> Estimate | None:
        """When it starts and ends, each as a range, if builds go on as the project's recent ones did. None: too few of them, or it will
        not start as things are (a pause, a held registry, a limit of 0, a newer push).

        As many at once as the narrowest limit allows, and of what all share the project's part, are taken to run all the time. The
        ranges come from the middle half of how long builds ran.
        """
        if len(self.durations) < _ENOUGH or self.newer or self.holds or any(standing.paused for standing in self.standings):
            return None
        low, middle, high = quantiles(self.durations, n=4, method="inclusive")
        limits = {standing.scope.kind: standing.limit for standing in self.standings if standing.limit is not None}
        # Of what all share, the project has its part.
        width = min((limit if kind == "project" else limit * self.share for kind, limit in limits.items() if kind != "keys"), default=1.0)
        key = limits.get("keys", math.inf)
        if width <= 0 or key <= 0:
            return None
        full = any(standing.full for standing in self.standings)
        rounds = max((self.position or 0) / width, self.behind_key / key)
        soonest = rounds * low
        latest = (rounds + (1 / min(width, key) + 1 if full else 0.0)) * high
        begin = max(now, not_before) if not_before else now
        return Estimate(
            starts_after=begin + timedelta(seconds=soonest),
            starts_before=begin + timedelta(seconds=latest),
            ends_after=begin + timedelta(seconds=soonest + low),
            ends_before=begin + timedelta(seconds=latest + high),
            runs_for=middle,
            spread=(low, high),
        )
