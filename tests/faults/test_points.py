"""Injection points are where they are said to be, do what they are told, and are gone after the block; children die, stop and go on."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta

import pytest

import tests.faults.points
from ledger.errors import LedgerUnavailable, RegistryUnavailable
from tests.faults.points import Point, Side, at, points
from tests.faults.scenes import SCENES, passed

MINUTE = timedelta(minutes=1)


async def test_points_have_the_names_that_are_documented(make_plant, forks):
    found = [point for name in ("dispatch", "finish", "lead") for point in await passed(SCENES[name], make_plant, forks)]
    names = {"ledger.transition", "ledger.hgetall", "kubernetes.create", "kubernetes.watch", "registry.put_manifest", "broker.finish"}
    assert {(name, side) for name in names for side in Side} <= {(point.name, point.side) for point in found}
    assert [Point.parse(str(point)) for point in found] == found
    assert not any(point.is_effect for point in found if point.name in ("ledger.hgetall", "kubernetes.watch", "registry.get_manifest"))


async def test_a_point_is_told_of_counted_and_left(ledger):
    told: list[str] = []
    with points(lambda point: told.append(str(point))):
        await ledger.admit(MINUTE)
        await ledger.admit(MINUTE)
    await ledger.admit(MINUTE)
    assert told == [f"ledger.admit:{side}:{number}" for number in (1, 2) for side in ("before", "after")]


@pytest.mark.parametrize(("side", "done"), [(Side.BEFORE, False), (Side.AFTER, True)])
async def test_a_call_fails_undone_or_done(ledger, side, done):
    with points(at(Point("ledger.lease", side, 1), "fail", lambda _: None)), pytest.raises(LedgerUnavailable, match="made to fail"):
        await ledger.leases.take("watch", "me", MINUTE)
    assert (await ledger.leases.holder("watch") == "me") == done


async def test_a_registrys_failure_is_a_registrys(make_plant):
    async with make_plant() as plant:
        client = plant.place.registries.client("demo", await plant.place.project("demo"), plant.host)
        with points(at(Point("registry.ping", Side.AFTER, 1), "fail", lambda _: None)), pytest.raises(RegistryUnavailable):
            await client.ping(plant.host)


async def test_a_call_is_delayed_and_others_are_not(ledger, monkeypatch):
    monkeypatch.setattr(tests.faults.points, "DELAY", 0.5)
    begun = time.monotonic()
    with points(at(Point("ledger.admit", Side.BEFORE, 1), "delay", lambda _: None)):
        slow = asyncio.create_task(ledger.admit(MINUTE))
        await ledger.slots()
        assert not slow.done()
        await slow
    assert time.monotonic() - begun >= 0.5


async def test_a_child_is_stopped_goes_on_and_is_killed(make_plant, forks):
    first = Point("ledger.submit", Side.BEFORE, 1)
    async with make_plant() as plant:
        arguments = {"request": plant.request(), "key": "once"}
        stopped = await forks.start("submit", plant.environment, arguments, (first, "stop"))
        assert await stopped.stopped()
        assert not (await plant.ledger.page()).builds
        stopped.signal(signal.SIGCONT)
        assert await stopped.ended() == 0
        assert len((await plant.ledger.page()).builds) == 1
        killed = await forks.start("submit", plant.environment, arguments, (first, "kill"))
        assert (await killed.ended(), killed.passed) == (-signal.SIGKILL, [first])
        failed = await forks.start("submit", plant.environment, arguments, (first, "fail"))
        assert (await failed.ended(), "LedgerUnavailable" in failed.failure) == (1, True)
