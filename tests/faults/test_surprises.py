"""What nobody foresaw of one build, one credential or one call must not stop the others, nor hold a build for ever."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

import worker.launch
import worker.registries
from ledger.build import Reason, State
from ledger.errors import ClusterUnavailable, LedgerUnavailable, RegistryDenied
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from producer.cancel import cancel_build
from tests.faults.test_promises import push, started, submit
from worker.admission import dispatch
from worker.cluster import PodName
from worker.ending import end_attempt
from worker.liveness import Liveness
from worker.logs import Captures
from worker.outcome import Outcome
from worker.registries import Registries
from worker.watcher import _watch_due, stand_by

HOUR = timedelta(hours=1)
LIVELY = Liveness(None)


async def test_a_build_that_cannot_be_composed_fails_and_the_others_start(site, registry, monkeypatch):
    await site.lead()
    poison, other = await submit(site, registry, commit="a" * 40), await submit(site, registry, commit="b" * 40)
    compose = worker.launch.launch

    def surprising(build, *arguments, **fields):
        if build.id == poison.id:
            raise KeyError("nobody thought of this")
        return compose(build, *arguments, **fields)

    monkeypatch.setattr(worker.launch, "launch", surprising)
    assert await dispatch(site.place) == 2
    assert {launch.build for launch in site.cluster.launches.values()} == {other.id}
    record = await site.ledger.read(poison.id)
    assert (record.state, record.reason) == (State.QUEUED, Reason.START_FAILED)  # tried again a few times, then failed
    assert len(await site.ledger.slots()) == 1


async def test_a_ledger_that_goes_away_between_admissions_is_one_clear_error(site, registry, monkeypatch):
    await submit(site, registry)

    async def away(*_):
        raise LedgerUnavailable

    monkeypatch.setattr(type(site.ledger), "admit", away)
    with pytest.raises(ExceptionGroup) as caught:
        await dispatch(site.place)
    assert caught.group_contains(LedgerUnavailable)


async def test_an_unreadable_record_does_not_stop_the_leader(site, registry):
    await site.lead()
    newer, build = await submit(site, registry), await submit(site, registry)
    await site.ledger.connection.command("HSET", site.ledger.connection.keys.build(newer.id), "request", '{"schema_version": 9}')
    await site.reconciler.look_at(newer.id)  # says so, and looks again later
    assert newer.id not in await site.ledger.due()
    await site.reconciler.look_at(build.id)


async def test_a_credential_that_was_rotated_is_read_again(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(worker.registries, "_CREDENTIALS_TTL", 0.0)
    path = tmp_path / "config.json"

    def rotate(password: str) -> None:
        path.write_text(json.dumps({"auths": {"r.example.com": {"username": "crab", "password": password}}}))

    rotate("first")
    projects = parse_projects(f"version: 1\nprojects: {{demo: {{registries: {{r.example.com: {{docker_config: {path}}}}}}}}}")
    registries = Registries(None, settings)
    project = projects.projects["demo"]
    find = registries.credentials(project, project.registries["r.example.com"]).find
    assert (await find("r.example.com", "a")).password == "first"
    rotate("second")
    assert (await find("r.example.com", "a")).password == "second"
    path.write_text("no JSON")
    with pytest.raises(RegistryDenied, match=r"config\.json"):
        await find("r.example.com", "a")


async def test_a_step_that_always_fails_ends_at_its_deadline(site, registry):
    await site.lead()
    build, pod = await started(site, registry, deadlines={"publishing": "1s"})
    await site.cluster.end(pod, message=push(registry, build))
    record = await site.reaches(build.id, State.PUBLISHING)
    run = record.current.runs[0].model_copy(update={"ended": datetime.now(UTC) - HOUR})
    attempts = record.with_attempt(record.current.model_copy(update={"runs": (run,)}))
    await site.ledger.transition(record, State.PUBLISHING, due=timedelta(0), attempts=attempts)
    await site.reconciler.look_at(build.id)
    ended = await site.ledger.read(build.id)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.PUBLISH_DEADLINE)


async def test_finding_no_room_does_not_stretch_the_queued_deadline(site, registry):
    await site.lead()
    build = await submit(site, registry, deadlines={"queued": "2s"})
    for _ in range(2):
        admitted = await site.ledger.admit(HOUR)
        no_room = {"linux/amd64": Outcome(Reason.QUOTA, "exceeded quota", None, None)}
        await end_attempt(site.place, admitted, no_room)
        await site.ledger.connection.command("ZADD", site.ledger.connection.keys.delayed, 0, build.id)
    await site.ledger.connection.command("HSET", site.ledger.connection.keys.build(build.id), "created", 0)
    await site.reconciler.look_at(build.id)
    assert (await site.ledger.read(build.id)).reason is Reason.QUEUED_DEADLINE


async def test_a_slow_pod_does_not_hold_up_what_else_is_due(site, registry, monkeypatch):
    """Two cancels: the cluster never answers to the first."""
    await site.lead()
    (one, one_pod), (other, other_pod) = await started(site, registry, commit="a" * 40), await started(site, registry, commit="b" * 40)
    for build, pod in ((one, one_pod), (other, other_pod)):
        await site.cluster.run(pod)
        await site.reaches(build.id, State.RUNNING)
    delete = site.cluster.delete

    async def slow(name: PodName, uid: str, grace: timedelta) -> None:
        if name == one_pod:
            await asyncio.Event().wait()
        await delete(name, uid, grace)

    monkeypatch.setattr(site.cluster, "delete", slow)
    for build in (one, other):
        await cancel_build(site.ledger, build.id)
    looking = asyncio.create_task(_watch_due(site.place, site.nudges, LIVELY, site.observer, site.reconciler))
    await site.reaches(other.id, State.CANCELLED)
    looking.cancel()


async def test_a_pod_that_vanished_leaves_no_capture_behind(site, registry):
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.run(pod)
    await site.reaches(build.id, State.RUNNING)
    captures: Captures = site.observer._captures
    assert captures._captures
    await site.cluster.vanish(pod)
    await site.reaches(build.id, State.PUBLISHING)  # the registry is asked whether it was pushed
    async with asyncio.timeout(5):
        while captures._captures:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("call", ["delete", "release"])
async def test_a_pod_that_could_not_be_deleted_is_deleted_soon(site, registry, monkeypatch, call):
    """One that still runs for an attempt that is over has no slot any more: minutes later, with the next list, would be too late."""
    await site.lead()
    build, pod = await started(site, registry)
    ask, failures = getattr(site.cluster, call), [ClusterUnavailable()]

    async def failing(*arguments):
        if failures:
            raise failures.pop()
        await ask(*arguments)

    monkeypatch.setattr(site.cluster, call, failing)
    await site.cluster.end(pod, message=push(registry, build))
    async with asyncio.timeout(5):
        while site.cluster.live:
            await asyncio.sleep(0.01)
    assert not failures


async def test_a_leader_that_fails_while_it_is_stopped_stops(site, registry, monkeypatch):
    """A task group tells of its children's failures and drops the cancel: SIGTERM was ignored, for ever."""
    leading, failing = asyncio.Event(), asyncio.Event()

    async def events(*_, **__):
        leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            failing.set()
            raise LedgerUnavailable

    monkeypatch.setattr(type(site.ledger), "events", events)
    standing = asyncio.create_task(stand_by(site.place, site.nudges, LIVELY))
    async with asyncio.timeout(5):
        await leading.wait()
    standing.cancel()
    done, _ = await asyncio.wait({standing}, timeout=5)
    assert done
    assert failing.is_set()
    assert await site.ledger.leases.holder("watch") is None


