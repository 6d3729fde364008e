"""Starting: what a refusal proves, and when; and what ends a build whose pod cannot be created."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from time import monotonic

import pytest

import worker.launch
from ledger.build import Reason, State
from ledger.errors import ClusterUnavailable, LaunchRefused, LedgerUnavailable, NoRoom
from producer.cancel import cancel_build
from tests.faults.test_promises import COMMIT, started, submit, succeed
from worker.admission import dispatch
from worker.cluster import PodName
from worker.launch import give_up, restart, start
from worker.outcome import Outcome
from worker.place import STARTS_AT_ONCE

HOUR = timedelta(hours=1)
REFUSALS = [NoRoom("exceeded quota"), LaunchRefused("denied by webhook")]


async def admitted(site, registry, **changes):
    await submit(site, registry, **changes)
    return await site.ledger.admit(HOUR)


async def long_ago(site, build, **fields) -> None:
    """As if the record's times were an hour older."""
    key = site.ledger.connection.keys.build(build.id)
    for field in fields or {"admitted": 0}:
        then = int(await site.ledger.connection.command("HGET", key, field)) - 3_600_000
        await site.ledger.connection.command("HSET", key, field, then)


@pytest.mark.parametrize("refusal", REFUSALS, ids=["quota", "webhook"])
async def test_a_refused_repeat_gives_nothing_up(site, registry, refusal):
    """The first create may just be on its way, and the quota used up by the very pod."""
    build = await admitted(site, registry)
    site.cluster.troubles = [(refusal, False)]
    await dispatch(site.place, build.id)
    record = await site.ledger.read(build.id)
    assert (record.state, record.attempt, len(await site.ledger.slots())) == (State.STARTING, 1, 1)
    await site.lead()
    await start(site.place, build, monotonic() + 60)  # and here it comes
    pod = PodName(build.current.runs[0].pod)
    assert (await succeed(site, registry, build, pod)).attempt == 1


@pytest.mark.parametrize("refusal", REFUSALS, ids=["quota", "webhook"])
async def test_a_late_refusal_of_the_first_start_gives_nothing_up(site, registry, refusal, monkeypatch):
    """By then somebody else may have created the pod."""
    build = await admitted(site, registry)
    launch, until = site.cluster.launch, monotonic() + 60

    async def slow(each, wanted):
        await launch(each, wanted)  # somebody else's
        monkeypatch.setattr(worker.launch, "monotonic", lambda: until + 1)
        raise refusal

    site.cluster.launch = slow
    with pytest.raises(type(refusal)):
        await start(site.place, build, until)
    assert (await site.ledger.read(build.id)).state is State.STARTING
    assert len(await site.ledger.slots()) == 1


async def test_who_was_stopped_before_the_create_leaves_it_alone(site, registry):
    build = await admitted(site, registry)
    with pytest.raises(ClusterUnavailable):
        await start(site.place, build, monotonic() - 1)
    assert not site.cluster.created


async def test_a_surprise_after_the_create_keeps_the_slot(site, registry):
    """The pod may exist: to give its slot away would be one too many."""
    launch = site.cluster.launch

    async def surprising(each, wanted):
        await launch(each, wanted)
        raise ValueError("an answer that nobody thought of")

    site.cluster.launch = surprising
    build, pod = await started(site, registry)
    assert (build.state, len(await site.ledger.slots())) == (State.STARTING, 1)
    await site.lead()
    assert (await succeed(site, registry, build, pod)).attempt == 1


async def test_a_build_whose_pod_cannot_be_created_ends_by_its_deadline(site, registry):
    await site.lead()
    build = await admitted(site, registry)
    for _ in range(2):  # it is tried again and again until then
        await site.reconciler.look_at(build.id)
        assert ("dispatch", build.id) in site.nudges.sent
    site.nudges.sent.clear()
    await long_ago(site, build)
    await site.reconciler.look_at(build.id)
    record = await site.ledger.read(build.id)
    assert (record.state, record.current.runs[0].reason) == (State.QUEUED, Reason.PENDING_DEADLINE)
    assert not await site.ledger.slots()
    await restart(site.place, build.model_copy(update={"admitted": build.admitted - HOUR}))  # a message that waited for an hour
    assert not site.cluster.created


