"""The promises of ARCHITECTURE.md, each held against what breaks it: killed steps, lost and doubled messages, lying clusters."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import timedelta
from time import monotonic

import pytest

from ledger.build import ATTEMPT_LABEL, Build, Reason, State
from ledger.errors import ClusterUnavailable, LaunchRefused, NoRoom, TooLate, VersionConflict
from ledger.events import EventType, event
from producer.cancel import cancel_build
from producer.submit import submit_build_async
from tests.requests import COMMIT, request_fields
from worker.admission import dispatch
from worker.cluster import PodName
from worker.finish import finish
from worker.launch import start

RUNNING, PUBLISHING, SUCCEEDED, FAILED, QUEUED = State.RUNNING, State.PUBLISHING, State.SUCCEEDED, State.FAILED, State.QUEUED
CANCELLED = State.CANCELLED


async def submit(site, registry, *, commit: str = COMMIT, tags: tuple[str, ...] = ("latest",), **changes) -> Build:
    image = f"{registry.host}/team/demo"
    source = {**request_fields()["source"], "commit": commit}
    fields = request_fields(source=source, destinations=[f"{image}:{tag}" for tag in (commit, *tags)], **changes)
    return await submit_build_async(fields, ledger=site.ledger)


def push(registry, build: Build, attempt: int = 1, tag: str | None = None, repository: str = "team/demo") -> str:
    """What the executor does: an image in the registry; its digest."""
    raw = registry.push_image(
        repository, tag or build.request.commit, layers=(build.id.encode(),), labels={ATTEMPT_LABEL: f"{build.id}.{attempt}"}
    )
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


async def started(site, registry, **changes) -> tuple[Build, PodName]:
    build = await submit(site, registry, **changes)
    await dispatch(site.place)
    build = await site.ledger.read(build.id)
    return build, PodName(build.current.runs[0].pod)


async def events_of(site, build: str) -> list[str]:
    told = [json.loads(text) for _, text in await site.ledger.events("0-0", count=10_000)]
    ids = [entry["id"] for entry in told if entry["data"]["customData"]["build"] == build]
    assert len(ids) == len(set(ids)), "an event was told twice"
    return [entry["type"].split(".")[-4] for entry in told if entry["data"]["customData"]["build"] == build]


async def succeed(site, registry, build: Build, pod: PodName, attempt: int = 1) -> Build:
    await site.cluster.end(pod, message=push(registry, build, attempt))
    await site.reaches(build.id, PUBLISHING)
    await finish(site.place, build.id)
    return await site.ledger.read(build.id)


# 1. A build is never lost


async def test_1_the_whole_life(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, RUNNING)
    ended = await succeed(site, registry, build, pod)
    assert (ended.state, ended.digest is not None, ended.size > 0) == (SUCCEEDED, True, True)
    assert await events_of(site, build.id) == ["queued", "started", "published", "published", "finished"]
    assert await site.ledger.slots() == {}
    async with asyncio.timeout(5):
        while site.cluster.live:
            await asyncio.sleep(0.01)


async def test_1_a_worker_killed_between_admission_and_start(site, registry):
    await site.lead()
    build = await submit(site, registry)
    await site.ledger.admit(timedelta(seconds=60))  # and then it was killed
    assert not site.cluster.live
    await site.look_at_due()
    await site.deliver()
    pod = PodName((await site.ledger.read(build.id)).current.runs[0].pod)
    await site.cluster.run(pod)
    await site.reaches(build.id, RUNNING)
    assert (await succeed(site, registry, build, pod)).state is SUCCEEDED


async def test_1_a_worker_killed_after_the_create(site, registry):
    build = await submit(site, registry)
    admitted = await site.ledger.admit(timedelta(seconds=60))
    await start(site.place, admitted, monotonic() + 60)  # and then it was killed; no leader yet
    await site.lead()
    await site.look_at_due()
    await site.deliver()
    pod = PodName(admitted.current.runs[0].pod)
    assert site.cluster.created[pod] == 1
    assert (await succeed(site, registry, build, pod)).state is SUCCEEDED


async def test_1_a_leader_killed_while_the_pod_ends(site, registry):
    await site.lead("first")
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, RUNNING)
    await site.die()
    site.cluster.lines[pod] = [
        "line 1",
        "error building image: error building stage: failed to execute command: waiting for process to exit: exit status 3",
    ]
    await site.cluster.end(pod, exit_code=1, message=None)
    await site.lead("second")
    ended = await site.reaches(build.id, FAILED)
    assert ended.reason is Reason.BUILD_FAILED
    assert ended.current.runs[0].log_tail[0] == "line 1"
    assert (await events_of(site, build.id)).count("finished") == 1
    async with asyncio.timeout(10):
        lines = [line.text async for batch in site.ledger.logs.follow(build.id, 1) for line in batch]
    assert lines[0] == "line 1"


async def test_1_every_nudge_is_lost(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod, message=push(registry, build))
    await site.reaches(build.id, PUBLISHING)
    site.nudges.sent.clear()
    await site.look_at_due()
    assert ("finish", build.id) in site.nudges.sent
    await site.deliver()
    assert (await site.ledger.read(build.id)).state is SUCCEEDED


async def test_1_every_nudge_comes_twice(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await dispatch(site.place, build.id)
    await site.cluster.end(pod, message=push(registry, build))
    await site.reaches(build.id, PUBLISHING)
    await asyncio.gather(*(finish(site.place, build.id) for _ in range(5)))
    await site.deliver(times=2)
    assert (await site.ledger.read(build.id)).state is SUCCEEDED
    assert (await events_of(site, build.id)).count("finished") == 1
    assert set(site.cluster.created.values()) == {1}


async def test_1_a_finisher_killed_while_it_moves_tags(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod, message=push(registry, build))
    record = await site.reaches(build.id, PUBLISHING)
    await site.ledger.transition(record, PUBLISHING, due=timedelta(0), moving_tags=True)  # and then it was killed
    await finish(site.place, build.id)
    assert (await site.ledger.read(build.id)).state is SUCCEEDED


# 2. No two pods of one build and platform


async def test_2_a_build_delivered_many_times_has_one_pod(site, registry):
    build = await submit(site, registry)
    await asyncio.gather(*(dispatch(site.place) for _ in range(8)))
    await asyncio.gather(*(dispatch(site.place, build.id) for _ in range(8)))
    assert list(site.cluster.created.values()) == [1]


async def test_2_a_late_pod_of_an_earlier_attempt_is_deleted_and_never_counts(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    late = site.cluster.launches[pod]
    await site.cluster.end(pod, exit_code=1, message=None, reason="Evicted", disrupted=True)
    await site.reaches(build.id, PUBLISHING)
    await finish(site.place, build.id)  # the registry knows nothing: again
    assert (await site.reaches(build.id, QUEUED)).reason is Reason.EVICTED
    async with asyncio.timeout(5):
        while pod in site.cluster.live:
            await asyncio.sleep(0.01)
    await site.ledger.connection.command("ZADD", site.ledger.connection.keys.delayed, 0, build.id)
    await dispatch(site.place)
    second = await site.ledger.read(build.id)
    assert (second.state, second.attempt) == (State.STARTING, 2)
    await site.cluster.launch(late)  # a paused worker wakes up, and its pod succeeds
    await site.cluster.end(pod, message=push(registry, build, attempt=1))
    async with asyncio.timeout(5):
        while pod in site.cluster.live:
            await asyncio.sleep(0.01)
    assert await site.ledger.read(build.id) == second
    assert len(await site.ledger.slots()) == 1


# 3. Limits


async def test_3_a_limit_is_never_exceeded_and_no_slot_leaks(site, registry):
    await site.lead()
    builds = [await submit(site, registry, commit=f"{number:040x}") for number in range(8)]
    open_builds = {build.id for build in builds}
    while open_builds:
        await dispatch(site.place)
        assert site.cluster.most <= 2
        slots = await site.ledger.slots()
        assert len(slots) <= 2
        for member in slots:
            build = await site.ledger.read(member.split("/")[0])
            ended = await succeed(site, registry, build, PodName(build.current.runs[0].pod))
            assert ended.state is SUCCEEDED
            open_builds.discard(build.id)
    assert await site.ledger.slots() == {}


async def test_3_nothing_is_given_up_after_an_ambiguous_create(site, registry):
    await site.lead()
    site.cluster.troubles = [(ClusterUnavailable("timed out"), True)]  # committed, and then the answer was lost
    build, pod = await started(site, registry)
    assert build.state is State.STARTING
    assert len(await site.ledger.slots()) == 1
    await dispatch(site.place, build.id)
    assert site.cluster.created[pod] == 1
    assert (await succeed(site, registry, build, pod)).attempt == 1


async def test_3_a_definite_no_gives_the_slot_back(site, registry):
    site.cluster.troubles = [(LaunchRefused("denied by webhook: no"), False)]
    build, _ = await started(site, registry)
    assert (build.state, build.reason) == (FAILED, Reason.ADMISSION_DENIED)
    assert "no" in build.message
    assert await site.ledger.slots() == {}


async def test_3_no_room_waits_without_using_up_an_attempt(site, registry):
    site.cluster.troubles = [(NoRoom("exceeded quota"), False)] * 8
    build, _ = await started(site, registry)
    for number in range(1, 9):
        record = await site.ledger.read(build.id)
        assert (record.state, record.reason, record.attempt) == (QUEUED, Reason.QUOTA, number)
        assert await site.ledger.slots() == {}
        await site.ledger.connection.command("ZADD", site.ledger.connection.keys.delayed, 0, build.id)
        await dispatch(site.place)
    assert (await site.ledger.read(build.id)).state is State.STARTING


# 4. What success is


@pytest.mark.parametrize(("exit_code", "message"), [(0, None), (0, "no digest"), (1, "sha256:" + "d" * 64)])
async def test_4_no_success_without_exit_0_and_a_digest(site, registry, exit_code, message):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod, exit_code=exit_code, message=message)
    ended = await site.reaches(build.id, FAILED, QUEUED)
    assert ended.reason is not None
    assert ended.current.runs[0].digest is None


async def test_4_no_success_without_the_registrys_word(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod)  # a digest that nobody pushed
    await site.reaches(build.id, PUBLISHING)
    for _ in range(3):
        await finish(site.place, build.id)
    record = await site.ledger.read(build.id)
    assert (record.state, record.reason, record.attempt) == (QUEUED, Reason.DIGEST_UNCONFIRMED, 1)


async def test_4_a_lost_pods_image_counts_only_with_this_attempts_label(site, registry):
    await site.lead()
    kept, kept_pod = await started(site, registry, commit="1" * 40)
    push(registry, kept)
    await site.cluster.run(kept_pod)
    await site.reaches(kept.id, RUNNING)
    await site.cluster.vanish(kept_pod)
    await site.reaches(kept.id, PUBLISHING)
    await finish(site.place, kept.id)
    assert (await site.ledger.read(kept.id)).state is SUCCEEDED

    lost, lost_pod = await started(site, registry, commit="2" * 40)
    push(registry, lost, attempt=7)  # somebody else's image under the same tag
    await site.cluster.run(lost_pod)
    await site.reaches(lost.id, RUNNING)
    await site.cluster.vanish(lost_pod)
    await site.reaches(lost.id, PUBLISHING)
    await finish(site.place, lost.id)
    record = await site.ledger.read(lost.id)
    assert (record.state, record.reason) == (QUEUED, Reason.POD_LOST)


async def test_4_without_a_push_a_digest_is_enough(site, registry):
    await site.lead()
    build, pod = await started(site, registry, push=False, tar={"host_path": "/out"}, tags=())
    await site.cluster.end(pod)
    assert (await site.reaches(build.id, SUCCEEDED)).digest == "sha256:" + "d" * 64


# 5. Tags


async def test_5_a_mutable_tag_never_moves_backwards(site, registry):
    await site.lead()
    (first, first_pod), (second, second_pod) = (
        await started(site, registry, commit="a" * 40),
        await started(site, registry, commit="b" * 40),
    )
    later = await succeed(site, registry, second, second_pod)
    earlier = await succeed(site, registry, first, first_pod)
    assert (later.state, earlier.state) == (SUCCEEDED, SUCCEEDED)
    client = site.place.registries.client("demo", await site.place.project("demo"), registry.host)
    assert (await client.resolve(first.request.images[1])).digest == later.digest
    assert (await client.resolve(first.request.images[0])).digest == earlier.digest


async def test_5_finishers_at_once_agree(site, registry):
    await site.lead()
    builds = [await started(site, registry, commit=c * 40) for c in "cd"]
    for build, pod in builds:
        await site.cluster.end(pod, message=push(registry, build))
        await site.reaches(build.id, PUBLISHING)
    await asyncio.gather(*(finish(site.place, build.id) for build, _ in builds for _ in range(3)))
    last = await site.ledger.read(builds[-1][0].id)
    client = site.place.registries.client("demo", await site.place.project("demo"), registry.host)
    assert (await client.resolve(last.request.images[1])).digest == last.digest


# 6. A change and its event are one write


async def test_6_a_refused_change_tells_nothing(site, registry):
    build = await submit(site, registry)
    admitted = await site.ledger.admit(timedelta(seconds=60))
    before = await site.ledger.last_event()
    for stale in (build, build.model_copy(update={"version": 99})):
        with pytest.raises(VersionConflict):
            await site.ledger.transition(stale, FAILED, due=None, events=[event(EventType.FINISHED, build)])
    assert await site.ledger.last_event() == before
    await site.ledger.transition(admitted, FAILED, due=None, events=[event(EventType.FINISHED, admitted)])
    with pytest.raises(TooLate):
        await site.ledger.transition(admitted, FAILED, due=None, events=[event(EventType.FINISHED, admitted)])
    assert await events_of(site, build.id) == ["queued", "finished"]


# 7. Cancelling


async def test_7_a_waiting_build_ends_at_once(site, registry):
    build = await submit(site, registry)
    assert (await cancel_build(site.ledger, build.id)).state is CANCELLED
    await dispatch(site.place)
    assert not site.cluster.live
    assert await events_of(site, build.id) == ["queued", "cancelled", "finished"]


async def test_7_between_admission_and_start(site, registry):
    await site.lead()
    build = await submit(site, registry)
    admitted = await site.ledger.admit(timedelta(seconds=60))
    assert (await cancel_build(site.ledger, build.id)).state is State.STARTING
    assert len(await site.ledger.slots()) == 1  # a create may still be on its way
    await start(site.place, admitted, monotonic() + 60)  # and here it comes
    ended = await site.reaches(build.id, CANCELLED)
    assert await site.ledger.slots() == {}
    assert ended.reason is Reason.CANCELLED


async def test_7_while_it_runs(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, RUNNING)
    await cancel_build(site.ledger, build.id)
    assert (await site.ledger.read(build.id)).state is RUNNING
    for due in await site.ledger.due():
        await site.reconciler.look_at(due)
    await site.reaches(build.id, CANCELLED)
    assert await site.ledger.slots() == {}
    assert await events_of(site, build.id) == ["queued", "started", "cancelrequested", "cancelled", "finished"]


async def test_7_it_wins_over_a_success_until_tags_are_moved(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod, message=push(registry, build))
    await site.reaches(build.id, PUBLISHING)
    await cancel_build(site.ledger, build.id)
    await finish(site.place, build.id)
    assert (await site.ledger.read(build.id)).state is CANCELLED

    late, late_pod = await started(site, registry, commit="e" * 40)
    await site.cluster.end(late_pod, message=push(registry, late))
    record = await site.reaches(late.id, PUBLISHING)
    await site.ledger.transition(record, PUBLISHING, due=timedelta(0), moving_tags=True)
    with pytest.raises(TooLate, match="too late"):
        await cancel_build(site.ledger, late.id)
    await finish(site.place, late.id)
    assert (await site.ledger.read(late.id)).state is SUCCEEDED


async def test_7_a_waiting_retry_is_cancelled_for_good(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod, exit_code=1, message=None, reason="Evicted", disrupted=True)
    await site.reaches(build.id, PUBLISHING)
    await finish(site.place, build.id)
    await site.reaches(build.id, QUEUED)
    assert (await cancel_build(site.ledger, build.id)).state is CANCELLED
    await dispatch(site.place)
    assert (await site.ledger.read(build.id)).state is CANCELLED


# 10. No secrets


async def test_10_no_secret_is_stored(site, registry):
    secret = "hunter2-hunter2-hunter2"
    await site.lead()
    build, pod = await started(site, registry)
    site.cluster.lines[pod] = [f"cloning https://crab:{secret}@git.example.com/r", f"export NPM_TOKEN_SECRET={secret}", "done"]
    await site.cluster.end(pod, exit_code=1, message=f"Authorization: Bearer {secret}")
    await site.reaches(build.id, FAILED, QUEUED)
    async with asyncio.timeout(5):
        while not (await site.ledger.logs.last_time(build.id, 1))[1]:
            await asyncio.sleep(0.01)
    stored = [str(await site.ledger.connection.command("DUMP", key)) for key in await site.ledger.connection.command("KEYS", "*")]
    lines, _, _ = await site.ledger.logs.read(build.id, 1)
    assert len(lines) == 3
    record = await site.ledger.read(build.id)
    told = " ".join(
        [*stored, *(line.text for line in lines), record.model_dump_json(), *(str(text) for _, text in await site.ledger.events("0-0"))]
    )
    assert secret not in told
