"""A newer push of the same image: what waits is superseded, what runs is where the project says so, whoever is killed in between."""

from __future__ import annotations

import pytest

from ledger.build import Build, Reason, State
from ledger.submission import Push, draft
from producer.cancel import cancel_build
from producer.submit import submit_drafts
from tests.faults.test_promises import events_of, succeed
from tests.requests import make_request, request_fields
from worker.admission import dispatch
from worker.cluster import PodName


async def pushed(site, registry, number: int) -> Build:
    commit = f"{number:040x}"
    request = make_request(source={**request_fields()["source"], "commit": commit}, destinations=[f"{registry.host}/team/demo:{commit}"])
    taken = await submit_drafts(site.ledger, [draft(request)], Push(f"d{number}", "refs/heads/main", commit))
    return await site.ledger.read(taken[0].id)


async def running(site, registry, number: int) -> tuple[Build, PodName]:
    build = await pushed(site, registry, number)
    await dispatch(site.place)
    pod = PodName((await site.ledger.read(build.id)).current.runs[0].pod)
    await site.cluster.run(pod)
    return await site.reaches(build.id, State.RUNNING), pod


async def prefers(site, supersede: str) -> None:
    """The project's choice."""
    found = await site.ledger.projects()
    stored = found["demo"].model_copy(update={"supersede": supersede})
    await site.ledger.connection.command("HSET", site.ledger.connection.keys.projects, "demo", stored.model_dump_json())


async def test_what_waits_ends_as_superseded_by_the_leader(site, registry):
    old, new = await pushed(site, registry, 1), await pushed(site, registry, 2)
    assert await dispatch(site.place) == 1  # a worker may be there long before a leader
    await site.lead()
    await site.look_at_due()
    ended = await site.ledger.read(old.id)
    assert (ended.state, ended.reason, new.id in ended.message) == (State.SUPERSEDED, Reason.SUPERSEDED, True)
    assert await events_of(site, old.id) == ["queued", "superseded", "finished"]
    assert (await site.ledger.read(new.id)).state is State.STARTING


async def test_what_runs_goes_on_by_default(site, registry):
    await site.lead()
    old, pod = await running(site, registry, 1)
    await pushed(site, registry, 2)
    await site.look_at_due()
    assert (await succeed(site, registry, old, pod)).state is State.SUCCEEDED


async def test_what_runs_is_not_tried_again_once_superseded(site, registry):
    await site.lead()
    old, pod = await running(site, registry, 1)
    await pushed(site, registry, 2)
    await site.cluster.end(pod, exit_code=137, message=None, reason="OOMKilled")
    ended = await site.reaches(old.id, State.SUPERSEDED)
    assert ended.current.runs[0].reason is Reason.OUT_OF_MEMORY
    assert not await site.ledger.slots()


@pytest.mark.parametrize("killed", [False, True])
async def test_what_runs_is_ended_where_the_project_wants_that(site, registry, killed):
    await prefers(site, "running")
    await site.lead("first")
    old, pod = await running(site, registry, 1)
    new = await pushed(site, registry, 2)
    if killed:
        await site.die()
        await site.lead("second")
    await site.look_at_due()
    ended = await site.reaches(old.id, State.SUPERSEDED)
    assert (ended.superseded_by, pod in site.cluster.live) == (new.id, False)
    assert await events_of(site, old.id) == ["queued", "started", "superseded", "finished"]
    assert not await site.ledger.slots()


async def test_a_cancel_stays_a_cancel(site, registry):
    await site.lead()
    old, _ = await running(site, registry, 1)
    await pushed(site, registry, 2)
    await cancel_build(site.ledger, old.id)
    await site.look_at_due()
    assert (await site.reaches(old.id, State.CANCELLED)).reason is Reason.CANCELLED
