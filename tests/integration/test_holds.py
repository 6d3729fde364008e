"""Holds of registries on a real Redis: what writes to a held one waits and says why, everything else goes on, and none lasts for ever."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from ledger.audit import Audit
from ledger.build import Again, State
from ledger.errors import RegistryHeld
from ledger.projects import parse_projects
from producer.submit import submit_build_async
from tests.requests import make_request

MINUTE = timedelta(minutes=1)
A, B = "a.example.com", "b.example.com"
FILE = """
version: 1
limits: {max_builds: 100}
projects:
  demo: {policy: {destinations: ["*.example.com/**"], sources: ["**"], claims: [out]}, max_builds_per_key: 2}
  other: {policy: {destinations: ["*.example.com/**"], sources: ["**"]}}
"""


@pytest.fixture
async def queue(ledger):
    await ledger.store_projects(parse_projects(FILE))
    return ledger


async def submit(ledger, *hosts, **changes):
    destinations = [f"{host}/team/app:1.0.0" for host in hosts]
    return (await submit_build_async(make_request(destinations=destinations, **changes), ledger=ledger)).id


async def admit(ledger):
    found = []
    while build := await ledger.admit(MINUTE):
        found.append(build.id)
    return found


async def why(ledger, build):
    return (await ledger.waiting(await ledger.read(build))).say(None)


async def sound(ledger):
    return [fault async for found in Audit(ledger.connection, mend=False).all() for fault in found] == []


async def test_only_what_writes_to_the_held_registry_waits(queue):
    before = await submit(queue, A)
    await queue.holds.take([A], "collect", MINUTE)
    after, both = await submit(queue, A), await submit(queue, B, A)
    cached = await submit(queue, B, cache={"repository": f"{A}/team/cache"})
    free, elsewhere = await submit(queue, B), await submit(queue, B, project="other")
    assert set(await admit(queue)) == {free, elsewhere}
    for build in (before, after, both, cached):
        assert f"the registry {A}, which is under maintenance since" in await why(queue, build)
    assert await sound(queue)
    await queue.holds.release([A], "collect")
    assert set(await admit(queue)) == {before, after, both, cached}
    assert await sound(queue)


async def test_builds_that_push_nothing_there_go_on(queue):
    await queue.holds.take([A], "collect", MINUTE)
    tar = await submit(queue, A, push=False, tar={"claim": "out"})
    assert await admit(queue) == [tar]


async def test_a_hold_ends_by_itself(queue):
    build = await submit(queue, A)
    await queue.holds.take([A], "collect", timedelta(milliseconds=30))
    while not (admitted := await admit(queue)):
        pass
    assert admitted == [build]
    assert await queue.holds.all() == []
    assert await sound(queue)


async def test_a_retry_s_delay_does_not_lead_past_a_hold(queue):
    build = await submit(queue, A)
    await admit(queue)
    await queue.transition(await queue.read(build), State.QUEUED, due=MINUTE, again=Again(timedelta(0)))
    await queue.holds.take([A], "collect", MINUTE)
    assert await admit(queue) == []
    await queue.holds.release([A], "collect")
    assert await admit(queue) == [build]


async def test_a_key_s_slots_are_counted_over_registries(queue):
    first, second = await submit(queue, A, concurrency_key="k"), await submit(queue, B, concurrency_key="k")
    third = await submit(queue, A, concurrency_key="k")
    await queue.holds.take([A], "collect", MINUTE)
    assert await admit(queue) == [second]
    await queue.holds.release([A], "collect")
    assert await admit(queue) == [first]  # two of two run, in two registries
    await queue.transition(await queue.read(second), State.FAILED, due=None)
    assert await admit(queue) == [third]
    assert await sound(queue)


async def test_who_writes_is_told_until_their_slots_are_back(queue):
    build, other = await submit(queue, B, A), await submit(queue, B)
    assert await queue.holds.writers([A, "alias.example.com"]) == []
    await admit(queue)
    assert await queue.holds.writers([A]) == [build]
    assert set(await queue.holds.writers([B])) == {build, other}
    await queue.transition(await queue.read(build), State.FAILED, due=None)
    assert await queue.holds.writers([A]) == []


async def test_a_hold_is_its_taker_s_alone(queue):
    since = await queue.holds.take([A, B], "collect", MINUTE)
    with pytest.raises(RegistryHeld, match=f"{B} is held by collect"):
        await queue.holds.take([B], "somebody", MINUTE)
    assert not await queue.holds.release([A], "somebody")
    assert await queue.holds.take([A, B], "collect", 2 * MINUTE) == since
    assert [(hold.registry, hold.since) for hold in await queue.holds.all()] == [(A, since), (B, since)]
    assert (await queue.holds.all())[0].until - since >= 2 * MINUTE


async def test_a_hold_is_told_once_and_its_time_is_not_counted_against_deadlines(queue):
    build = await queue.read(await submit(queue, A))
    await queue.holds.take([A], "collect", MINUTE)
    await queue.holds.take([A], "collect", MINUTE)
    now = await queue.now()
    assert (await queue.limits.paused(build, build.created, now))[0]
    assert not (await queue.limits.paused(await queue.read(await submit(queue, B)), build.created, now))[0]
    await queue.holds.release([A], "collect")
    later = now + MINUTE
    is_paused, paused_for = await queue.limits.paused(build, build.created, later)
    assert not is_paused
    assert timedelta(0) < paused_for < MINUTE
    assert await queue.holds.lasted([A], build.created, later) == paused_for
    told = [json.loads(event) for _, event in await queue.events("0")]
    assert [(one["type"].split(".")[-4], one["subject"]) for one in told if ".queue." in one["type"] and "crabpot" in one["type"]] == [
        ("held", f"registry/{A}"),
        ("released", f"registry/{A}"),
    ]
