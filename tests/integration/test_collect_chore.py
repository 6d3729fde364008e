"""A collection as people and schedules start it: a chore on a real Redis, of a real docker-registry, by the command and by workers that are killed."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from click.testing import CliRunner

from ledger.access import RegistryAccess
from ledger.chores import ChoreState
from ledger.collected import CollectedOnThisMachine, CollectsItself
from ledger.projects import Projects, parse_projects
from tests.conftest import PROJECTS
from tests.event_schemas import validate
from tests.integration.kept_registry import KeptRegistry as RegistryPlace
from tests.integration.registry_kinds import KINDS as KINDS_OF_REGISTRIES
from tests.integration.test_collect_local import ours
from tests.scripted_cluster import ScriptedCluster
from worker.chores import go_on
from worker.collect.chore import said_of
from worker.collect.command import command
from worker.collect.local import LocalSite
from worker.kinds import KINDS
from worker.place import Place
from worker.registries import Registries
from worker.schedules import planned_of


@pytest.fixture
async def here(ledger, settings, registry_place):
    """A worker's place, and the registry under `collect`."""
    given = parse_projects(PROJECTS)
    projects = Projects.model_validate(
        {**dict(given), "collect": (registry_place.settings, CollectsItself(registry="harbor.example.com", kind="own"))}
    )
    await ledger.store_projects(projects)
    cluster = ScriptedCluster()
    place = Place(settings, ledger, cluster, Registries(cluster, settings))
    yield place
    await place.registries.close()
    await place.long_work.close()


async def work(place: Place, name: str) -> None:
    """As workers do that the leader nudges, until it has ended."""
    async with asyncio.timeout(60):
        while (await place.ledger.chores.read(name)).state is ChoreState.WAITING:
            await place.ledger.connection.command("ZADD", place.ledger.connection.keys.chores, "XX", 0, name)
            await go_on(place, name, KINDS)


async def told(ledger) -> list[dict]:
    found = [json.loads(event) for _, event in await ledger.events("0")]
    events = [event for event in found if event["type"].startswith("dev.crabpot.collection.")]
    for event in events:
        validate(event, "collection-event.json")
    return events


async def test_a_run_is_told_with_what_it_freed_and_read_back(here, registry_place: RegistryPlace):
    host, garbage = registry_place.settings.registry, registry_place.fill()
    await here.ledger.chores.start(f"weigh:{host}", host)
    await work(here, f"weigh:{host}")
    assert (await here.ledger.chores.read(f"weigh:{host}")).said.startswith("would free 0.0 MiB in 2 blobs")
    await here.ledger.chores.start(f"collect:{host}", host)
    await work(here, f"collect:{host}")
    chore = await here.ledger.chores.read(f"collect:{host}")
    assert chore.state is ChoreState.DONE
    assert chore.said.startswith("freed 0.0 MiB in 2 blobs"), chore.said
    assert "read back" in chore.said
    assert garbage not in registry_place.blobs()
    events = await told(here.ledger)
    assert [event["type"].split(".")[3] for event in events] == ["planned", "started", "finished"]
    assert events[-1]["subject"] == host
    assert events[-1]["data"]["dry"]["bytes"] == 7000
    assert events[-1]["data"]["verified"]["repositories"] == 2
    registry_place.check()


async def test_what_a_lost_run_left_is_mended_and_told(here, registry_place: RegistryPlace):
    host = registry_place.settings.registry
    registry_place.fill()
    await LocalSite(registry_place.settings).close("lost", ours)
    await here.ledger.chores.start(f"mend:{host}", host)
    await work(here, f"mend:{host}")
    assert "had left it read-only" in (await here.ledger.chores.read(f"mend:{host}")).said
    assert [event["type"].split(".")[3] for event in await told(here.ledger)] == ["started", "failed"]
    registry_place.check()


async def test_a_registry_that_collects_itself_says_so(here):
    await here.ledger.chores.start("collect:harbor.example.com", "harbor.example.com")
    await work(here, "collect:harbor.example.com")
    assert "collects its own garbage" in (await here.ledger.chores.read("collect:harbor.example.com")).said


async def test_zot_is_not_collected_whatever_the_projects_file_says(here, tmp_path):
    with KINDS_OF_REGISTRIES["zot"].run(tmp_path / "zot") as zot:
        (tmp_path / "process").write_text(str(zot.process.pid))
        settings = CollectedOnThisMachine(
            registry=zot.host, kind="local", process=tmp_path / "process", marker=tmp_path / "marker", access=RegistryAccess(insecure=True)
        )
        await here.ledger.store_projects(Projects.model_validate({**dict(parse_projects(PROJECTS)), "collect": (settings,)}))
        for kind in ("weigh", "collect"):
            await here.ledger.chores.start(f"{kind}:{zot.host}", zot.host)
            await work(here, f"{kind}:{zot.host}")
            said = (await here.ledger.chores.read(f"{kind}:{zot.host}")).said
            assert "it is zot, which collects its own garbage" in said
            assert "say `kind: own`" in said
    assert not (tmp_path / "marker").exists()


