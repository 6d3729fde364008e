"""Publishing: one step at a time, whoever is stopped in it; what the registry says for certain, and what it only says now."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from ledger.build import Reason, State
from ledger.errors import RegistryUnavailable
from producer.cancel import cancel_build
from producer.retry import retry_build
from tests.faults.test_promises import push, started, succeed
from worker.cluster import PodName
from worker.finish import finish
from worker.launch import restart
from worker.registry.client import RegistryClient

PUBLISHING, SUCCEEDED = State.PUBLISHING, State.SUCCEEDED


async def pushed(site, registry, **changes):
    """A build whose executor has ended well."""
    build, pod = await started(site, registry, **changes)
    await site.cluster.end(pod, message=push(registry, build))
    return await site.reaches(build.id, PUBLISHING)


async def client_of(site, registry) -> RegistryClient:
    return site.place.registries.client("demo", await site.place.project("demo"), registry.host)


async def overdue(site, build) -> None:
    """The claim's time is over."""
    keys = site.ledger.connection.keys
    await site.ledger.connection.command("HSET", keys.build(build.id), "due", 0)
    await site.ledger.connection.command("ZADD", keys.due, 0, build.id)


class Stopped:
    """A finisher that is stopped (SIGSTOP) before its n-th request to the registry of a kind, until it is told to go on."""

    def __init__(self, monkeypatch, name: str) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        call = getattr(RegistryClient, name)

        async def stopped(client, *arguments, **options):
            if not self.reached.is_set():
                self.reached.set()
                await self.go_on.wait()
            return await call(client, *arguments, **options)

        monkeypatch.setattr(RegistryClient, name, stopped)


async def test_a_claimed_build_is_left_alone(site, registry, monkeypatch):
    await site.lead()
    build = await pushed(site, registry)
    stop = Stopped(monkeypatch, "image_size")
    first = asyncio.create_task(finish(site.place, build.id))
    await stop.reached.wait()
    before = await site.ledger.read(build.id)
    assert before.claimed
    await finish(site.place, build.id)
    assert await site.ledger.read(build.id) == before
    stop.go_on.set()
    await first
    assert (await site.ledger.read(build.id)).state is SUCCEEDED


async def test_each_tag_is_recorded_as_our_push_but_one_that_a_later_push_has_taken(site, registry):
    """Retention goes by it."""
    await site.lead()
    first, later = await pushed(site, registry, commit="a" * 40), await pushed(site, registry, commit="b" * 40)
    for build in (later, first):
        await finish(site.place, build.id)
    one, two = await site.ledger.read(first.id), await site.ledger.read(later.id)
    pushes = await site.ledger.shelf.pushes(first.request.images[0].name)
    found = {tag: push.digest for tag, push in pushes.items() if tag in ("a" * 40, "b" * 40, "latest")}
    assert found == {"a" * 40: one.digest, "b" * 40: two.digest, "latest": two.digest}
    assert {push.branch for tag, push in pushes.items() if tag in found} == {"main"}


@pytest.mark.parametrize("where", ["image_size", "resolve", "manifest"])
async def test_a_stopped_finisher_that_goes_on_changes_nothing(site, registry, monkeypatch, where):
    await site.lead()
    build = await pushed(site, registry)
    stop = Stopped(monkeypatch, where)
    first = asyncio.create_task(finish(site.place, build.id))
    await stop.reached.wait()
    await overdue(site, build)
    await site.reconciler.look_at(build.id)
    await site.deliver()
    ended = await site.ledger.read(build.id)
    assert ended.state is SUCCEEDED
    last = await site.ledger.last_event()
    stop.go_on.set()
    await first
    assert await site.ledger.read(build.id) == ended
    assert await site.ledger.last_event() == last