async def test_a_pod_that_nobody_was_told_of_is_found_before_its_build_is_given_up(site, registry, monkeypatch):
    await site.lead()
    build = await admitted(site, registry)

    async def unheard(*_):
        """The watch tells nothing."""

    monkeypatch.setattr(site.cluster, "_tell", unheard)
    await start(site.place, build, monotonic() + 60)
    monkeypatch.undo()
    await long_ago(site, build)
    await site.reconciler.look_at(build.id)
    assert (await site.ledger.read(build.id)).state is State.STARTING
    assert PodName(build.current.runs[0].pod) in site.observer.pods


async def test_a_cancel_while_no_pod_can_be_created(site, registry):
    await site.lead()
    build = await admitted(site, registry)
    await cancel_build(site.ledger, build.id)
    await site.reconciler.look_at(build.id)
    assert ("dispatch", build.id) in site.nudges.sent  # a pod that is ours to delete makes it certain soonest
    await long_ago(site, build, cancel_requested=0)
    await site.reconciler.look_at(build.id)
    ended = await site.ledger.read(build.id)
    assert (ended.state, ended.reason) == (State.CANCELLED, Reason.CANCELLED)
    assert not await site.ledger.slots()


async def test_a_node_that_says_nothing_is_waited_for_so_long_and_no_longer(site, registry, monkeypatch):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, State.RUNNING)

    async def silent(name, uid, **changes):
        """The node does not end the container."""
        await site.cluster._put(replace(site.cluster.live[name], **changes))

    monkeypatch.setattr(site.cluster, "_alter", silent)
    await cancel_build(site.ledger, build.id)
    await site.look_at_due()
    async with asyncio.timeout(5):
        while not site.observer.pods[pod].deleting:
            await asyncio.sleep(0.01)
    await site.look_at_due()
    assert (await site.ledger.read(build.id)).state is State.RUNNING
    site.observer._asked_to_go = {uid: since - 601 for uid, since in site.observer._asked_to_go.items()}
    await site.look_at_due()
    assert (await site.ledger.read(build.id)).state is State.CANCELLED
    assert not await site.ledger.slots()


async def test_no_room_backs_off_and_lets_others_go_first(site, registry):
    """Eight builds that no node can take do not hold the slots for which others wait."""
    impossible = await admitted(site, registry)
    possible = await submit(site, registry, commit=COMMIT[::-1])
    for number in (1, 2):
        await give_up(site.place, impossible, Outcome(Reason.UNSCHEDULABLE, "no node fits", None, None))
        record = await site.ledger.read(impossible.id)
        assert (record.state, record.no_room, len(record.attempts)) == (State.QUEUED, number, 1)
        await site.ledger.connection.command("ZADD", site.ledger.connection.keys.delayed, 0, impossible.id)
        taken = await site.ledger.admit(HOUR)
        if number == 1:
            assert taken.id == possible.id
            impossible = await site.ledger.admit(HOUR)
        else:
            assert taken.id == impossible.id


async def test_a_step_that_comes_while_another_admits_is_not_lost(site, registry):
    """What it was sent for may have been submitted after the other's last look."""
    asked, admit = asyncio.Event(), site.ledger.admit

    async def slow(due):
        found = await admit(due)
        if found is None and not asked.is_set():
            asked.set()
            await late
        return found

    async def come_late() -> None:
        await asked.wait()
        await submit(site, registry)
        assert await dispatch(site.place) == 0

    site.place.ledger.admit = slow
    late = asyncio.create_task(come_late())
    assert await dispatch(site.place) == 1


async def test_an_admission_that_fails_gives_its_turn_back(site, registry):
    await submit(site, registry)
    admit = site.ledger.admit

    async def fails(due):
        raise LedgerUnavailable("gone")

    for _ in range(STARTS_AT_ONCE + 1):
        site.place.ledger.admit = fails
        with pytest.raises(ExceptionGroup):
            await dispatch(site.place)
    site.place.ledger.admit = admit
    assert await dispatch(site.place) == 1
