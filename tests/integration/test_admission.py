"""Admission on a real Redis: every limit at once, shares, priority, pauses, superseding, and why a build waits."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from ledger.build import Again, Reason, State
from ledger.errors import NotFound, QueueFull, RequestInvalid
from ledger.limits import Scope
from ledger.projects import parse_projects
from ledger.submission import Push, draft
from producer.submit import submit_build_async, submit_drafts
from tests.requests import make_request

MINUTE = timedelta(minutes=1)
FILE = """
version: 1
limits: {max_builds: 100, classes: {arm64: 1}}
projects:
  demo: {policy: {destinations: ["registry.example.com/**"], sources: ["**"], capacity_classes: [large]}, max_builds_per_key: 2}
  other: {policy: {destinations: ["registry.example.com/**"], sources: ["**"]}, weight: 3, max_queued: 40}
"""


@pytest.fixture
async def queue(ledger):
    await ledger.store_projects(parse_projects(FILE))
    return ledger


async def submit(ledger, count=1, **changes):
    return [(await submit_build_async(make_request(**changes), ledger=ledger)).id for _ in range(count)]


async def admit(ledger, count):
    found = [await ledger.admit(MINUTE) for _ in range(count)]
    return [build.id for build in found if build]


async def end(ledger, build):
    return await ledger.transition(await ledger.read(build), State.FAILED, due=None, reason=Reason.BUILD_FAILED)


async def test_a_key_lets_so_many_run_and_blocks_nobody_else(queue):
    keyed = await submit(queue, 4, concurrency_key="shop@main")
    free = await submit(queue, 1, concurrency_key="shop@next") + await submit(queue, 1)
    assert await admit(queue, 9) == [*keyed[:2], *free]
    assert "concurrency key: 2 of 2 run" in (await queue.waiting(await queue.read(keyed[2]))).say(None)
    await end(queue, keyed[0])
    assert await admit(queue, 9) == [keyed[2]]


async def test_a_class_is_limited_over_projects_and_blocks_no_other(queue):
    first = await submit(queue, platforms=["linux/arm64"])
    assert await admit(queue, 1) == first
    blocked = await submit(queue, project="other", platforms=["linux/arm64"])
    other = await submit(queue)
    assert await admit(queue, 9) == other
    waiting = await queue.waiting(await queue.read(blocked[0]))
    assert waiting.say(None) == f"the limit of class arm64: 1 of 1 run ({first[0]}); 0 of the project go before it"
    await end(queue, first[0])
    assert await admit(queue, 9) == blocked


async def test_a_named_class(queue):
    await queue.limits.set(Scope.parse("class/large"), 1)
    large = await submit(queue, 2, placement={"capacity_class": "large"})
    small = await submit(queue)
    assert await admit(queue, 9) == [large[0], *small]


async def test_slots_are_shared_by_weight(queue):
    await queue.limits.set(Scope.parse("all"), 8)
    demo, other = await submit(queue, 30), await submit(queue, 30, project="other")
    running = await admit(queue, 8)
    order = list(running)
    while len(order) < 40:
        await end(queue, running.pop(0))
        running += (taken := await admit(queue, 2))
        order += taken
    assert sum(build in other for build in order) == pytest.approx(30, abs=1)
    assert sum(build in demo for build in order) == pytest.approx(10, abs=1)


async def test_a_long_queue_does_not_delay_another_projects_first_build(queue):
    await queue.limits.set(Scope.parse("all"), 1)
    await submit(queue, 50)
    running = await admit(queue, 1)
    first = await submit(queue, project="other")
    await end(queue, running[0])
    assert await admit(queue, 1) == first


async def test_waiting_for_a_full_class_saves_up_no_turns(queue):
    """A project that could not start its arm64 builds for long does not take all slots when it submits others."""
    await submit(queue, 1, project="other", platforms=["linux/arm64"])
    assert len(await admit(queue, 1)) == 1
    await submit(queue, 1, project="other", platforms=["linux/arm64"])
    await submit(queue, 60)
    await admit(queue, 30)
    await submit(queue, 30, project="other")
    taken = [(await queue.read(build)).project for build in await admit(queue, 16)]
    assert taken.count("demo") == pytest.approx(4, abs=1)  # its weight's share, and not nothing


async def test_a_point_of_priority_is_a_minute_of_waiting(queue):
    old = (await submit(queue))[0]
    for name in ("q:demo", "lane:demo|amd64|", "open:demo|amd64"):  # it has waited for half an hour
        member = "" if name.startswith("open") else old
        await queue.connection.command("ZINCRBY", queue.connection.keys.root + name, -1_800_000, member)
    sooner, later = (await submit(queue, priority=40))[0], (await submit(queue, priority=20))[0]
    assert await admit(queue, 3) == [sooner, old, later]


async def test_limits_by_hand_go_before_the_file_until_given_back(queue):
    await submit(queue, 9)
    scope = Scope.parse("project/demo")
    await queue.limits.set(scope, 2)
    assert len(await admit(queue, 9)) == 2
    await queue.store_projects(parse_projects(FILE))  # a restart of `crabpot serve` takes nothing back
    assert await admit(queue, 9) == []
    await queue.limits.set(scope, 3)
    assert len(await admit(queue, 9)) == 1
    await queue.limits.give_back(scope)
    assert len(await admit(queue, 9)) == 6
    told = [json.loads(text) for _, text in await queue.events("0-0", count=1000)]
    changes = [event["data"] for event in told if event["type"] == "dev.crabpot.queue.limited.0.1.0"]
    assert changes == [{"scope": "project/demo", "limit": 2}, {"scope": "project/demo", "limit": 3}, {"scope": "project/demo"}]


async def test_a_keys_limit_changes_while_it_is_full(queue):
    keyed = await submit(queue, 5, concurrency_key="k")
    assert await admit(queue, 9) == keyed[:2]
    await queue.limits.set(Scope.parse("keys/demo"), 4)
    assert await admit(queue, 9) == keyed[2:4]
    await queue.limits.set(Scope.parse("keys/demo"), 1)
    for build in keyed[:3]:
        await end(queue, build)
        assert await admit(queue, 9) == []
    await end(queue, keyed[3])
    assert await admit(queue, 9) == keyed[4:]


@pytest.mark.parametrize("scope", ["all", "project/demo", "class/amd64"])
async def test_a_pause_stops_admission_and_nothing_else(queue, scope):
    builds = await submit(queue, 2)
    assert await admit(queue, 1) == builds[:1]
    assert await queue.limits.pause(Scope.parse(scope))
    assert not await queue.limits.pause(Scope.parse(scope))
    builds += await submit(queue)
    await end(queue, builds[0])
    assert await admit(queue, 9) == []
    waiting = await queue.waiting(await queue.read(builds[1]))
    assert f"a pause of {scope} since" in waiting.say(None)
    assert await queue.limits.resume(Scope.parse(scope))
    assert not await queue.limits.resume(Scope.parse(scope))
    assert await admit(queue, 9) == builds[1:]


async def test_other_projects_go_on_while_one_is_paused(queue):
    await queue.limits.pause(Scope.parse("project/demo"))
    await submit(queue, 3)
    others = await submit(queue, 2, project="other")
    assert await admit(queue, 9) == others


@pytest.mark.parametrize("text", ["", "demo", "project", "project/", "all/x", "class/a|b", "keys/", "project/" + "x" * 300])
def test_a_scope_that_is_none(text):
    with pytest.raises(RequestInvalid, match="scope"):
        Scope.parse(text)


async def test_what_limits_cannot_be(queue):
    with pytest.raises(NotFound, match="nobody"):
        await queue.limits.set(Scope.parse("project/nobody"), 1)
    with pytest.raises(NotFound, match="nobody"):
        await queue.limits.pause(Scope.parse("project/nobody"))
    with pytest.raises(RequestInvalid, match="limit"):
        await queue.limits.set(Scope.parse("keys/demo"), 0)
    with pytest.raises(RequestInvalid, match="limit"):
        await queue.limits.set(Scope.parse("all"), -1)
    with pytest.raises(RequestInvalid, match="not paused"):
        await queue.limits.pause(Scope.parse("keys/demo"))


async def test_a_full_queue_takes_no_more_of_its_project(queue):
    await submit(queue, 39, project="other")
    two = [draft(make_request(project="other")), draft(make_request(project="other"))]
    with pytest.raises(QueueFull, match="max_queued") as refused:
        await submit_drafts(queue, two)
    assert refused.value.retryable
    assert refused.value.retry_after
    await submit(queue, 1, project="other")
    with pytest.raises(QueueFull):
        await submit(queue, 1, project="other")
    await submit(queue, 1)
    await admit(queue, 2)
    await submit(queue, 1, project="other")


async def pushed(ledger, number, ref="refs/heads/main", **changes):
    taken = await submit_drafts(ledger, [draft(make_request(**changes))], Push(f"d{number}", ref, f"{number:040x}"))
    return taken[0].id


async def test_a_newer_push_supersedes_what_waits(queue):
    first = await pushed(queue, 1)
    tag, elsewhere, by_hand = await pushed(queue, 2, "refs/tags/v1"), await pushed(queue, 3, "refs/heads/next"), (await submit(queue))[0]
    another = await pushed(queue, 4, destinations=["registry.example.com/team/another:1.0.0"])
    second = await pushed(queue, 5)
    assert (await queue.read(first)).superseded_by == second
    assert first in await queue.due()
    assert set(await admit(queue, 9)) == {tag, elsewhere, by_hand, another, second}
    third = await pushed(queue, 6)
    running = await queue.read(second)
    assert (running.superseded_by, running.state) == (third, State.STARTING)
    assert second in await queue.due()


async def test_a_project_may_keep_every_push(ledger):
    await ledger.store_projects(parse_projects(FILE.replace("max_builds_per_key: 2", "supersede: never")))
    first, second = await pushed(ledger, 1), await pushed(ledger, 2)
    assert (await ledger.read(first)).superseded_by is None
    assert await admit(ledger, 9) == [first, second]


async def test_a_superseded_retry_is_not_promoted(queue):
    first = await pushed(queue, 1)
    assert await admit(queue, 1) == [first]
    await queue.transition(await queue.read(first), State.QUEUED, due=MINUTE, again=Again(timedelta(0)))
    second = await pushed(queue, 2)
    assert await admit(queue, 9) == [second]
