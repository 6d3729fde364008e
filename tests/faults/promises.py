"""What must be true of a plant when all its builds have ended, whatever was done to it: the design's promises, held by one function.

Many cases are tried side by side, each on a plant of its own, since they wait more than they work.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeVar

from ledger.audit import Audit
from ledger.build import FINAL, Build, State, pod_name
from ledger.events import EventType
from tests.faults.kubelet import LOG
from tests.faults.plant import LIMIT, PROJECT_LIMIT, Plant

T = TypeVar("T")


async def assert_promises(plant: Plant, *, states: Collection[State] = FINAL, late: Collection[str] = ()) -> list[Build]:
    """Every build in the ledger has ended as promised, in one of the states; the records, oldest first.

    `late`: pods that a process which had slept made once more, for an attempt that was over.
    """
    await plant.kubelet.has_pushed_all()
    builds = sorted((await plant.ledger.page(limit=500)).builds, key=lambda build: build.sequence)
    told = await plant.told()

    # 1. Exactly one final state. 6. A change and its event are one write, told once.
    finals = Counter(event["data"]["customData"]["build"] for event in told if event["type"] == EventType.FINISHED)
    outcomes = {
        event["data"]["customData"]["build"]: event["data"]["customData"]["state"] for event in told if event["type"] == EventType.FINISHED
    }
    assert finals == {build.id: 1 for build in builds}
    assert outcomes == {build.id: build.state for build in builds}
    assert {build.state for build in builds} <= set(states), [(build.state, build.message) for build in builds]
    ids = Counter((event["source"], event["id"]) for event in told)
    assert max(ids.values()) == 1, ids.most_common(3)

    # 2. One pod per attempt and platform, and none of another attempt.
    names = {
        pod_name(build.id, attempt, platform)
        for build in builds
        for attempt in range(1, build.attempt + 1)
        for platform in build.request.platforms
    }
    store = plant.pods.store
    assert set(store.created) <= names
    # One that went by force before anybody had seen it is made again.
    assert {name for name, uids in store.created.items() if len(uids) > 1 + store.dropped[name]} <= set(late)
    assert all(store.most[f"{build.id} {platform}"] <= 1 for build in builds for platform in build.request.platforms)
    assert not store.pods

    # 3. No limit was ever exceeded, no slot has leaked; nor has anything else of what holds waiting and running builds.
    assert store.most[""] <= LIMIT
    assert store.most["demo"] <= PROJECT_LIMIT
    assert not await plant.ledger.slots()
    faults = [fault async for some in Audit(plant.ledger.connection, mend=False).all() for fault in some]
    assert not faults

    # 4. A success is in the registry. 5. A mutable tag stands at the latest sequence.
    client = plant.place.registries.client("demo", await plant.place.project("demo"), plant.host)
    latest = {image: build for build in builds if build.state is State.SUCCEEDED for image in build.request.images}
    for image, build in latest.items():
        found = await client.resolve(image)
        assert found is not None
        assert found.digest == build.digest, f"{image} stands at another build's"

    # And a log tells every line once.
    for build in builds:
        for attempt in build.attempts:
            lines = [line.text for line in (await plant.ledger.logs.read(build.id, attempt.number))[0]]
            assert lines in ([], list(LOG)), lines
    return builds


async def side_by_side(cases: Iterable[T], test: Callable[[T], Awaitable[None]], *, at_once: int = 8) -> None:
    """Try all cases, so many at a time; tells of each that failed, and why."""
    turns = asyncio.Semaphore(at_once)
    failures: list[Exception] = []

    async def one(case: T) -> None:
        async with turns:
            try:
                await test(case)
            except Exception as error:
                error.add_note(f"in the case {case}")
                failures.append(error)

    await asyncio.gather(*map(one, cases))
    if failures:
        raise ExceptionGroup("what was promised was not kept", failures)