async def test_a_late_put_of_a_stopped_finisher_is_put_right(site, registry, monkeypatch):
    """The request was about to go out when its process was stopped: no fence of ours holds it back."""
    await site.lead()
    old = await pushed(site, registry, commit="a" * 40)
    stop = Stopped(monkeypatch, "put_manifest")
    first = asyncio.create_task(finish(site.place, old.id))
    await stop.reached.wait()
    await overdue(site, old)
    await site.reconciler.look_at(old.id)
    await site.deliver()
    new, pod = await started(site, registry, commit="b" * 40)
    new = await succeed(site, registry, new, pod)
    client, latest = await client_of(site, registry), old.request.images[1]
    assert (await client.resolve(latest)).digest == new.digest
    stop.go_on.set()
    await first
    assert (await client.resolve(latest)).digest == old.digest  # the late put went out
    assert await site.ledger.tags.unsettled(await site.ledger.now()) == []
    assert await site.ledger.tags.unsettled(await site.ledger.now() + timedelta(minutes=2)) == [old.id]
    await site.ledger.connection.command("ZADD", site.ledger.connection.keys.unsettled, 0, old.id)
    await site.reconciler.look_at_tags()
    await site.deliver()
    assert (await client.resolve(latest)).digest == new.digest
    assert await site.ledger.tags.unsettled(await site.ledger.now()) == []
    assert ("tags_put_right", old.id) in await site.ledger.mended()


async def test_who_ends_in_order_leaves_nothing_to_look_at(site, registry):
    await site.lead()
    build = await pushed(site, registry)
    await finish(site.place, build.id)
    assert await site.ledger.tags.unsettled(await site.ledger.now() + timedelta(minutes=2)) == []
    assert await site.ledger.mended() == []


async def test_trouble_is_no_miss(site, registry, monkeypatch):
    """Two answers of 503 and one of 404 are not three of 404: nothing is built again."""
    await site.lead()
    build, pod = await started(site, registry)
    await site.cluster.end(pod)  # a digest that nobody pushed
    await site.reaches(build.id, PUBLISHING)

    async def away(*_, **__):
        raise RegistryUnavailable("503")

    monkeypatch.setattr(RegistryClient, "image_size", away)
    for _ in range(2):
        await finish(site.place, build.id)
    monkeypatch.undo()
    await finish(site.place, build.id)
    record = await site.ledger.read(build.id)
    assert (record.state, record.publish_tries, record.misses) == (PUBLISHING, 2, 1)


async def test_a_retry_can_be_cancelled_again(site, registry, monkeypatch):
    """The mark that tags are being moved is the attempt's: it does not outlive it."""
    await site.lead()
    build = await pushed(site, registry)
    record = await site.ledger.transition(build, PUBLISHING, due=timedelta(0), moving_tags=True, misses=2)
    await site.ledger.connection.command(
        "HSET", site.ledger.connection.keys.build(build.id), "digest", "sha256:" + "e" * 64
    )  # and the registry has lost it
    await finish(site.place, record.id)
    record = await site.ledger.read(build.id)
    assert (record.state, record.moving_tags, record.misses) == (State.QUEUED, False, 0)
    assert (await cancel_build(site.ledger, build.id)).state is State.CANCELLED


async def test_a_cancel_reaches_a_claimed_build(site, registry, monkeypatch):
    await site.lead()
    build = await pushed(site, registry)
    stop = Stopped(monkeypatch, "image_size")
    first = asyncio.create_task(finish(site.place, build.id))
    await stop.reached.wait()
    await cancel_build(site.ledger, build.id)
    await site.look_at_due()
    await site.deliver()
    assert (await site.ledger.read(build.id)).state is State.CANCELLED
    stop.go_on.set()
    await first
    assert (await site.ledger.read(build.id)).state is State.CANCELLED


async def test_a_repeated_build_does_not_move_a_tag_back(site, registry):
    """`crabpot retry` of last week's failure: newer pushes came since."""
    await site.lead()
    old, pod = await started(site, registry, commit="a" * 40)
    await site.cluster.end(pod, exit_code=1, message="no")
    assert (await site.reaches(old.id, State.FAILED, State.QUEUED)).reason is Reason.UNKNOWN
    await cancel_build(site.ledger, old.id)
    new, pod = await started(site, registry, commit="b" * 40)
    new = await succeed(site, registry, new, pod)
    again = await retry_build(site.ledger, old.id)
    assert (again.sequence, again.state) == (old.sequence, State.QUEUED)
    admitted = await site.ledger.admit(timedelta(minutes=1))
    await restart(site.place, admitted)
    again = await succeed(site, registry, admitted, PodName(admitted.current.runs[0].pod))
    assert again.state is SUCCEEDED
    client = await client_of(site, registry)
    assert (await client.resolve(old.request.images[1])).digest == new.digest
    assert (await client.resolve(old.request.images[0])).digest == again.digest
