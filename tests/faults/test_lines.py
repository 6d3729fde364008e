"""Bad lines to Redis and to the registry: cut, silent, refused, slow, an answer lost. Everything comes back by itself, nothing is doubled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib.resources import files

import pytest

import ledger.connection
import ledger.store
import producer.submit
from ledger.build import Build, State
from ledger.connection import script
from ledger.errors import LedgerUnavailable
from ledger.store import Ledger
from producer import submit_build
from producer.api.following import LogFollower, changes
from producer.submit import submit_build_async, wait_for_build_async
from tests.faults.kubelet import LOG, End
from tests.faults.kubernetes_api import Json
from tests.faults.plant import PROJECT_LIMIT, Plant
from tests.faults.points import Point, Side
from tests.faults.promises import assert_promises, side_by_side
from tests.faults.proxy import Line
from tests.faults.scenes import SCENES, begun, comes_to_a_stop, comes_to_its_end, passed
from worker.registry.wire import Timeouts

Hurt = Callable[[Line], Awaitable[None]]


async def cut(line: Line) -> None:
    line.cut()


async def cut_midway(line: Line) -> None:
    line.cut_after(30)


async def go_silent(line: Line) -> None:
    line.go_silent()


async def refuse(line: Line) -> None:
    await line.refuse()


async def slow(line: Line) -> None:
    line.delay = 0.05


HURTS: dict[str, Hurt] = {"cut": cut, "cut midway": cut_midway, "silent": go_silent, "refused": refuse, "slow": slow}


def request_of(point: Point) -> bytes:
    """What the request at a point has in it."""
    area, _, name = point.name.partition(".")
    if area == "registry":
        return name.partition("_")[0].upper().encode()
    scripts = files("ledger") / "lua"
    return script(name)[0].encode() if (scripts / f"{name}.lua").is_file() else name.upper().encode()


@pytest.mark.parametrize("name", ["submit", "dispatch", "finish", "cancel", "lead"])
async def test_answers_that_are_lost(make_plant_on_lines, forks, name):
    """Each effect is done, its answer never comes, and the call is sent again: no step fails by that, and nothing is done twice."""
    scene = SCENES[name]

    async def lose(point: Point) -> None:
        async with begun(scene, make_plant_on_lines, forks, (point, "stop")) as (plant, child):
            assert plant.lines
            line = plant.lines.registry if point.name.startswith("registry.") else plant.lines.redis
            if await comes_to_a_stop(plant, child):
                line.lose_answer(to=request_of(point))
                child.signal(signal.SIGCONT)
            await comes_to_its_end(plant, child)
            assert line.lost.is_set() or scene.step == "lead"
            assert not child.failure, child.failure

    found = await passed(scene, make_plant_on_lines, forks)
    effects = [
        point for point in found if point.is_effect and point.side is Side.BEFORE and not point.name.startswith(("kubernetes", "broker"))
    ]
    await side_by_side(effects, lose)


# Redis goes away while builds are submitted


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead line is noticed sooner, though not sooner than a follower's wait for lines may take."""
    monkeypatch.setattr(ledger.connection, "ANSWER_TIMEOUT", 1.3)
    monkeypatch.setattr(ledger.store, "_PULSE", 1.0)


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plant], None]]:
    """A function that lets this process's `submit_build()` use a plant's line."""

    def forget() -> None:
        if producer.submit._current:
            producer.submit._current.connection.close()
        producer.submit._current = None
        producer.submit.settings.cache_clear()

    def point(plant: Plant) -> None:
        forget()
        for name, value in plant.environment.items():
            monkeypatch.setenv(name, value)

    yield point
    forget()


async def hurt_and_heal(line: Line, *hurts: Hurt) -> None:
    for hurt in hurts:
        await asyncio.sleep(0.05)
        await hurt(line)
        await asyncio.sleep(0.1)
        await line.heal()


@pytest.mark.parametrize("way", ["threads", "tasks"])
async def test_submits_go_through_a_bad_line(make_plant_on_lines, point_at, monkeypatch, way):
    """All at once, while it is cut, cut midway, silent and refused in turn: each is one build, and its caller has its id."""
    monkeypatch.setattr(ledger.connection, "ANSWER_TIMEOUT", 0.3)
    async with make_plant_on_lines() as plant:
        assert plant.lines
        point_at(plant)
        theirs = Ledger.open(plant.settings)

        async def submit(number: int) -> Build:
            request = plant.request(number)
            if way == "tasks":
                return await submit_build_async(request, timeout=20, ledger=theirs)
            return await asyncio.to_thread(submit_build, request, timeout=20)

        async def submit_some(first: int) -> list[Build]:
            return [await submit(number) for number in range(first, first + 25)]

        hurting = asyncio.create_task(hurt_and_heal(plant.lines.redis, cut, cut_midway, go_silent, refuse, cut))
        taken = [build for some in await asyncio.gather(*(submit_some(100 * group) for group in range(8))) for build in some]
        await hurting
        await theirs.close()
        stored = (await plant.ledger.page(limit=500)).builds
        assert sorted(build.id for build in stored) == sorted(build.id for build in taken)
        assert len({build.id for build in taken}) == len({build.request.commit for build in stored}) == 200
        assert len(await plant.told()) == 200


