"""How fast a registry is asked: a budget for each, shared by all who ask it, and the patience of those who ask.

A registry that answers 429 is left alone for as long as it says, by everybody, and then asked half as fast; it gets its speed back by and
by. Users of other tools were locked out in the middle of a clean-up because each request was tried on its own.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ledger.errors import MOST_PATIENCE, RateLimited

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds to leave a registry alone that asks for fewer requests and does not say for how long: doubled each time in a row."""
_SLOWER, _SLOWEST = 0.02, 10.0
"""Seconds between two requests after a first 429 where no rate was set, and at most."""
_RECOVERY = 0.95
"""What each good answer leaves of the slowing down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a request that is safe to repeat is sent at most, and how many seconds one wait may take."""

    tries: int = 1
    longest: float = 0

    def pause(self, tried: int, asked: float | None) -> float | None:
        """Seconds to wait after the `tried`th try failed: what the registry asked for, else growing with full jitter. None: give up."""
        if tried >= self.tries or (asked or 0) > self.longest:
            return None
        return asked if asked is not None else random.uniform(0, min(self.longest, 2.0 ** (tried - 1)))


IMPATIENT = Patience()
"""For steps that are repeated anyway: they must not hold up a worker."""
PATIENT = Patience(tries=6, longest=60)
"""For the long work of the night, and for people's commands."""


class Budget:
    """What may be asked of one registry: `at_once` requests at a time, `per_second` of them a second (None: as many as it takes)."""

    def __init__(
        self,
        *,
        at_once: int = 32,
        per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._at_once = at_once
        self._turns = asyncio.Semaphore(at_once)
        self._set = self._interval = 1 / per_second if per_second else 0.0
        self._next = self._held_until = 0.0
        self._refusals = 0

    def tighten(self, *, at_once: int | None, per_second: float | None) -> None:
        """Hold to these limits too: of several who name some, the strictest counts."""
        if per_second and 1 / per_second > self._set:
            self._set = 1 / per_second
            self._interval = max(self._interval, self._set)
        if at_once and at_once < self._at_once:
            self._at_once, self._turns = at_once, asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def turn(self, patience: Patience) -> AsyncIterator[None]:
        """Wait until one more request may be sent, and count it as under way meanwhile. RateLimited where that takes longer than the patience."""
        async with self._turns:
            await self.pass_gate(patience)
            yield

    async def pass_gate(self, patience: Patience) -> None:
        """Wait for the rate and for what the registry asked for, not for others under way: a transfer would block the one that feeds it."""
        while (held := self._held_until - self._clock()) > 0:
            if held > patience.longest:
                raise RateLimited("the registry has asked for fewer requests; it is left alone until then", retry_after=math.ceil(held))
            await self._sleep(held)
        if self._interval:
            now = self._clock()
            turn = max(self._next, now)
            self._next = turn + self._interval
            if turn > now:
                await self._sleep(turn - now)

    def hold(self, seconds: float | None) -> None:
        """The registry asks for fewer requests: none for so long (it did not say: for a while), and slower then."""
        self._refusals += 1
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (self._refusals - 1)) if seconds is None else seconds
        if self._clock() >= self._held_until:  # of many refused at the same moment only the first slows down
            self._interval = min(_SLOWEST, max(2 * self._interval, _SLOWER))
        self._held_until = max(self._held_until, self._clock() + min(wait, MOST_PATIENCE))

    def recover(self) -> None:
        """The registry has answered well."""
        self._refusals = 0
        if self._interval > self._set:
            self._interval *= _RECOVERY
            if self._interval < max(self._set, _SLOWER / 10):
                self._interval = self._set


class Budgets:
    """A budget for each host, shared by the clients that are given this."""

    def __init__(self) -> None:
        self._known: dict[str, Budget] = {}

    def of(self, host: str) -> Budget:
        """The budget of `host[:port]`."""
        budget = self._known.get(host)
        if budget is None:
            budget = self._known[host] = Budget()
        return budget
