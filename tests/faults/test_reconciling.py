"""What the leader looks at by itself: what is due, what has no build, what comes late; and the one event that tells what it put right."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from importlib.resources import files

import jsonschema
import pytest

from ledger.build import Reason, State
from ledger.errors import FenceLost
from ledger.leases import Fence
from ledger.limits import Scope
from producer.cancel import cancel_build
from tests.faults.test_promises import push, started, submit
from tests.faults.test_superseding import prefers, pushed, running
from worker.admission import dispatch
from worker.cluster import Phase, PodName

HOUR = timedelta(hours=1)


async def older(site, build, field: str, by: timedelta) -> None:
    key = site.ledger.connection.keys.build(build.id)
    await site.ledger.connection.command("HINCRBY", key, field, -int(by.total_seconds() * 1000))


async def test_time_that_was_paused_is_not_counted_against_the_deadline(site, registry):
    await site.lead()
    build = await submit(site, registry, deadlines={"queued": "1h"})
    await older(site, build, "created", 3 * HOUR)
    keys = site.ledger.connection.keys
    await site.ledger.limits.pause(Scope.parse("all"))
    await site.reconciler.look_at(build.id)
    assert (await site.ledger.read(build.id)).state is State.QUEUED
    since = int(await site.ledger.connection.command("HGET", keys.paused, ""))
    await site.ledger.connection.command("HSET", keys.paused, "", since - int(2.5 * 3_600_000))
    await site.ledger.limits.resume(Scope.parse("all"))
    await site.reconciler.look_at(build.id)
    assert (await site.ledger.read(build.id)).state is State.QUEUED  # half an hour is left
    await older(site, build, "created", HOUR)
    await site.reconciler.look_at(build.id)
    assert (await site.ledger.read(build.id)).reason is Reason.QUEUED_DEADLINE


async def test_a_pod_without_a_build_goes_once_that_is_found_twice(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, State.RUNNING)
    await site.ledger.connection.command("RENAME", site.ledger.connection.keys.build(build.id), "elsewhere")
    site.observer.look_again(pod)
    site.observer.look_again(pod)
    async with asyncio.timeout(5):
        while not site.observer._orphans:
            await asyncio.sleep(0.01)
    site.observer.look_at_orphans()
    await asyncio.sleep(0.05)
    assert site.cluster.deleted == []  # the same moment, however often one looks
    site.observer._orphans = {uid: since - 6 for uid, since in site.observer._orphans.items()}
    site.observer.look_at_orphans()
    async with asyncio.timeout(5):
        while pod in site.cluster.live:
            await asyncio.sleep(0.01)
    assert ("orphan_deleted", pod) in await site.ledger.mended()


async def test_a_build_that_comes_back_keeps_its_pod(site, registry):
    """The first look was wrong: a replica of Redis that was behind, say."""
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, State.RUNNING)
    key = site.ledger.connection.keys.build(build.id)
    await site.ledger.connection.command("RENAME", key, "elsewhere")
    site.observer.look_again(pod)
    await asyncio.sleep(0.05)
    await site.ledger.connection.command("RENAME", "elsewhere", key)
    site.observer._orphans = {uid: since - 6 for uid, since in site.observer._orphans.items()}
    site.observer.look_at_orphans()
    await asyncio.sleep(0.05)
    assert site.cluster.deleted == []


async def test_news_that_come_late_are_old_news(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, State.RUNNING)
    early = site.observer.pods[pod]
    ended = replace(early, phase=Phase.ENDED, exit_code=0, message=push(registry, build))
    site.observer.see(ended)
    site.observer.see(early)
    site.observer.see(replace(early, phase=Phase.PENDING))
    await site.reaches(build.id, State.PUBLISHING)
    assert site.observer.pods[pod].phase is Phase.ENDED


async def test_what_was_put_right_is_told_in_one_event(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, State.RUNNING)
    await site.ledger.note_mended("start_repeated", build.id)
    await site.ledger.note_mended("start_repeated", build.id)
    for number in range(30):
        await site.ledger.note_mended("index_wrong", f"due:{number:02}")
    last = await site.ledger.last_event()
    await site.reconciler.tell_of_mended()
    await site.reconciler.tell_of_mended()
    ((_, text),) = await site.ledger.events(last)
    told = json.loads(text)
    schema = json.loads((files("ledger") / "schemas" / "queue-event.json").read_text())
    jsonschema.validate(told, schema)
    mended = told["data"]["mended"]
    assert mended["start_repeated"] == {"count": 1, "subjects": [build.id]}
    assert (mended["index_wrong"]["count"], len(mended["index_wrong"]["subjects"])) == (30, 20)
    assert await site.ledger.mended() == []


async def test_an_event_that_is_sent_again_is_told_once_and_costs_no_note(site, registry):
    """Its answer was lost."""
    await site.lead()
    fence = site.reconciler._fence
    await site.ledger.note_mended("pod_lost", "a")
    for _ in range(2):
        await site.ledger.tell('{"id":"x"}', fence=fence, mended=1)
        await site.ledger.note_mended("pod_lost", "b")
    assert await site.ledger.mended() == [("pod_lost", "b")] * 2


async def test_who_leads_no_more_tells_nothing(site, registry):
    await site.ledger.note_mended("pod_lost", "x")
    last = await site.ledger.last_event()
    with pytest.raises(FenceLost):
        await site.ledger.tell("{}", fence=Fence("watch", 999), mended=1)
    assert await site.ledger.last_event() == last
    assert await site.ledger.mended() == [("pod_lost", "x")]


async def test_a_look_of_a_leader_that_was_stopped_moves_no_due_time(site, registry):
    build = await submit(site, registry)
    await site.ledger.admit(HOUR)
    due = site.ledger.connection.keys.due
    before = await site.ledger.connection.command("ZSCORE", due, build.id)
    assert not await site.ledger.postpone(build.id, 24 * HOUR, build.version)
    assert await site.ledger.connection.command("ZSCORE", due, build.id) == before


async def test_a_superseded_build_that_fails_by_its_own_fault_says_so(site, registry):
    """The newer push may fail for the same reason: its author wants to know."""
    await site.lead()
    old, pod = await running(site, registry, 1)
    await pushed(site, registry, 2)
    site.cluster.lines[pod] = ["error building image: parsing dockerfile: file with no instructions"]
    await site.cluster.end(pod, exit_code=1, message=None)
    assert (await site.reaches(old.id, State.FAILED, State.SUPERSEDED)).reason is Reason.DOCKERFILE_INVALID


async def test_a_cancel_by_somebody_stays_one_where_superseded_builds_are_ended(site, registry):
    await prefers(site, "running")
    await site.lead()
    old, _ = await running(site, registry, 1)
    await cancel_build(site.ledger, old.id)
    await pushed(site, registry, 2)
    await site.look_at_due()
    assert (await site.reaches(old.id, State.CANCELLED, State.SUPERSEDED)).reason is Reason.CANCELLED


async def test_attempts_say_what_memory_they_had(site, registry):
    await site.lead()
    build, pod = await started(site, registry, resources={"memory": "1Gi"})
    await site.cluster.end(pod, exit_code=137, message=None, reason="OOMKilled")
    record = await site.reaches(build.id, State.QUEUED)
    assert [attempt.memory for attempt in record.attempts] == ["1Gi"]
    await site.ledger.connection.command("ZADD", site.ledger.connection.keys.delayed, 0, build.id)
    await dispatch(site.place)
    second = PodName((await site.ledger.read(build.id)).current.runs[0].pod)
    assert site.cluster.launches[second].memory == "2048Mi"
    await site.cluster.end(second, exit_code=137, message=None, reason="OOMKilled")
    record = await site.reaches(build.id, State.QUEUED)
    assert [attempt.memory for attempt in record.attempts] == ["1Gi", "2048Mi"]


async def test_a_thousand_lost_pods_are_one_list(site, registry, monkeypatch):
    await site.lead()
    builds = [await started(site, registry, commit=f"{number:040x}") for number in range(2)]
    for build, pod in builds:
        await site.cluster.run(pod)
        await site.reaches(build.id, State.RUNNING)
    lists, pods = 0, site.cluster.pods

    async def counted():
        nonlocal lists
        lists += 1
        return await pods()

    monkeypatch.setattr(site.cluster, "pods", counted)
    site.cluster.live.clear()
    site.observer.pods.clear()
    for _ in range(2):
        await site.reconciler.look_at_slots()
    assert lists == 1
    for build, _ in builds:
        assert (await site.ledger.read(build.id)).state is State.PUBLISHING  # the registry is asked whether it was pushed
    assert not await site.ledger.slots()