async def test_a_leader_that_lost_the_lead_leads_again(site, registry, monkeypatch):
    """A task group that fails leaves its task marked as cancelled (Python 3.11): the watcher ended for good at the first outage of Redis."""
    lost = 0
    wait_for_events = type(site.ledger).events

    async def events(*arguments, **options):
        nonlocal lost
        lost += 1
        if lost <= 3:
            raise LedgerUnavailable
        return await wait_for_events(*arguments, **options)

    monkeypatch.setattr(type(site.ledger), "events", events)
    standing = asyncio.create_task(stand_by(site.place, site.nudges, LIVELY))
    async with asyncio.timeout(15):
        while lost <= 3:
            assert not standing.done()
            await asyncio.sleep(0.01)
    standing.cancel()
    await asyncio.wait({standing}, timeout=5)
    assert standing.done()


async def test_a_cancel_reaches_whoever_asks_the_ledger(redis_url):
    """redis-py 8.1 swallows one in some: whoever asked in a loop went on for ever."""

    async def ask_for_ever(ask) -> None:
        while True:
            await ask()

    for number in range(40):
        ledger = Ledger.open(Settings(redis_url=redis_url))
        asking = [asyncio.create_task(ask_for_ever(ask)) for ask in (ledger.due, ledger.next_due, ledger.slots, ledger.projects)]
        for _ in range(number):  # a little later each time: mid-connect, mid-answer, in between
            await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        done, going_on = await asyncio.wait(asking, timeout=2)
        for task in going_on:
            task.cancel()
        await asyncio.wait(asking)
        await ledger.close()
        assert not going_on, f"{len(going_on)} of {len(done)} went on, cancelled after {number} turns of the loop"


@pytest.mark.parametrize("written", [False, True], ids=["lost", "answer lost"])
async def test_lines_that_redis_did_not_take_are_stored_later_and_once(site, registry, monkeypatch, written):
    """Also the last ones, after which the pod goes."""
    await site.lead()
    build, pod = await started(site, registry)
    site.cluster.lines[pod] = [f"line {number}" for number in range(1200)]
    append, failures = site.ledger.logs.append, 0

    async def failing(*arguments, **options):
        nonlocal failures
        failures += 1
        if failures % 2 and not written:
            raise LedgerUnavailable
        await append(*arguments, **options)
        if failures % 2:
            raise LedgerUnavailable

    monkeypatch.setattr(site.ledger.logs, "append", failing)
    await site.cluster.end(pod, message=push(registry, build))
    async with asyncio.timeout(10):
        while site.cluster.live:
            await asyncio.sleep(0.01)
    assert failures > 4
    told = [line.text async for batch in site.ledger.logs.follow(build.id, 1) for line in batch]
    assert told == site.cluster.lines[pod]
