"""Steps killed with -9 at their injection points, or made to fail there, or stopped and resumed much later: the promises hold."""

from __future__ import annotations

import signal

import pytest

from tests.faults.points import Point, Side
from tests.faults.promises import assert_promises, side_by_side
from tests.faults.scenes import SCENES, begun, comes_to_a_stop, comes_to_its_end, passed


@pytest.mark.parametrize("name", SCENES)
async def test_a_step_that_is_killed(make_plant, forks, name):
    """On both sides of every effect. Beside a read, or another nudge, only at the first: it leaves what the effect before it left."""
    scene = SCENES[name]

    async def kill(point: Point) -> None:
        async with begun(scene, make_plant, forks, (point, "kill")) as (plant, child):
            await comes_to_its_end(plant, child)
        # What a leader does by the clock may not come to its n-th time once more.
        assert child.code == -signal.SIGKILL
        assert point in child.passed or scene.step == "lead"

    found = await passed(scene, make_plant, forks)
    effects = [point for point in found if point.is_effect and not point.is_nudge]
    others = [point for point in found if point not in effects and point.number == 1 and point.side is Side.BEFORE]
    await side_by_side([*effects, *others], kill)


@pytest.mark.parametrize("name", ["submit", "dispatch", "finish", "cancel", "lead"])
async def test_a_step_whose_call_fails(make_plant, forks, name):
    """The first call of each kind: an effect that is done and unheard, a read. A worker's step may fail with it; a leader goes on."""
    scene = SCENES[name]

    async def fail(point: Point) -> None:
        async with begun(scene, make_plant, forks, (point, "fail")) as (plant, child):
            await comes_to_its_end(plant, child)
        assert point in child.passed or scene.step == "lead"

    found = await passed(scene, make_plant, forks)
    await side_by_side([point for point in found if point.number == 1 and point.is_effect == (point.side is Side.AFTER)], fail)


@pytest.mark.parametrize("name", ["dispatch", "finish", "lead"])
async def test_a_step_that_is_stopped_and_resumed_when_all_is_over(make_plant, forks, name):
    """Before each effect (a leader: the first of its kind). It wakes up in a world that has gone on without it, and changes nothing there;
    a late pod goes at once.
    """
    scene = SCENES[name]

    async def stop(point: Point) -> None:
        async with make_plant() as plant:
            arguments = await scene.before(plant)
            child = await forks.start(scene.step, plant.environment, arguments, (point, "stop"))
            stopped = await comes_to_a_stop(plant, child)
            await plant.stop()
            plant.start()
            builds = [build.id for build in (await plant.ledger.page()).builds]
            await plant.settles(*builds)
            before = {name: len(uids) for name, uids in plant.pods.store.created.items()}
            assert stopped or scene.step == "lead"
            child.signal(signal.SIGCONT)
            await child.ended()
            await plant.settles(*builds)
            await plant.tags_settle()
            late = {name for name, uids in plant.pods.store.created.items() if len(uids) > before[name]}
            assert not late or scene.step == "dispatch"
            assert ("FenceLost" in child.failure) == (scene.step == "lead")
            await assert_promises(plant, states=scene.ends, late=late)

    found = await passed(scene, make_plant, forks)
    effects = [point for point in found if point.is_effect and point.side is Side.BEFORE]
    await side_by_side([point for point in effects if scene.step != "lead" or point.number == 1], stop, at_once=20)
