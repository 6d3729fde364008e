"""Why a queued build waits, who is in its way, and when it may start: from one look at the queue. Pure but for the shape of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Any

from ledger.build import Estimate, moment
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

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Waiting | None:
        """From the answer of waiting.lua; None where the build does not wait any more."""
        if not answer:
            return None
        place, standings, took = answer
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
        )

    def say(self, not_before: datetime | None) -> str:
        paused = next((standing for standing in self.standings if standing.paused), None)
        if paused:
            end = f"`crabpot resume {paused.scope}` ends it" if paused.scope.name else "`crabpot resume` ends it"
            return f"a pause of {paused.scope} since {paused.paused:%Y-%m-%d %H:%M:%S} UTC; {end}"
        if self.position is None:
            return f"a retry's delay, until {not_before:%H:%M:%S} UTC" if not_before else "its turn"
        before = f"{self.position} of the project go before it"
        # The narrowest first: a full key is what its owner can do most about.
        full = next((standing for standing in reversed(self.standings) if standing.full), None)
        return f"{full.say()}; {before}" if full else f"its turn; {before}"

    def estimate(self, now: datetime, not_before: datetime | None) -> Estimate | None:
        """When it starts and ends, each as a range, if builds go on as the project's recent ones did. None: too few of them, or a pause.

        As many at once as the narrowest limit allows are taken to run all the time; the range is that of the middle half of durations.
        """
        if len(self.durations) < _ENOUGH or any(standing.paused for standing in self.standings):
            return None
        low, _, high = quantiles(self.durations, n=4, method="inclusive")
        full = any(standing.full for standing in self.standings)
        width = min((standing.limit for standing in self.standings if standing.limit is not None), default=1)
        if not width:
            return None
        ahead = self.position or 0
        soonest = ahead / width * low
        latest = (ahead + (1 if full else 0)) / width * high + (high if full else 0.0)
        begin = max(now, not_before) if not_before else now
        return Estimate(
            starts_after=begin + timedelta(seconds=soonest),
            starts_before=begin + timedelta(seconds=latest),
            ends_after=begin + timedelta(seconds=soonest + low),
            ends_before=begin + timedelta(seconds=latest + high),
        )
