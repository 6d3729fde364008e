"""A collection's worker killed with -9 at each of its effects, or stopped there and woken when its run is over, or another's under way: the registry
ends read-write and whole, its garbage goes, and no hold and no sweep is left. On a real docker-registry, which restarts as a run tells it to.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import pytest

from tests.faults.collect_scene import Kept, Scene, collect_scenes, kept_registries
from tests.faults.points import Point, Side
from tests.faults.promises import side_by_side
from tests.faults.set_back import Scenes
from worker.collect.steps import Step

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Kept]]:
    with kept_registries(tmp_path_factory.mktemp("registries")) as made:
        yield made


@pytest.fixture
async def scenes(settings, kept, _quick) -> AsyncIterator[Scenes]:
    async with collect_scenes(settings, kept) as made:
        yield made


async def passed_of(scenes: Scenes) -> list[Point]:
    async with scenes.take() as scene:
        return await scene.passed()


def is_asked(passed: list[Point]) -> list[Point]:
    """Where a worker has just been told that the run is still its own, before it changes something outside."""
    return [point for point in passed if point.name == "ledger.chore_hold" and point.side is Side.AFTER]


_OF_CLAIMS = {Point(name, side, 1) for name in ("ledger.zadd", "ledger.chore_claim") for side in Side}


def changes(passed: list[Point]) -> list[Point]:
    """Both sides of what is worth a kill. No case is a claim that is taken or given back, for nobody waits for that worker; nor, but for the first,
    a hold that is prolonged or a registry that is asked whether it takes uploads.
    """
    given_back = {before for before, after in pairwise(passed) if after.name == "ledger.together"}
    effects = [point for point in passed if point.is_effect and point not in given_back | _OF_CLAIMS]
    return [point for point in effects if point.name.startswith(("site.", "ledger.chore_write")) or point.number == 1]


async def test_a_worker_that_is_killed(scenes, forks):
    """After each effect, which is before the next one; before the first, and before each that needs the claim just asked for."""

    async def kill(point: Point) -> None:
        async with scenes.take() as scene:
            child = await scene.start(forks, (point, "kill"))
            # A registry that restarts slowly costs a look more, and then there is one write more: never less.
            assert await child.ended() == -signal.SIGKILL, child.failure
            await scene.goes_on()
            await scene.check()

    passed = await passed_of(scenes)
    cases = [*(point for point in changes(passed) if point.side is Side.AFTER), *is_asked(passed)]
    assert {point.name for point in cases} >= {f"site.{call}" for call in ("close", "sweep", "restart", "settled", "open")}
    await side_by_side(cases, kill, at_once=scenes.at_once)


async def stopped_at(scene: Scene, forks, point: Point):
    child = await scene.start(forks, (point, "stop"))
    assert await child.stopped(), child.failure
    await scene.goes_on()
    await scene.check()
    return child


async def test_a_worker_that_is_stopped_and_wakes_up_when_its_run_is_over(scenes, forks):
    """It changes nothing more: no word to close, no sweep, no restart, no hold."""

    async def stop(point: Point) -> None:
        async with scenes.take() as scene:
            child = await stopped_at(scene, forks, point)
            process = scene.registry.process
            child.signal(signal.SIGCONT)
            assert await child.ended() == 0, child.failure
            await scene.check()
            assert scene.registry.process == process

    await side_by_side(stops(await passed_of(scenes)), stop, at_once=scenes.at_once)


async def test_a_worker_that_is_stopped_and_wakes_up_in_the_next_run(scenes, forks):
    """What that run has read, closed and holds stays as it is: it ends as if nobody had slept."""

    async def stop(point: Point) -> None:
        async with scenes.take() as scene:
            child = await stopped_at(scene, forks, point)
            await scene.again(Step.SWEEP)
            process = scene.registry.process
            child.signal(signal.SIGCONT)
            assert await child.ended() == 0, child.failure
            assert scene.registry.process == process
            await scene.goes_on()
            await scene.check(runs=2)

    passed = await passed_of(scenes)
    holds = [point for point in stops(passed) if point.name in ("ledger.hold", "ledger.unhold")]
    evidence = [after for before, after in pairwise(passed) if before.name == "ledger.hget" and after.name == "ledger.chore_write"]
    assert holds
    assert evidence
    # The other half is tried where nobody has begun another run.
    await side_by_side([*holds, *evidence, *is_asked(passed)[::2]], stop, at_once=scenes.at_once)


def stops(passed: list[Point]) -> list[Point]:
    """Before each kind of change, and where the claim was just asked for: what goes out of a worker that was told so."""
    return [
        *(
            point
            for point in changes(passed)
            if point.side is Side.BEFORE and point.name.startswith(("site.", "ledger.hold", "ledger.unhold"))
        ),
        *is_asked(passed),
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_that_is_gone_in_the_middle_of_a_sweep(scenes, forks, number):
    """Its sweeper lives on, and is ended before the registry is swept anew."""
    async with scenes.take() as scene:
        os.mkfifo(scene.pipe)
        child = await scene.start(forks, None)
        async with asyncio.timeout(20):
            while not (sweeps := [sweep for sweep in scene.sweeps() if "--dry-run" not in sweep]):
                await asyncio.sleep(0.02)
        child.signal(number)
        await (child.ended() if number == signal.SIGKILL else child.stopped())
        assert sweeps
        scene.is_readable()
        scene.pipe.unlink()
        await scene.goes_on()
        await scene.check()
        if number == signal.SIGSTOP:
            child.signal(signal.SIGCONT)
            assert await child.ended() == 0, child.failure
            await scene.check()