async def test_a_registry_that_nobody_named_is_refused_with_what_to_do(here):
    await here.ledger.chores.start("collect:other.example.com", "other.example.com")
    await work(here, "collect:other.example.com")
    chore = await here.ledger.chores.read("collect:other.example.com")
    assert chore.state is ChoreState.STOPPED
    assert "name it under `collect`" in chore.said


async def test_a_schedule_starts_a_collection():
    entry = "{registry: r.example.com, kind: own}"
    with_time = (
        '{registry: q.example.com, kind: kubernetes, namespace: q, workload: deployment/q, claim: q, schedule: {schedule: "0 3 * * 0"}}'
    )
    site = parse_projects(f"version: 1\ncollect: [{entry}, {with_time}]\nprojects: {{}}").site
    assert [planned.chore for planned in planned_of(site, _NoPolicies())] == ["collect:q.example.com"]


class _NoPolicies:
    def registries(self):
        return ()


async def test_the_command_starts_shows_and_fails_as_the_run_does(here, settings, registry_place: RegistryPlace, monkeypatch):
    host = registry_place.settings.registry
    monkeypatch.setenv("CRABPOT_REDIS_URL", settings.redis_url)

    def call(*words: str):
        return CliRunner().invoke(command, words)

    done = await asyncio.to_thread(call, "run", host, "--no-wait")
    assert done.exit_code == 0, done.output
    assert f"collect:{host} is on its way" in done.output
    registry_place.fill()
    await work(here, f"collect:{host}")
    listed = json.loads((await asyncio.to_thread(call, "status", "--json")).output)["collections"]
    assert [(one["name"], one["state"]) for one in listed] == [(f"collect:{host}", "done")]
    assert listed[0]["run"]["dry"]["eligible"] == 2
    waiting = asyncio.create_task(asyncio.to_thread(call, "plan", host))
    while not await here.ledger.chores.all("weigh"):
        await asyncio.sleep(0.05)
    await work(here, f"weigh:{host}")
    assert "there is no garbage" in (await waiting).output


async def test_the_status_tells_when_a_schedule_comes_next_and_in_which_zone(here, settings, monkeypatch):
    entry = {"registry": "q.example.com", "kind": "kubernetes", "namespace": "q", "workload": "deployment/q", "claim": "q"}
    scheduled = {**entry, "schedule": {"schedule": "0 3 * * 0", "time_zone": "Asia/Tokyo"}}
    await here.ledger.store_projects(Projects.model_validate({**dict(parse_projects(PROJECTS)), "collect": (scheduled,)}))
    await here.ledger.chores.start("weigh:q.example.com", "q.example.com")
    monkeypatch.setenv("CRABPOT_REDIS_URL", settings.redis_url)
    told = (await asyncio.to_thread(CliRunner().invoke, command, ["status"])).output
    assert re.search(r"weigh:q.example.com\twaiting\t\t\d{4}-\d\d-\d\d \d\d:\d\d UTC\t", told), told
    # Sunday at 3 in Tokyo is Saturday at 18 in UTC.
    assert re.search(
        r"scheduled\t\t\d{4}-\d\d-\d\d 18:00 UTC\tnext at Sun \d{4}-\d\d-\d\d 03:00 Asia/Tokyo \(0 3 \* \* 0\), up to 10m later", told
    ), told
    [following] = json.loads((await asyncio.to_thread(CliRunner().invoke, command, ["status", "--json"])).output)["next"]
    assert (following["registry"], following["time_zone"]) == ("q.example.com", "Asia/Tokyo")
    assert following["at"].endswith("T18:00:00+00:00")
    assert following["there"].endswith("T03:00:00+09:00")


def test_every_end_says_what_came_of_it():
    from tests.collecting import REGISTRY, START
    from worker.collect.steps import DryRun, Purpose, begin

    state = begin(REGISTRY, Purpose.COLLECT, "r", START)
    assert said_of(state) == "there is no garbage"
    assert said_of(state.model_copy(update={"trouble": "t"})) == "failed: t"
    assert "2 of them of unknown size" in said_of(state.model_copy(update={"dry": DryRun(marked=9, eligible=3, bytes=2**20, unsized=2)}))