async def test_a_submit_through_a_dead_line_says_so_and_is_one_build_when_it_is_repeated(make_plant_on_lines, point_at, monkeypatch):
    monkeypatch.setattr(ledger.connection, "ANSWER_TIMEOUT", 0.1)
    async with make_plant_on_lines() as plant:
        assert plant.lines
        point_at(plant)
        for number, hurt in enumerate((go_silent, refuse)):
            await hurt(plant.lines.redis)
            with pytest.raises(LedgerUnavailable, match="CRABPOT_REDIS_URL"):
                await asyncio.to_thread(submit_build, plant.request(number), idempotency_key=str(number))
            await plant.lines.redis.heal()
            await asyncio.to_thread(submit_build, plant.request(number), idempotency_key=str(number), timeout=20)
        assert len((await plant.ledger.page()).builds) == 2


# Redis goes away while builds go on


async def followed(plant: Plant, theirs: Ledger, build: Build) -> tuple[Build, list[str]]:
    """What somebody sees who follows a build and its log over the line to Redis, from the first to the last."""
    waiting = asyncio.create_task(wait_for_build_async(build.id, ledger=theirs))
    async for record in changes(theirs, build.id, None):
        if record.state is not State.QUEUED:
            break
    lines = [line.text async for batch in LogFollower(theirs, record, None).lines() for line in batch]
    async for record in changes(theirs, build.id, None):
        pass
    with suppress(LedgerUnavailable):  # which a program that waits may try again
        assert (await waiting).state is record.state
    return record, lines


async def test_redis_is_away_for_a_while(make_plant_on_lines, _impatient):
    """Whole lives, and who follows them; in the middle of each the line goes bad."""

    async def live(name: str) -> None:
        async with make_plant_on_lines() as plant:
            assert plant.lines
            line, runs = plant.lines.redis, asyncio.Event()

            async def work(pod: Json) -> End:
                runs.set()
                await healed.wait()
                return await plant.push_late(pod)

            healed = asyncio.Event()
            plant.kubelet.executor = work
            taken = [await plant.submit(number) for number in range(PROJECT_LIMIT + 1)]
            theirs = Ledger.open(plant.settings)
            following = [asyncio.create_task(followed(plant, theirs, build)) for build in taken]
            plant.start()
            await runs.wait()
            await HURTS[name](line)
            await asyncio.sleep(0.7)
            await line.heal()
            healed.set()
            await plant.settles(*(build.id for build in taken))
            for record, lines in await asyncio.gather(*following):
                assert record.state is State.SUCCEEDED
                assert lines == list(LOG)
            await theirs.close()
            await assert_promises(plant, states=[State.SUCCEEDED])

    await side_by_side(HURTS, live)


# The registry goes away while a build is published


async def lose_put(line: Line) -> None:
    line.lose_request(having=b"PUT ")


async def lose_answer_to_put(line: Line) -> None:
    line.lose_answer(to=b"PUT ")


REGISTRY_HURTS: dict[str, Hurt] = {
    "request lost": lose_put,
    "answer lost": lose_answer_to_put,
    "cut midway": cut_midway,
    "silent": go_silent,
    "refused": refuse,
    "slow": slow,
}


async def test_the_registry_is_away_for_a_while(make_plant_on_lines):
    """Publishing waits for it, and builds nothing anew. A cut answer to a mere question is asked for once more, at once."""

    async def live(name: str) -> None:
        async with make_plant_on_lines() as plant:
            assert plant.lines
            if name == "silent":  # all others are answered in time on a machine of any speed
                plant.place.registries._timeouts = Timeouts(connect=1, read=0.5, total=2)
            await REGISTRY_HURTS[name](plant.lines.registry)
            build = await plant.submit()
            plant.start()
            async with asyncio.timeout(20), plant.ledger.changes(build.id) as records:
                async for record in records:
                    if record.publish_tries or record.state.final:
                        break
            assert bool(record.publish_tries) == (name not in ("cut midway", "slow")), record.message
            await plant.lines.registry.heal()
            await plant.settles(build.id)
            (ended,) = await assert_promises(plant, states=[State.SUCCEEDED])
            assert ended.attempt == 1

    await side_by_side(REGISTRY_HURTS, live)
