"""Each chore of retention killed with -9 at each of its effects, or stopped there and resumed when all is over: it ends where it would have,
loses nothing, and tells each thing once. On both registries: one that deletes by digest only, and one that takes a tag away alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import pairwise

import pytest

from tests.faults.points import Point, Side
from tests.faults.promises import side_by_side
from tests.faults.retention_scene import CHORES, Stage
from tests.faults.set_back import Scenes
from tests.integration.registry_kinds import KINDS

pytestmark = pytest.mark.thorough

MakeScenes = Callable[[str], AbstractAsyncContextManager[Scenes]]


@pytest.fixture(scope="module", params=["distribution-2.8", "distribution-3"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder, kind = tmp_path_factory.mktemp("registry"), KINDS[request.param]
    with kind.run(folder) as server:
        yield Stage(server, folder / "data", kind.untags)


@pytest.fixture
def make_scenes(settings, stage: Stage, _quick) -> MakeScenes:
    """A function that opens scenes before a chore of a kind."""
    return partial(stage.scenes, settings)


async def effects_of(scenes: Scenes) -> list[Point]:
    async with scenes.take() as scene:
        return await scene.effects()


def is_request(point: Point) -> bool:
    """Whether it changes the registry."""
    return point.is_effect and point.name.startswith("registry.")


def is_a_case(point: Point, stage: Stage) -> bool:
    """Whether it is worth a kill: the ledger is the same beside each registry, and most of what is written there is `chore_write`."""
    return is_request(point) or (not stage.untags and (point.name == "ledger.chore_write" or point.number == 1))


@pytest.mark.parametrize("kind", CHORES)
async def test_a_chore_that_is_killed(make_scenes, stage, forks, kind):
    """After each effect, which is before the next one; and before the first. What a survey remembers it reads again: once is enough."""
    async with make_scenes(kind) as scenes:

        async def kill(point: Point) -> None:
            async with scenes.take() as scene:
                child = await scene.start(forks, (point, "kill"))
                assert await child.ended() == -signal.SIGKILL, child.failure
                await scene.nothing_is_lost()
                await scene.goes_on()
                await scene.check(kind)

        effects = [point for point in await effects_of(scenes) if point.is_effect]
        cases = [effects[0], *(point for point in effects if point.side is Side.AFTER and is_a_case(point, stage))]
        await side_by_side(cases, kill, at_once=scenes.at_once)


async def test_a_killed_worker_is_waited_for_as_long_as_its_claim_lives_and_no_longer(make_scenes, forks):
    async with make_scenes("apply") as scenes:
        points = [point for point in await effects_of(scenes) if is_request(point)]
        async with scenes.take() as scene:
            child = await scene.start(forks, (points[0], "kill"))
            assert await child.ended() == -signal.SIGKILL
            chores = scene.site.ledger.chores
            assert await chores.claim(scene.chore) == "another worker is at it"
            assert scene.chore not in await chores.due()
            await scene.goes_on()
            await scene.check("apply")


@pytest.mark.parametrize(("kind", "change"), [("apply", "put"), ("undo", "put"), ("purge", "delete")])
async def test_a_chore_that_is_killed_again_and_again(make_scenes, forks, kind, change):
    """Each worker makes one such change in the registry and is killed: it takes as many as there are, as none is made twice."""
    async with make_scenes(kind) as scenes:
        changes = [point for point in await effects_of(scenes) if point.name == f"registry.{change}_manifest" and point.side is Side.AFTER]
        assert len(changes) >= 3
        async with scenes.take() as scene:
            for _ in changes:
                child = await scene.start(forks, (changes[0], "kill"))
                assert await child.ended() == -signal.SIGKILL, child.failure
                await scene.nothing_is_lost()
                await scene.claims_end()
            child = await scene.start(forks, (changes[0], "kill"))
            assert await child.ended() == 0, child.failure
            await scene.check(kind)


@pytest.mark.parametrize("kind", CHORES)
async def test_a_worker_that_is_stopped_and_wakes_up_when_all_is_over(make_scenes, stage, forks, kind):
    """Stopped where it is about to ask whether the chore is still its own, it changes nothing any more. Stopped between that and its request,
    that one request goes out: no claim holds it back. All that it can do is to put a tombstone on a tag where the registry has no other
    way to take one away: the purge takes that away.
    """
    async with make_scenes(kind) as scenes:
        effects = [point for point in await effects_of(scenes) if point.side is Side.BEFORE]
        asks = [before for before, point in pairwise(effects) if is_request(point) and not is_request(before)]
        assert {point.name for point in asks} == {"ledger.chore_hold"}

        async def stop(point: Point) -> None:
            async with scenes.take() as scene:
                child = await scene.start(forks, (point, "stop"))
                assert await child.stopped(), child.failure
                await scene.goes_on()
                await scene.check(kind)
                tags, passed = scene.site.tags(), len(child.passed)
                child.signal(signal.SIGCONT)
                assert await child.ended() == 0, child.failure
                assert not [late for late in child.passed[passed:] if is_request(late) and late.side is Side.BEFORE]
                if not is_request(point):
                    assert scene.site.tags() == tags
                await scene.nothing_is_lost()
                if kind == "apply":
                    await scene.site.window_ends()
                    await scene.site.purge()
                await scene.check("purge" if kind == "apply" else kind)

        requests = [point for point in effects if is_request(point) and point.number <= (1 if stage.untags else 4)]
        await side_by_side([*requests, *asks[:: max(1, len(asks) // 3)]], stop, at_once=scenes.at_once)
