"""Admission on a real Redis: every limit at once, shares, priority, pauses, superseding, and why a build waits."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from ledger.build import Again, Reason, State, milliseconds
from ledger.errors import LedgerFull, NotFound, QueueFull, RequestInvalid
from ledger.limits import Scope
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
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
    assert sum(build in other for build in order) == pytest.approx(30, abs=4)
    assert sum(build in demo for build in order) == pytest.approx(10, abs=4)


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


async def test_of_a_projects_classes_the_best_build_goes_first(queue):
    """Both have room: a steady flow in one must not hold back the other."""
    await queue.limits.give_back(Scope.parse("class/arm64"))
    await queue.limits.set(Scope.parse("class/arm64"), 50)
    first = await submit(queue, 1, platforms=["linux/arm64"])
    second = await submit(queue)
    third = await submit(queue, 1, platforms=["linux/arm64"])
    fourth, best = await submit(queue), await submit(queue, priority=50)
    assert await admit(queue, 9) == [*best, *first, *second, *third, *fourth]


async def test_a_share_is_of_the_time_that_slots_are_held(queue):
    """Of two projects of one weight, whose builds take an hour does not end with all slots."""
    await queue.store_projects(parse_projects(FILE.replace("weight: 3, ", "").replace("max_builds: 100", "max_builds: 1")))
    root, command = queue.connection.keys.root, queue.connection.command
    held = {"demo": 0.0, "other": 0.0}
    for _ in range(30):
        await submit(queue), await submit(queue, project="other")
        (running,) = await admit(queue, 1)
        record = await queue.read(running)
        minutes = 60 if record.project == "demo" else 1
        await command("HINCRBY", f"{root}b:{running}", "admitted", -60_000 * minutes)
        held[record.project] += minutes
        await end(queue, running)
    assert held["demo"] <= 60 * 2
    assert held["other"] >= 25


async def test_classes_that_nobody_waits_for_are_forgotten(queue):
    await submit(queue, 2, placement={"capacity_class": "large"})
    blocked = await submit(queue, 2, concurrency_key="k") + await submit(queue, 1, concurrency_key="k")
    assert set(await queue.connection.command("HKEYS", queue.connection.keys.classes)) == {b"amd64", b"large"}
    admitted = await admit(queue, 9)
    assert await queue.connection.command("HGETALL", queue.connection.keys.classes) == {b"amd64": b"1"}  # one waits for its key
    await end(queue, admitted[-1])
    assert await admit(queue, 9) == [blocked[2]]
    assert await queue.connection.command("HLEN", queue.connection.keys.classes) == 0


async def test_all_platforms_are_admitted_in_one_call_or_none_is(queue):
    """More than one come with the issue on several architectures; the ledger is ready for them."""
    await queue.limits.set(Scope.parse("project/demo"), 3)
    (wide,) = await submit(queue)
    await queue.connection.command("HSET", queue.connection.keys.build(wide), "platforms", "linux/amd64,linux/arm64")
    others = await submit(queue, 2, priority=1)
    elsewhere = await submit(queue, project="other")
    assert set(await admit(queue, 3)) == {*others, *elsewhere}  # one slot is left for two platforms
    assert await queue.admit(MINUTE) is None
    assert len(await queue.slots()) == 3
    await end(queue, others[0])
    assert await admit(queue, 1) == [wide]
    assert {member.rpartition("/")[0] for member in await queue.slots() if member.startswith(wide)} == {f"{wide}/1/linux"}
    assert len(await queue.slots()) == 4


async def test_a_wrong_index_stops_nobody(queue):
    root, command = queue.connection.keys.root, queue.connection.command
    await command("ZADD", f"{root}turns:amd64", -1, "nobody", -2, "demo")
    await command("HSET", f"{root}classes", "amd64", 1)
    await command("ZADD", f"{root}open:demo|amd64", 0, "no such lane")
    gone = (await submit(queue))[0]
    await command("DEL", queue.connection.keys.build(gone))
    builds = await submit(queue, 2)
    assert await admit(queue, 3) == builds


async def test_a_point_of_priority_is_a_minute_of_waiting(queue):
    old = (await submit(queue))[0]
    for name in ("q:demo", "lane:demo|amd64|registry.example.com|", "open:demo|amd64"):  # it has waited for half an hour
        member = "registry.example.com|" if name.startswith("open") else old
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


async def test_what_was_taken_in_is_told_again_although_the_queue_is_full(queue):
    """The answer to the submit that filled it was lost: told `full`, its sender would submit it a second time."""
    await submit(queue, 38, project="other")
    last = draft(make_request(project="other"))
    keyed = await submit_build_async(make_request(project="other"), idempotency_key="k", ledger=queue)
    (taken,) = await submit_drafts(queue, [last])
    with pytest.raises(QueueFull):
        await submit(queue, 1, project="other")
    (again,) = await submit_drafts(queue, [last])
    assert (again.id, again.version) == (taken.id, 0)
    assert (await submit_build_async(make_request(project="other"), idempotency_key="k", ledger=queue)).id == keyed.id


async def test_a_push_that_takes_the_place_of_one_that_waits_is_not_one_more(queue):
    first = await pushed(queue, 1, project="other")
    await submit(queue, 39, project="other")
    second = await pushed(queue, 2, project="other")
    assert (await queue.read(first)).superseded_by == second


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


async def test_memory_that_is_short_refuses_what_is_new_and_nothing_else(own_redis, projects):
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await ledger.store_projects(projects)
    running = await submit_build_async(make_request(), ledger=ledger)
    admitted = await ledger.admit(MINUTE)
    assert not await ledger.guard_memory()
    used = (await ledger.connection.command("INFO", "memory"))["used_memory"]
    await ledger.connection.command("CONFIG", "SET", "maxmemory", int(used * 1.05))
    assert await ledger.guard_memory()
    with pytest.raises(LedgerFull, match="maxmemory") as refused:
        await submit_build_async(make_request(), ledger=ledger)
    assert refused.value.retryable
    await ledger.connection.command("CONFIG", "SET", "maxmemory", int(used * 0.9))  # Redis itself refuses now
    await ledger.store_projects(projects)
    await ledger.limits.pause(Scope.parse("all"))
    await ledger.transition(admitted, State.FAILED, due=None, reason=Reason.BUILD_FAILED)
    assert (await ledger.read(running.id)).state is State.FAILED
    await ledger.connection.command("CONFIG", "SET", "maxmemory", 0)
    await ledger.connection.command("DEL", ledger.connection.keys.full)
    assert not await ledger.guard_memory()
    await submit_build_async(make_request(), ledger=ledger)
    await ledger.close()


async def test_time_that_was_paused_is_known(queue):
    """Overlapping pauses count once."""
    build = await queue.read((await submit(queue))[0])
    since = build.created
    assert await queue.limits.paused(build, since, since + MINUTE) == (False, timedelta(0))
    key = queue.connection.keys.pauses
    at = milliseconds(since)
    await queue.connection.command("RPUSH", key(""), f"{at - 5000} {at + 10000}", f"{at + 20000} {at + 30000}")
    await queue.connection.command("RPUSH", key(["project", "demo"][1]), f"{at + 5000} {at + 25000}")
    assert await queue.limits.paused(build, since, since + MINUTE) == (False, timedelta(seconds=30))
    await queue.connection.command("HSET", queue.connection.keys.paused, "class|amd64", at + 40000)
    assert await queue.limits.paused(build, since, since + MINUTE) == (True, timedelta(seconds=50))


async def test_what_is_paused_can_be_resumed_although_it_left_the_file(queue):
    await queue.limits.pause(Scope.parse("project/demo"))
    await queue.store_projects(parse_projects("version: 1\nprojects: {other: {}}"))
    assert await queue.limits.resume(Scope.parse("project/demo"))
    with pytest.raises(NotFound):
        await queue.limits.resume(Scope.parse("project/demo"))


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
