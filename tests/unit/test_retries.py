"""What comes after a failed attempt, by class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.build import Attempt, PlatformRun, Reason, ReasonClass
from tests.requests import make_build
from worker.retries import BUDGETS, memory_for, next_try


def after(*reasons: Reason):
    attempts = tuple(
        Attempt(number=n, runs=(PlatformRun(platform="linux/amd64", pod="p", reason=reason),)) for n, reason in enumerate(reasons, 1)
    )
    return make_build(attempt=len(reasons), attempts=attempts)


def latest(low: float, high: float) -> float:
    return high


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.reason_class in (ReasonClass.USER, ReasonClass.STOPPED)])
def test_the_users_reasons_fail_at_once(reason):
    assert next_try(after(reason), reason, memory=None, retry_after=None, spread=latest) is None


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.reason_class in BUDGETS and reason is not Reason.UNKNOWN])
def test_the_others_are_tried_again_within_their_budget(reason):
    budget = BUDGETS[reason.reason_class]
    assert next_try(after(reason), reason, memory=None, retry_after=None, spread=latest) is not None
    assert next_try(after(*[reason] * budget), reason, memory=None, retry_after=None, spread=latest) is not None
    assert next_try(after(*[reason] * (budget + 1)), reason, memory=None, retry_after=None, spread=latest) is None


def test_unknown_is_tried_again_once():
    assert next_try(after(Reason.UNKNOWN), Reason.UNKNOWN, memory=None, retry_after=None, spread=latest)
    assert (
        next_try(after(Reason.POD_LOST, Reason.UNKNOWN, Reason.UNKNOWN), Reason.UNKNOWN, memory=None, retry_after=None, spread=latest)
        is None
    )
    assert next_try(after(*[Reason.POD_LOST] * 3, Reason.UNKNOWN), Reason.UNKNOWN, memory=None, retry_after=None, spread=latest)
    assert next_try(after(Reason.UNKNOWN, *[Reason.POD_LOST] * 4), Reason.POD_LOST, memory=None, retry_after=None, spread=latest)


@pytest.mark.parametrize("reason", [Reason.UNSCHEDULABLE, Reason.QUOTA])
def test_no_room_is_tried_for_ever_ever_less_often(reason):
    delays = []
    for times in (0, 1, 3, 10, 10_000):
        again = next_try(after(reason).model_copy(update={"no_room": times}), reason, memory=None, retry_after=None, spread=latest)
        assert again.behind is (reason is Reason.UNSCHEDULABLE)
        delays.append(again.delay.total_seconds())
    assert delays == [10.0, 20.0, 80.0, 300.0, 300.0]


def test_no_more_memory_is_no_reason_to_try_again():
    short = after(Reason.OUT_OF_MEMORY)
    short = short.model_copy(update={"attempts": (short.attempts[0].model_copy(update={"memory": "2Gi"}),)})
    assert next_try(short, Reason.OUT_OF_MEMORY, memory="4Gi", retry_after=None, spread=latest)
    assert next_try(short, Reason.OUT_OF_MEMORY, memory="2048Mi", retry_after=None, spread=latest) is None


def test_a_budget_is_its_classes_own():
    mixed = after(*[Reason.PUSH_FAILED] * 4, Reason.POD_LOST)
    assert next_try(mixed, Reason.POD_LOST, memory=None, retry_after=None, spread=latest)


@given(st.integers(1, 4), st.floats(0, 1))
def test_delays_are_jittered_grow_and_are_bounded(count, share):
    again = next_try(
        after(*[Reason.POD_LOST] * count),
        Reason.POD_LOST,
        memory=None,
        retry_after=None,
        spread=lambda low, high: low + share * (high - low),
    )
    assert 0 <= again.delay.total_seconds() <= min(120.0, 2.0 * 2 ** (count - 1))


def test_retry_after_is_honoured():
    again = next_try(after(Reason.RATE_LIMITED), Reason.RATE_LIMITED, memory=None, retry_after=77.0, spread=lambda low, high: low)
    assert again.delay.total_seconds() == 77.0


def test_memory_doubles_up_to_the_cap():
    assert memory_for(after(), "1Gi", None) == "1Gi"
    assert memory_for(after(Reason.OUT_OF_MEMORY), "1Gi", None) == "2048Mi"
    assert memory_for(after(Reason.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY), "1Gi", "3Gi") == "3072Mi"
    assert memory_for(after(Reason.OUT_OF_MEMORY), "4Gi", "3Gi") == "4096Mi"
    assert memory_for(after(Reason.OUT_OF_MEMORY), None, "3Gi") is None
