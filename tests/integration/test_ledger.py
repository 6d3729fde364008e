"""The ledger on a real Redis: each change is whole or not at all."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from ledger.build import Again, Reason, State
from ledger.errors import (
    FenceLost,
    LedgerFull,
    LedgerUnavailable,
    LedgerUnfit,
    NotFound,
    PolicyDenied,
    RequestInvalid,
    TooLate,
    VersionConflict,
)
from ledger.events import EventType, event
from ledger.fitness import require_fit
from ledger.leases import Fence
from ledger.logbook import Line
from ledger.settings import Settings
from ledger.store import Ledger
from ledger.submission import Push, Seen, draft
from producer.submit import submit_build_async, submit_drafts, wait_for_build_async
from tests.requests import COMMIT, NOW, make_request

MINUTE = timedelta(minutes=1)


async def submit(ledger: Ledger, count: int = 1, **changes):
    return [await submit_build_async(make_request(**changes), ledger=ledger) for _ in range(count)]


async def events_of(ledger: Ledger, build: str) -> list[str]:
    told = [json.loads(text) for _, text in await ledger.events("0-0", count=10_000)]
    return [entry["type"].split(".")[-4] for entry in told if entry["data"].get("customData", {}).get("build") == build]


async def test_a_submitted_build_is_queued_and_says_its_place(ledger):
    first, second = await submit(ledger, 2)
    assert (first.state, first.position, second.position) == (State.QUEUED, 0, 1)
    stored = await ledger.read(first.id)
    assert stored.request == make_request()
    assert (stored.version, stored.attempt, stored.sequence) == (1, 0, first.sequence)
    assert second.sequence == first.sequence + 1
    assert stored.due - stored.created == timedelta(hours=24)
    assert await events_of(ledger, first.id) == ["queued"]


async def test_an_idempotency_key_gives_the_first_build(ledger):
    first = await submit_build_async(make_request(), idempotency_key="k", ledger=ledger)
    again = await submit_build_async(make_request(priority=3), idempotency_key="k", ledger=ledger)
    assert again.id == first.id
    assert again.request == first.request
    assert (await ledger.count())[State.QUEUED] == 1
    with pytest.raises(RequestInvalid, match="idempotency_key"):
        await submit_build_async(make_request(), idempotency_key="", ledger=ledger)


async def test_policy_is_the_ledgers_and_changes_at_once(ledger, projects):
    await submit(ledger)
    demo = projects.projects["demo"].model_copy(update={"rules": ()})
    await ledger.store_projects(projects.model_copy(update={"projects": {"demo": demo}}))
    with pytest.raises(PolicyDenied, match=r"destinations\.0"):
        await submit(ledger)
    with pytest.raises(NotFound, match="no project 'other'"):
        await submit(ledger, project="other")
    assert (await ledger.count())[State.QUEUED] == 1


async def test_a_push_is_taken_in_once(ledger):
    def drafts():
        return [draft(make_request())]

    async def push(delivery, commit, ref="refs/heads/main"):
        return await submit_drafts(ledger, drafts(), Push(delivery, ref, commit))

    assert isinstance(await push("d1", "a" * 40), list)
    assert isinstance(await push("d1", "b" * 40), Seen)  # the same delivery
    assert isinstance(await push("d2", "a" * 40), Seen)  # the same commit
    assert isinstance(await push("d3", "b" * 40), list)
    assert isinstance(await push("d4", "a" * 40), list)  # A, B, A is a legitimate sequence
    assert isinstance(await push("d5", "a" * 40, "refs/heads/other"), list)
    assert (await ledger.count())[State.QUEUED] == 4


async def test_limits_hold_and_slots_come_back(ledger):
    await submit(ledger, 5)
    admitted = [await ledger.admit(MINUTE) for _ in range(5)]
    taken = [build for build in admitted if build]
    assert [build.state for build in taken] == [State.STARTING] * 2  # the project's limit
    assert set(await ledger.slots()) == {f"{build.id}/1/linux/amd64" for build in taken}
    waiting = (await ledger.page(state=State.QUEUED)).builds[-1]
    assert "project's limit: 2 of 2 run" in (await ledger.waiting(waiting)).say(None)
    await ledger.transition(taken[0], State.FAILED, due=None, reason=Reason.BUILD_FAILED)
    assert (await ledger.admit(MINUTE)) is not None
    assert (await ledger.admit(MINUTE)) is None


async def test_the_global_limit_holds_over_projects(ledger):
    other = {"kind": "git", "url": "https://git.example.com/team/other.git", "commit": COMMIT}
    await submit(ledger, 6, project="other", source=other, destinations=["registry.example.com/team/other:1.0.0"])
    await submit(ledger, 2)
    taken = [build for build in [await ledger.admit(MINUTE) for _ in range(8)] if build]
    assert len(taken) == 4
    assert {build.project for build in taken} == {"demo", "other"}  # neither project waits for the other's queue
    blocked = (await ledger.page(project="other", state=State.QUEUED)).builds[0]
    assert "limit over all: 4 of 4 run" in (await ledger.waiting(blocked)).say(None)


async def test_admission_is_atomic_among_many(ledger):
    await submit(ledger, 40)
    taken = await asyncio.gather(*(ledger.admit(MINUTE) for _ in range(40)))
    assert sum(build is not None for build in taken) == 2
    assert len(await ledger.slots()) == 2


async def test_a_thousand_tasks_take_turns_on_a_few_connections(ledger):
    build = (await submit(ledger))[0]
    found = await asyncio.gather(*(ledger.read(build.id) for _ in range(1000)))
    assert {again.id for again in found} == {build.id}
    assert len((await ledger.connection.command("CLIENT", "LIST")).splitlines()) < 100


async def test_priority_goes_first_within_a_project(ledger):
    low, high = (await submit(ledger, priority=-5))[0], (await submit(ledger, priority=7))[0]
    assert high.position == 0
    assert (await ledger.admit(MINUTE)).id == high.id
    assert (await ledger.admit(MINUTE)).id == low.id


async def test_a_write_names_the_version_that_it_has_read(ledger):
    await submit(ledger)
    build = await ledger.admit(MINUTE)
    await ledger.transition(build, State.RUNNING, due=MINUTE)
    with pytest.raises(VersionConflict):
        await ledger.transition(build, State.FAILED, due=None)
    assert (await ledger.read(build.id)).state is State.RUNNING


async def test_what_has_ended_never_changes(ledger):
    build = (await submit(ledger))[0]
    ended = await ledger.transition(build, State.CANCELLED, due=None, events=[event(EventType.CANCELLED, build)])
    for state in State:
        with pytest.raises(TooLate):
            await ledger.transition(ended, state, due=None)
    assert await events_of(ledger, build.id) == ["queued", "cancelled"]
    assert await ledger.admit(MINUTE) is None
    assert (await ledger.next_due()) is None


async def test_a_fence_that_is_not_held_writes_nothing(ledger):
    await submit(ledger)
    first = await ledger.leases.take("watch", "one", MINUTE)
    assert await ledger.leases.take("watch", "two", MINUTE) is None
    assert await ledger.leases.take("watch", "one", timedelta(milliseconds=1)) == first
    while (second := await ledger.leases.take("watch", "two", MINUTE)) is None:
        await asyncio.sleep(0.001)
    assert second > first
    build = await ledger.admit(MINUTE)
    with pytest.raises(FenceLost):
        await ledger.transition(build, State.FAILED, due=None, fence=Fence("watch", first))
    with pytest.raises(FenceLost):
        await ledger.logs.append(build.id, 1, [Line(NOW, "late")], fence=Fence("watch", first))
    assert (await ledger.transition(build, State.RUNNING, due=None, fence=Fence("watch", second))).state is State.RUNNING
    await ledger.leases.give_back("watch", "one")
    assert await ledger.leases.holder("watch") == "two"


async def test_a_retry_waits_for_its_time(ledger):
    await submit(ledger)
    build = await ledger.admit(MINUTE)
    delayed = await ledger.transition(build, State.QUEUED, due=timedelta(hours=1), again=Again(timedelta(hours=1)), reason=Reason.POD_LOST)
    assert await ledger.admit(MINUTE) is None
    assert (await ledger.read(build.id)).not_before is not None
    assert (await ledger.waiting(delayed)).position is None
    await ledger.connection.command("ZADD", ledger.connection.keys.delayed, "XX", 0, build.id)  # its time has come
    again = await ledger.admit(MINUTE)
    assert again
    assert (again.id, again.attempt) == (build.id, 2)


async def test_due_times_bring_a_build_back(ledger):
    build = (await submit(ledger))[0]
    assert await ledger.due() == []
    await ledger.postpone(build.id, timedelta(0))
    assert await ledger.due() == [build.id]
    await ledger.transition(build, State.CANCELLED, due=None)
    await ledger.postpone(build.id, timedelta(0))
    assert await ledger.due() == []


async def test_pages_are_newest_first_and_go_on_where_they_stopped(ledger):
    builds = [build.id for build in await submit(ledger, 7)][::-1]
    first = await ledger.page(project="demo", limit=3)
    second = await ledger.page(project="demo", limit=3, cursor=first.cursor)
    third = await ledger.page(project="demo", limit=3, cursor=second.cursor)
    assert [build.id for page in (first, second, third) for build in page.builds] == builds
    assert third.cursor is None
    assert (await ledger.page(state=State.FAILED)).builds == ()


async def test_a_waiter_sees_the_end(ledger):
    build = (await submit(ledger))[0]
    waiters = [asyncio.create_task(wait_for_build_async(build.id, ledger=ledger)) for _ in range(20)]
    running = await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=None)
    await ledger.transition(running, State.FAILED, due=None, reason=Reason.BUILD_FAILED, message="no")
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*waiters)
    assert {(end.state, end.message) for end in ends} == {(State.FAILED, "no")}


async def test_logs_are_kept_within_their_caps(redis_url, projects):
    ledger = Ledger.open(Settings(redis_url=redis_url, log_bytes_per_build="2000", log_bytes_total="3000"))
    await ledger.store_projects(projects)
    builds = await submit(ledger, 3)
    for build in builds:
        for number in range(20):
            await ledger.logs.append(
                build.id, 1, [Line(NOW, f"{number} " + "".join(chr(33 + (number * 7 + n * n) % 90) for n in range(300)))]
            )
    sizes = {
        key.decode(): int(size)
        for key, size in (await ledger.connection.command("HGETALL", f"{ledger.connection.keys.root}logs:sizes")).items()
    }
    assert sizes[""] <= 3000
    assert sum(size for name, size in sizes.items() if name) == sizes[""]
    lines, _, complete = await ledger.logs.read(builds[-1].id, 1)
    assert lines[-1].text.startswith("19 ")
    assert not complete
    assert (await ledger.logs.read(builds[0].id, 1))[0] == []
    await ledger.close()


@pytest.mark.parametrize("microseconds", [1400, 1600])
async def test_a_log_knows_exactly_how_far_it_goes(ledger, microseconds):
    """Many lines fall into one millisecond. A new leader goes on after the last that is stored: none comes twice, and none is lost."""
    build = await submit_build_async(make_request(), ledger=ledger)
    time = NOW + timedelta(microseconds=microseconds)
    await ledger.logs.append(build.id, 1, [Line(time, "a")])
    assert await ledger.logs.last_time(build.id, 1) == (time, False)


async def test_a_batch_of_a_log_that_is_sent_again_is_stored_once(ledger):
    """As redis-py does when no answer came. What a container really says twice, it says later."""
    build = await submit_build_async(make_request(), ledger=ledger)
    for microseconds in (1, 1, 2):
        await ledger.logs.append(build.id, 1, [Line(NOW + timedelta(microseconds=microseconds), "a")])
    await ledger.logs.append(build.id, 1, [Line(NOW + timedelta(microseconds=2), "a")], complete=True)
    assert [line.text for line in (await ledger.logs.read(build.id, 1))[0]] == ["a", "a"]
    assert await ledger.logs.last_time(build.id, 1) == (NOW + timedelta(microseconds=2), True)


async def test_a_complete_log_takes_no_more(ledger):
    build = (await submit(ledger))[0]
    await ledger.logs.append(build.id, 1, [Line(NOW, "a"), Line(NOW, "b")])
    await ledger.logs.append(build.id, 1, [], complete=True)
    with pytest.raises(NotFound):
        await ledger.logs.append(build.id, 1, [Line(NOW, "c")])
    assert [line.text for batch in [batch async for batch in ledger.logs.follow(build.id, 1)] for line in batch] == ["a", "b"]
    assert await ledger.logs.last_time(build.id, 1) == (NOW, True)
    assert [line.text for line in await ledger.logs.tail(build.id, 1, 1)] == ["b"]


async def test_finished_builds_are_forgotten_whole(redis_url, projects):
    ledger = Ledger.open(Settings(redis_url=redis_url, keep_finished="1ms"))
    await ledger.store_projects(projects)
    empty = set(await ledger.connection.command("KEYS", "*"))
    build = await submit_build_async(make_request(), idempotency_key="k", ledger=ledger)
    started = await ledger.admit(MINUTE)
    await ledger.logs.append(build.id, 1, [Line(NOW, "a")], complete=True)
    await ledger.transition(started, State.FAILED, due=None)
    while not await ledger.expire():
        await asyncio.sleep(0.002)
    left = set(await ledger.connection.command("KEYS", "*")) - empty
    root = ledger.connection.keys.root
    assert left <= {f"{root}{name}".encode() for name in ("seq", "events", "shares", "logs:sizes")}
    with pytest.raises(NotFound):
        await ledger.read(build.id)
    await ledger.close()


async def publishing(ledger):
    """A build whose image is pushed."""
    build = (await submit(ledger))[0]
    while (admitted := await ledger.admit(MINUTE)).id != build.id:
        pass
    run = await ledger.transition(admitted, State.RUNNING, due=MINUTE)
    return await ledger.transition(run, State.PUBLISHING, due=MINUTE, digest=f"sha256:{build.sequence:064}")


async def test_wanted_tags_are_only_raised(ledger):
    builds = [await publishing(ledger) for _ in range(3)]

    async def want(build):
        return (await ledger.tags.want("r.example.com/app", ["latest"], build))["latest"].sequence

    assert [await want(builds[number]) for number in (1, 0, 2, 1)] == [2, 2, 3, 3]


async def test_who_no_longer_publishes_a_build_raises_no_tag(ledger):
    build = await publishing(ledger)
    other = await ledger.transition(build, State.PUBLISHING, due=MINUTE, claimed=True)
    with pytest.raises(VersionConflict):
        await ledger.tags.want("r.example.com/app", ["latest"], build)
    with pytest.raises(VersionConflict):
        await ledger.hold(build, MINUTE)
    await ledger.hold(other, MINUTE)
    await ledger.transition(other, State.SUCCEEDED, due=None)
    with pytest.raises(VersionConflict):
        await ledger.hold(other, MINUTE)
    assert await ledger.tags.wanted("r.example.com/app", "latest") is None


async def test_a_full_redis_refuses_submits_and_lets_the_rest_finish(own_redis, projects):
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await ledger.store_projects(projects)
    await submit(ledger)
    build = await ledger.admit(MINUTE)
    await ledger.connection.command("CONFIG", "SET", "maxmemory", "1mb")
    before = await ledger.count()
    with pytest.raises(LedgerFull, match="maxmemory"):
        await submit(ledger)
    assert await ledger.count() == before
    assert (await ledger.transition(build, State.FAILED, due=None)).state is State.FAILED
    await ledger.close()


async def test_a_killed_redis_has_lost_nothing(own_redis, projects):
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await ledger.store_projects(projects)
    builds = await submit(ledger, 20)
    started = await ledger.admit(MINUTE)
    own_redis.kill()
    with pytest.raises(LedgerUnavailable, match="CRABPOT_REDIS_URL"):
        await submit(ledger)
    own_redis.start()
    assert {build.id for build in (await ledger.page(limit=100)).builds} == {build.id for build in builds}
    assert (await ledger.read(started.id)).state is State.STARTING
    assert len(await ledger.slots()) == 1
    assert (await submit(ledger))[0].state is State.QUEUED  # the scripts are loaded anew
    await ledger.close()


async def test_an_unfit_redis_is_refused(own_redis):
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await require_fit(ledger.connection)
    await ledger.connection.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(LedgerUnfit, match="noeviction"):
        await require_fit(ledger.connection)
    await ledger.close()
