"""Whole lives of builds on a Kubernetes that goes wrong: each trouble at each kind of request, then many at once. Nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial

import pytest

from ledger.build import Reason, State
from tests.faults.kubelet import End
from tests.faults.kubernetes_api import Json
from tests.faults.plant import PROJECT_LIMIT, Plant
from tests.faults.promises import assert_promises, side_by_side
from tests.faults.troubles import (
    Trouble,
    cut,
    cut_after,
    delayed,
    doubled,
    expired_after,
    late,
    mute_after,
    page,
    refusal,
    seeded,
    silence,
    swapped,
    unheard,
)

TOO_MANY = refusal(429, "TooManyRequests", "try again later", Retry_After="1")
BROKEN = refusal(500, "InternalError", "etcdserver: request timed out")
CONFLICT = refusal(409, "Conflict", "Operation cannot be fulfilled on pods: the object has been modified")
EXPIRED = refusal(410, "Expired", "too old resource version")
NOT_DONE = {"429": TOO_MANY, "500": BROKEN, "502": page(502), "cut": cut, "silence": silence, "late": late(0.2)}
DONE_UNHEARD = {f"{name} after it was done": unheard(trouble) for name, trouble in NOT_DONE.items() if name != "late"}
STREAMS = {"cut stream": cut_after(1), "mute stream": mute_after(1), "delayed": delayed(0.05)}
MANY = 12
ANY = {**NOT_DONE, **DONE_UNHEARD}
TROUBLES: dict[str, dict[str, Trouble]] = {
    "create": {**ANY, "409": CONFLICT},
    "list": {**NOT_DONE, "410": EXPIRED},
    "watch": {**NOT_DONE, "410": EXPIRED, "410 event": expired_after(1), **STREAMS, "doubled": doubled, "out of order": swapped},
    "log": {**NOT_DONE, **STREAMS},
    "delete": {**ANY, "409": CONFLICT},
    "release": {**ANY, "409": CONFLICT},
}


async def live(plant: Plant) -> None:
    """Builds from submit to success. No pod ends while its create is still in doubt: that is the next test."""
    taken = [await plant.submit(number) for number in range(PROJECT_LIMIT)]
    plant.kubelet.executor = plant.push_late
    plant.start()
    await plant.settles(*(build.id for build in taken))
    await assert_promises(plant, states=[State.SUCCEEDED])


@pytest.mark.parametrize("kind", TROUBLES)
async def test_each_trouble(make_plant, kind):
    """The first request of a kind has it, and so does the second, if that is needed."""

    async def one(name: str) -> None:
        async with make_plant() as plant:
            plant.pods.troubles.next(kind, *[TROUBLES[kind][name]] * 2)
            await live(plant)
            assert plant.pods.troubles.met[kind]

    await side_by_side(TROUBLES[kind], one, at_once=20)


async def test_a_pod_that_ends_while_its_create_is_in_doubt(make_plant):
    """Its pod has come and gone before the create is repeated: by then the record says so, and no second pod is made."""
    async with make_plant() as plant:
        plant.pods.troubles.next("create", *[unheard(silence)] * PROJECT_LIMIT)
        taken = [await plant.submit(number) for number in range(PROJECT_LIMIT)]
        plant.start()
        await plant.settles(*(build.id for build in taken))
        await plant.workers.starts_nothing.wait()
        await plant.is_empty()
        await assert_promises(plant, states=[State.SUCCEEDED])


async def test_many_troubles_at_once(make_plant):
    """Two in five of all requests, whatever they are for, until there were many; and pods that are lost, evicted, killed, or fail."""

    async def one(seed: int) -> None:
        async with make_plant() as plant:
            enough = asyncio.Event()
            chosen = seeded(seed, 0.4, {kind: list(troubles.values()) for kind, troubles in TROUBLES.items()})

            def choose(kind: str, number: int) -> Sequence[Trouble]:
                if plant.pods.troubles.met.total() >= MANY:
                    enough.set()
                return chosen(kind, number)

            plant.kubelet.executor = partial(fate, plant, random.Random(seed))
            plant.pods.troubles.rule(choose)
            taken = [await plant.submit(number) for number in range(12)]
            plant.start()
            async with asyncio.timeout(60):
                await enough.wait()
            plant.pods.troubles.end()
            plant.pods.store.compact()
            plant.pods.cut_streams()  # whatever a watch has not told is told by the list that follows
            await plant.settles(*(build.id for build in taken))
            builds = await assert_promises(plant, states=[State.SUCCEEDED, State.FAILED])
            assert all(build.reason is Reason.UNKNOWN for build in builds if build.state is State.FAILED)

    await side_by_side(range(3), one)


async def fate(plant: Plant, chance: random.Random, pod: Json) -> End | None:
    """What becomes of a pod: most end well. None ends while its create is still in doubt."""
    name, node = pod["metadata"]["name"], plant.pods.node
    await plant.workers.starts_nothing.wait()
    match chance.choice(["lost", "lost with its image", "evicted", "no memory", "fails"] + ["well"] * 8):
        case "lost":
            node.vanish(name)
        case "lost with its image":
            await plant.kubelet.push(pod)
            node.vanish(name)
        case "evicted":
            node.evict(name)
        case "no memory":
            return End(exit_code=137, reason="OOMKilled")
        case "fails":
            return End(exit_code=1)
        case _:
            return await plant.kubelet.push(pod)
    return None
