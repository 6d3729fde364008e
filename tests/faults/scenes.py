"""Steps within a life: what each starts from, what is done while it runs in a process of its own, and what goes on after it.

A scene's points are found by a dry run, so a step that changes needs no change here. To add a step: a function in `steps.py`, and a scene
here; every test that goes through the scenes has it then.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ledger.build import Build, Reason, State
from ledger.errors import TooLate
from producer.cancel import cancel_build
from producer.submit import submit_build_async
from tests.faults.forks import Child, Forks
from tests.faults.kubelet import End, Executor
from tests.faults.kubernetes_api import Json
from tests.faults.plant import PROJECT_LIMIT, Plant, label_of
from tests.faults.points import Point
from tests.faults.promises import assert_promises
from tests.integration.registry_server import digest_of

NOBODYS = digest_of(b"nobody pushed this")
Arguments = dict[str, Any]
MakePlant = Callable[[], AbstractAsyncContextManager[Plant]]


async def _nothing(plant: Plant, arguments: Arguments) -> None:
    """The step's caller does nothing more."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A step within a life: `before` leads there and gives its arguments, `after` is what its caller does if it did not come to an end."""

    step: str
    before: Callable[[Plant], Awaitable[Arguments]]
    after: Callable[[Plant, Arguments], Awaitable[None]] = _nothing
    ends: frozenset[State] = field(default=frozenset({State.SUCCEEDED}))


# Where the steps begin


async def _requested(plant: Plant) -> Arguments:
    return {"request": plant.request(), "key": "once"}


async def _submit_again(plant: Plant, arguments: Arguments) -> None:
    await submit_build_async(arguments["request"], idempotency_key=arguments["key"], ledger=plant.ledger)


async def _waiting(plant: Plant) -> Arguments:
    """One more than fit."""
    for number in range(PROJECT_LIMIT + 1):
        await plant.submit(number)
    return {}


async def _led(plant: Plant, executor: Executor, state: State) -> Build:
    """A build that a leader has brought into a state; `finish` was not run."""
    build = await plant.submit()
    plant.kubelet.executor = executor
    plant.start(plant.lead, plant.kubelet.run, plant.workers.dispatch)
    build = await plant.reaches(build.id, state)
    plant.kubelet.executor = plant.kubelet.push
    return build


async def _pushed(plant: Plant) -> Arguments:
    """Two pushes of one branch; the earlier one is finished by the step, while nobody is at the later one yet."""
    earlier = await plant.submit(1)
    later = await _led(plant, plant.kubelet.push, State.PUBLISHING)
    await plant.reaches(earlier.id, State.PUBLISHING)
    assert earlier.sequence < later.sequence
    await plant.stop()
    return {"build": earlier.id}


async def _lost(plant: Plant) -> Arguments:
    """Its image was pushed, and then the pod was deleted by force."""
    build = await _led(plant, _for_ever, State.RUNNING)
    assert build.pushed_image
    await plant.kubelet.push_image(build.pushed_image, label_of(build), build.id)
    plant.pods.node.vanish(build.current.runs[0].pod)
    record = await plant.reaches(build.id, State.PUBLISHING)
    assert record.reason is Reason.POD_LOST
    await plant.stop()
    return {"build": build.id}


async def _missing(plant: Plant) -> Arguments:
    """Its executor claims a digest that the registry does not have, and has denied twice: the third time decides."""

    async def lie(pod: Json) -> End:
        return End(message=NOBODYS)

    build = await _led(plant, lie, State.PUBLISHING)
    await plant.stop()
    for _ in range(2):
        await plant.workers.finish(build.id)
    return {"build": build.id}


async def _running(plant: Plant) -> Arguments:
    build = await _led(plant, _for_ever, State.RUNNING)
    await plant.stop()
    plant.kubelet.executor = _for_ever
    return {"build": build.id}


async def _for_ever(pod: Json) -> None:
    """An executor that never comes to an end."""


async def _cancel_again(plant: Plant, arguments: Arguments) -> None:
    with suppress(TooLate):
        await cancel_build(plant.ledger, arguments["build"])


async def _started(plant: Plant) -> Arguments:
    """Two pods that end once their logs are followed: one well, one by eviction."""
    followed = asyncio.Event()

    def listen(kind: str, number: int) -> tuple[()]:
        if kind == "log":
            followed.set()
        return ()

    async def work(pod: Json) -> End | None:
        await followed.wait()
        if pod["metadata"]["labels"]["crabpot.dev/build"] == builds[0].id:
            return await plant.kubelet.push(pod)
        if pod["metadata"]["labels"]["crabpot.dev/attempt"] == "1":
            plant.pods.node.evict(pod["metadata"]["name"])
            return None
        return await plant.kubelet.push(pod)

    builds = [await plant.submit(number) for number in range(PROJECT_LIMIT)]
    plant.pods.troubles.rule(listen)
    plant.kubelet.executor = work
    await plant.workers.dispatch()
    plant.start(plant.kubelet.run)
    return {}


SCENES = {
    "submit": Scene("submit", _requested, _submit_again),
    "dispatch": Scene("dispatch", _waiting),
    "finish": Scene("finish", _pushed),
    "finish a lost pod": Scene("finish", _lost),
    "finish without an image": Scene("finish", _missing),
    "cancel": Scene("cancel", _running, _cancel_again, frozenset({State.CANCELLED})),
    "lead": Scene("lead", _started),
}


# What is done to them


@asynccontextmanager
async def begun(scene: Scene, make: MakePlant, forks: Forks, injection: tuple[Point, str] | None) -> AsyncIterator[tuple[Plant, Child]]:
    """A plant in which the scene's step has begun, in a process of its own; in the end all is settled and the promises hold."""
    async with make() as plant:
        arguments = await scene.before(plant)
        child = await forks.start(scene.step, plant.environment, arguments, injection)
        yield plant, child
        await plant.stop()
        await scene.after(plant, arguments)
        plant.start()
        builds = (await plant.ledger.page(limit=500)).builds
        await plant.settles(*(build.id for build in builds))
        assert builds
        await assert_promises(plant, states=scene.ends)


async def comes_to_its_end(plant: Plant, child: Child) -> None:
    """Until the step has ended, by itself or by what was done to it; a leader is ended when it has nothing to do any more."""
    if child.step == "lead" and not await _before(plant.is_empty(), child.ended()):
        child.signal(signal.SIGKILL)
    await child.ended()


async def comes_to_a_stop(plant: Plant, child: Child) -> bool:
    """Until the step is stopped at its point: whether it was. A leader may not come there once more before it has nothing to do any more."""
    if child.step == "lead" and not await _before(plant.is_empty(), child.stopped()):
        return False
    return await child.stopped()


async def _before(idle: Awaitable[None], awaited: Awaitable[Any]) -> bool:
    """Whether what is awaited comes before the plant is idle. The other is waited for no more."""
    tasks = [asyncio.ensure_future(idle), asyncio.ensure_future(awaited)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    came = tasks[1].done()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return came


async def passed(scene: Scene, make: MakePlant, forks: Forks) -> list[Point]:
    """The points of a step on which nothing was done to it."""
    async with begun(scene, make, forks, None) as (plant, child):
        await comes_to_its_end(plant, child)
    assert not child.failure, child.failure
    return child.passed
