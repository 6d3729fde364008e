"""How fast a registry is asked: waits that it asks for, growing slowness after a 429, and the patience of who asks. On a clock of its own."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import RateLimited
from worker.registry.pace import IMPATIENT, PATIENT, Budget, Budgets, Patience


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now = max(self.now, self.now + seconds)
        await asyncio.sleep(0)


def budget(clock: Clock, **limits: float) -> Budget:
    return Budget(clock=clock, sleep=clock.sleep, **limits)  # type: ignore[arg-type]


async def spend(budget: Budget, times: int) -> None:
    for _ in range(times):
        async with budget.turn(PATIENT):
            pass


async def test_a_rate_is_kept():
    clock = Clock()
    await spend(budget(clock, per_second=4), 9)
    assert clock.now - 1000 == pytest.approx(2)


async def test_without_a_rate_nothing_waits():
    clock = Clock()
    await spend(budget(clock), 1000)
    assert clock.now == 1000


async def test_no_more_than_some_are_under_way_at_once():
    limited, under_way, most = Budget(at_once=3), 0, 0

    async def ask() -> None:
        nonlocal under_way, most
        async with limited.turn(PATIENT):
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(ask() for _ in range(20)))
    assert most == 3


async def test_all_leave_a_registry_alone_for_as_long_as_it_says():
    clock = Clock()
    limited = budget(clock)
    limited.hold(17)
    with pytest.raises(RateLimited) as caught:
        await limited.pass_gate(IMPATIENT)
    assert caught.value.retry_after == 17
    await limited.pass_gate(PATIENT)
    assert clock.now == 1017


async def test_after_a_429_it_is_asked_slower_and_faster_again_by_and_by():
    clock = Clock()
    limited = budget(clock, per_second=100)
    limited.hold(0)
    began = clock.now
    await spend(limited, 11)
    slowed = clock.now - began
    assert slowed == pytest.approx(0.2, rel=0.15)
    for _ in range(100):
        limited.recover()
    began = clock.now
    await spend(limited, 10)
    assert clock.now - began == pytest.approx(0.1, rel=0.15)


async def test_of_many_refused_at_once_only_the_first_slows_down():
    clock = Clock()
    limited = budget(clock, per_second=100)
    for _ in range(8):
        limited.hold(5)
    await spend(limited, 1)
    began = clock.now
    await spend(limited, 10)
    assert clock.now - began == pytest.approx(0.2)


async def test_a_429_without_a_time_is_waited_for_longer_each_time():
    clock = Clock()
    limited = budget(clock)
    waits = []
    for _ in range(8):
        before = clock.now
        limited.hold(None)
        await limited.pass_gate(PATIENT)
        waits.append(round(clock.now - before))
    assert waits[:3] == [1, 2, 4]
    assert waits[-1] <= 70


async def test_the_strictest_of_several_limits_counts():
    clock = Clock()
    limited = budget(clock, per_second=100)
    limited.tighten(at_once=2, per_second=10)
    limited.tighten(at_once=8, per_second=50)
    await spend(limited, 11)
    assert clock.now - 1000 == pytest.approx(1)
    assert limited._turns._value == 2


def test_a_host_has_one_budget():
    budgets = Budgets()
    assert budgets.of("a") is budgets.of("a")
    assert budgets.of("a") is not budgets.of("b")


@given(tried=st.integers(1, 50), asked=st.none() | st.floats(0, 1e9), tries=st.integers(1, 10), longest=st.floats(0, 100))
def test_patience_ends(tried, asked, tries, longest):
    pause = Patience(tries=tries, longest=longest).pause(tried, asked)
    if tried >= tries or (asked or 0) > longest:
        assert pause is None
    else:
        assert pause is not None
        assert 0 <= pause <= longest
        assert asked is None or pause == asked
