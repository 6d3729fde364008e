"""A registry that was there before crabpot: what an adoption finds and learns there, on each kind of registry, and what retention does then."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from ledger.adoption import start
from ledger.chores import ChoreState
from ledger.errors import Conflict, ManifestUnknown, RegistryUnavailable
from ledger.events import RegistryEvent
from tests.integration.commands import run_crabpot
from tests.integration.registry_server import RegistryServer, Reply, Request, scripted
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.chores import go_on
from worker.kinds import KINDS
from worker.registry.reader import RegistryReader
from worker.retention.inventory import Origin
from worker.retention.remembered import Remembered

EPOCH = "1970-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def registry(registry_of_kind: RegistryServer) -> RegistryServer:
    return registry_of_kind


def push(site: RetentionSite, tag: str, created: str | None, repository: str | None = None) -> bytes:
    return site.registry.push_image(repository or site.repository, tag, layers=(tag.encode(),), created=created, labels={"tag": tag})


async def adopt(site: RetentionSite, target: str | None = None) -> str:
    await start(site.ledger, target or site.name, {})
    return await site.run(f"adopt:{target or site.name}")


async def found(site: RetentionSite, target: str | None = None) -> dict:
    return dict((await site.ledger.chores.read(f"adopt:{target or site.name}")).progress)


async def times(site: RetentionSite) -> dict[str, tuple[Origin, datetime | None]]:
    recalled = await Remembered(site.ledger.shelf).recall(site.name)
    return {tag: (one.origin, one.since) for tag, one in recalled.tags.items()}


async def deletes(site: RetentionSite) -> set[str]:
    sha = await site.plan()
    [repository] = json.loads(await site.ledger.plans.text(sha))["repositories"]
    return {one["tag"] for one in repository["decisions"] if one["action"] != "keep"}


async def test_what_nobody_knew_the_age_of_keeps_all_until_it_is_adopted_and_goes_once_it_is_old(site: RetentionSite) -> None:
    push(site, "no-date", EPOCH)
    push(site, "nothing", None)
    push(site, "dated", OLD)
    push(site, "newer", RECENT)
    assert await deletes(site) == set()
    said = await adopt(site)
    assert "1 repositories, 4 tags: 2 dated by their images, 2 of unknown time" in said
    assert await deletes(site) == {"dated"}  # the newest stays, although two may be newer
    push(site, "after", None)
    assert await deletes(site) == {"no-date", "nothing", "dated", "newer"}
    await site.settle({"keep": [{"within": "1d"}]})
    assert await deletes(site) == {"dated", "newer"}


async def test_adopting_again_changes_no_time_that_was_learned(site: RetentionSite) -> None:
    push(site, "adopted", EPOCH)
    push(site, "moves", EPOCH)
    push(site, "dated", OLD)
    await adopt(site)
    site.registry.push_image(site.repository, "moves", layers=(b"moved",))
    assert "1 seen to be set, 1 dated by their images, 1 of unknown time" in await adopt(site)
    before = await times(site)
    assert {tag: origin for tag, (origin, since) in before.items() if since} == {"adopted": Origin.ADOPTED, "moves": Origin.SEEN}
    assert before["adopted"][1] < before["moves"][1]
    await adopt(site)
    assert await times(site) == before


async def test_times_that_are_told_count_and_may_be_mended(site: RetentionSite) -> None:
    push(site, "one", EPOCH)
    push(site, "two", EPOCH)
    push(site, "dated", OLD)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    await adopt(site)
    await site.ledger.shelf.tell({site.name: {"one": at, "dated": at - timedelta(days=9999), "gone": at}})
    assert "1 told, 1 dated by their images, 1 of unknown time" in await adopt(site)
    assert (await found(site))["strays"] == 1
    assert (await times(site))["one"] == (Origin.TOLD, at)
    assert await site.ledger.shelf.told(site.name) == {}
    await site.ledger.shelf.tell({site.name: {"one": at + timedelta(days=1)}})
    await adopt(site)
    assert (await times(site))["one"] == (Origin.TOLD, at + timedelta(days=1))


async def test_a_whole_registry_is_adopted_and_one_that_was_stopped_goes_on(site: RetentionSite, monkeypatch) -> None:
    host, own = site.registry.host, {f"whole{number}/app" for number in range(5)}
    for repository in own:
        push(site, "1", EPOCH, repository)
    push(site, "1", OLD)
    paths = sorted(site.registry.catalog())
    assert own < set(paths)
    monkeypatch.setattr("worker.retention.adoption._TOGETHER", 1)
    tags, asked, away = RegistryReader.tags, [], True

    def counted(self, registry, repository):
        if away and repository == paths[3]:
            raise RegistryUnavailable("it is away")
        asked.append(repository)
        return tags(self, registry, repository)

    async def gone(self, registry):
        raise RegistryUnavailable("it is away")

    await site.ledger.chores.start(f"adopt:{host}", host)
    with monkeypatch.context() as patched:
        patched.setattr(RegistryReader, "tags", counted)
        patched.setattr(RegistryReader, "ping", gone)
        await go_on(site.place, f"adopt:{host}", KINDS)
    chore = await site.ledger.chores.read(f"adopt:{host}")
    assert (chore.state, chore.progress["cursor"], chore.progress["of"]) == (ChoreState.WAITING, paths[2], len(paths))
    assert "it is away" in (chore.said or "")
    away = False
    monkeypatch.setattr(RegistryReader, "tags", counted)
    await site.ledger.connection.command("ZADD", site.ledger.connection.keys.chores, "XX", 0, f"adopt:{host}")
    said = await site.run(f"adopt:{host}")
    assert said.startswith(f"{len(paths)} repositories, ")
    assert sorted(asked) == paths
    assert len(await site.events(RegistryEvent.ADOPTED)) == 1
    recalled = await Remembered(site.ledger.shelf).recall(f"{host}/whole0/app")
    assert recalled.tags["1"].origin is Origin.ADOPTED


async def test_one_that_was_stopped_and_is_started_again_begins_anew(site: RetentionSite, monkeypatch) -> None:
    """Times may have been told since of what it had passed."""
    host, at = site.registry.host, datetime(2025, 1, 1, tzinfo=UTC)
    first = "0/first"
    push(site, "1", EPOCH, first)
    push(site, "1", EPOCH)
    with monkeypatch.context() as patched:
        patched.setattr("worker.retention.adoption._TOGETHER", 1)
        patched.setattr("worker.retention.adoption._BIT", 0.0)
        await start(site.ledger, host, {})
        await go_on(site.place, f"adopt:{host}", KINDS)
        await site.settle(projects={})
        await go_on(site.place, f"adopt:{host}", KINDS)
    chore = await site.ledger.chores.read(f"adopt:{host}")
    assert (chore.state, chore.progress["cursor"], chore.progress["repositories"]) == (ChoreState.STOPPED, first, 1)
    await site.settle()
    assert await start(site.ledger, host, {f"{host}/{first}": {"1": at}})
    assert (await site.run(f"adopt:{host}")).startswith(f"{len(site.registry.catalog())} repositories, ")
    recalled = await Remembered(site.ledger.shelf).recall(f"{host}/{first}")
    assert (recalled.tags["1"].origin, recalled.tags["1"].since) == (Origin.TOLD, at)


async def test_its_end_is_told_once_and_each_has_an_event_of_its_own(site: RetentionSite, monkeypatch) -> None:
    push(site, "1", EPOCH)
    push(site, "2", OLD)

    def denied(self, registry, repository):
        raise RegistryUnavailable("500 for this one")

    await adopt(site)
    with monkeypatch.context() as patched:
        patched.setattr(RegistryReader, "tags", denied)
        await adopt(site)
    first, second = await site.events(RegistryEvent.ADOPTED)
    assert (first["source"], first["subject"]) == (f"/crabpot/registries/{site.registry.host}", site.name)
    counts = {"empty": 0, "ageless": 0, "untagged": 0, "strays": 0, "listed": True}
    assert first["data"] == {"adopted": site.name, "repositories": 1, "unread": 0, "tags": {"adopted": 1, "image": 1}, **counts}
    assert second["data"] == {"adopted": site.name, "repositories": 0, "unread": 1, "tags": {}, **counts}
    assert first["id"] != second["id"]


async def test_while_one_is_under_way_no_times_are_told(site: RetentionSite) -> None:
    assert await start(site.ledger, site.name, {})
    assert not await start(site.ledger, site.name, {})
    with pytest.raises(Conflict, match=r"is under way.* tell them again after it"):
        await start(site.ledger, site.name, {site.name: {"1": datetime(2025, 1, 1, tzinfo=UTC)}})
    assert await site.ledger.shelf.told(site.name) == {}


async def test_a_repository_that_cannot_be_read_is_told_and_keeps_what_was_told_of_it(site: RetentionSite, monkeypatch) -> None:
    push(site, "1", EPOCH)
    await site.ledger.shelf.tell({site.name: {"1": datetime(2025, 1, 1, tzinfo=UTC)}})

    def denied(self, registry, repository):
        raise RegistryUnavailable("500 for this one")

    with monkeypatch.context() as patched:
        patched.setattr(RegistryReader, "tags", denied)
        assert f"1 repositories could not be read, as {site.name}: 500 for this one" in await adopt(site)
    assert (await found(site))["unread"] == 1
    assert "1 told" in await adopt(site)


@pytest.mark.parametrize("refusal", [401, 403, 404])
async def test_a_registry_that_refuses_to_be_pinged_is_not_away(settings, refusal: int) -> None:
    """Whoever guards it lets some paths through and others not; what can be read is learned."""
    pings = 0

    def behave(asked: Request) -> Reply:
        nonlocal pings
        if asked.path == "/v2/":
            pings += 1  # the first is how a reader learns which authorization is wanted
            return Reply() if pings == 1 else Reply(refusal)
        if asked.path == "/v2/_catalog":
            return Reply(body=json.dumps({"repositories": ["closed/app", "open/app"]}).encode())
        return Reply(403) if "closed" in asked.path else Reply(body=json.dumps({"name": "open/app", "tags": []}).encode())

    async with (
        scripted(behave) as server,
        retention_site(settings, RegistryServer(server.host), "open/app") as site,
    ):
        await site.settle()
        said = await adopt(site, server.host)
        assert f"1 repositories could not be read, as {server.host}/closed/app: " in said
        chore = await site.ledger.chores.read(f"adopt:{server.host}")
        assert (chore.state, chore.progress["repositories"], chore.progress["unread"]) == (ChoreState.DONE, 1, 1)
        assert pings == 2


async def test_a_long_one_gives_way_and_says_how_far_it_is_and_one_that_is_not_there_is_told(site: RetentionSite, monkeypatch) -> None:
    host = site.registry.host
    for number in range(2):
        push(site, "1", EPOCH, f"long{number}/app")
    monkeypatch.setattr("worker.retention.adoption._TOGETHER", 1)
    monkeypatch.setattr("worker.retention.adoption._BIT", 0.0)
    await site.ledger.chores.start(f"adopt:{host}", host)
    await go_on(site.place, f"adopt:{host}", KINDS)
    chore = await site.ledger.chores.read(f"adopt:{host}")
    assert (chore.state, chore.said) == (ChoreState.WAITING, f"1 of {len(site.registry.catalog())} repositories")
    assert await site.ledger.chores.active(host) is None
    assert (await site.run(f"adopt:{host}")).startswith(f"{len(site.registry.catalog())} repositories, ")
    assert "1 of the repositories have no tag, or are not there" in await adopt(site, f"{host}/none/app")


async def test_without_a_catalog_what_policies_name_is_adopted(site: RetentionSite, monkeypatch) -> None:
    push(site, "1", EPOCH)
    host = site.registry.host

    def none(self, registry):
        raise ManifestUnknown("no catalog")

    monkeypatch.setattr(RegistryReader, "catalog", none)
    assert "those that policies name" in await adopt(site, host)
    assert (await found(site, host))["repositories"] == 1
    await site.settle(projects={"team": {"registries": {host: {"insecure": True}}}})
    assert f"crabpot registry adopt {host}/REPOSITORY" in await adopt(site, host)
    await site.ledger.chores.start("adopt:other.example.com", "other.example.com")
    assert "name it under `registries`" in await site.run("adopt:other.example.com")


async def test_the_command_waits_tells_and_fails_where_something_was_not_read(site: RetentionSite, settings, tmp_path) -> None:
    push(site, "1", EPOCH)
    file = tmp_path / "times.json"
    file.write_text(json.dumps({f"{site.name}:1": "2025-01-01T00:00:00Z"}))

    async def call(*words: str) -> tuple[int, str, str]:
        code, out, err = await run_crabpot("registry", "adopt", *words, CRABPOT_REDIS_URL=settings.redis_url)
        return code, out, " ".join(err.split())

    waiting = asyncio.create_task(call(site.name, "--times", str(file), "--json"))
    async with asyncio.timeout(20):
        while not await site.ledger.chores.all("adopt"):
            await asyncio.sleep(0.02)
    refused = await call(site.name, "--times", str(file))
    assert (refused[0], "is under way" in refused[2]) == (5, True)
    await site.run(f"adopt:{site.name}")
    code, out, _ = await waiting
    told = json.loads(out)
    assert (code, told["tags"], told["said"][:22]) == (0, {"told": 1}, "1 repositories, 1 tags")
    assert (await times(site))["1"][0] is Origin.TOLD
    for wrong, said in (
        (f"{site.name}:1", "is meant with all its tags"),
        ("http://x", "without a scheme"),
        ("app/1", "name the registry"),
    ):
        code, _, err = await call(wrong)
        assert (code, said in err) == (2, True), err
