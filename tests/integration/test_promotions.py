"""Promotions against real registries: byte for byte, in the ledger's order, as often as one likes; by REST and from the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from ledger.chores import ChoreState
from ledger.errors import Conflict, LedgerUnavailable, NotFound, PolicyDenied, RegistryDenied, RegistryUnavailable, ServerUnavailable
from ledger.events import PromotionEvent
from ledger.projects import parse_projects
from ledger.promotion import Promotion, PromotionState
from ledger.settings import Settings
from ledger.store import Ledger
from producer.cli import promote as command
from producer.cli.client import Client
from producer.promote import promote
from tests.integration.commands import run_crabpot, working
from tests.integration.front_door import served
from tests.integration.registry_server import DOCKER_MANIFEST, RegistryServer, digest_of, run_registry
from tests.scripted_cluster import ScriptedCluster
from worker.chores import go_on
from worker.kinds import KINDS
from worker.place import Place
from worker.registries import Registries
from worker.registry.client import RegistryClient

PROMOTED, OVERTAKEN, FAILED, WAITING = PromotionState.PROMOTED, PromotionState.OVERTAKEN, PromotionState.FAILED, PromotionState.WAITING
NOBODYS = digest_of(b"nobody pushed this")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with run_registry(tmp_path_factory.mktemp("other")) as server:
        yield server


@pytest.fixture
async def place(settings: Settings, registry: RegistryServer, other: RegistryServer) -> AsyncIterator[Place]:
    ledger = Ledger.open(settings)
    projects = f"""
version: 1
projects:
  shop:
    policy:
      destinations: ["{registry.host}/shop/**", "{other.host}/prod/**"]
      promoted: ["{registry.host}/common/*"]
    registries: {{"{registry.host}": {{insecure: true}}, "{other.host}": {{insecure: true}}}}
"""
    await ledger.store_projects(parse_projects(projects))
    cluster = ScriptedCluster()
    place = Place(settings, ledger, cluster, Registries(cluster, settings))
    yield place
    await place.registries.close()
    await ledger.close()


async def accept(place: Place, image: str, *targets: str, **more: str) -> Promotion:
    return (await promote(place.ledger, {"project": "shop", "image": image, "targets": targets, **more}))[0]


async def run(place: Place, promotion: Promotion) -> Promotion:
    """What a worker does of it now."""
    await go_on(place, promotion.chore, KINDS)
    return await place.ledger.promotions.read(promotion.id)


async def promoted(place: Place, image: str, *targets: str) -> Promotion:
    return await run(place, await accept(place, image, *targets))


def manifest(registry: RegistryServer, repository: str, reference: str, *, media_type: str | None = None) -> bytes | None:
    with registry.http() as http:
        types = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " + DOCKER_MANIFEST
        answer = http.get(f"{repository}/manifests/{reference}", headers={"Accept": types})
        return answer.content if answer.status_code == 200 else None


def blob(registry: RegistryServer, repository: str, digest: str) -> bytes:
    with registry.http() as http:
        return http.get(f"{repository}/blobs/{digest}").raise_for_status().content


async def told(place: Place) -> list[dict]:
    return [json.loads(text) for _, text in await place.ledger.events("0-0", count=10_000, block=0.001)]


def push_multi(registry: RegistryServer, repository: str, tag: str) -> tuple[bytes, dict[str, bytes]]:
    children = {
        "linux/amd64": registry.push_image(repository, None, layers=(tag.encode() * 100, b"amd64 only")),
        "linux/arm64": registry.push_image(repository, None, layers=(tag.encode() * 100, b"arm64 only")),
    }
    return registry.push_index(repository, tag, children), children


# Copying


async def test_a_tag_of_the_same_repository(place: Place, registry: RegistryServer) -> None:
    raw = registry.push_image("shop/same", "build-1")
    host = registry.host
    ended = await promoted(place, f"{host}/shop/same@{digest_of(raw)}", f"{host}/shop/same:stable", f"{host}/shop/same:1.2.3")
    assert (ended.state, ended.message, ended.overtaken) == (PROMOTED, None, ())
    assert set(ended.promoted) == {f"{host}/shop/same:stable", f"{host}/shop/same:1.2.3"}
    assert manifest(registry, "shop/same", "stable") == manifest(registry, "shop/same", "1.2.3") == raw
    pushes = await place.ledger.shelf.pushes(f"{host}/shop/same")
    assert {tag: push.digest for tag, push in pushes.items()} == {"stable": digest_of(raw), "1.2.3": digest_of(raw)}, "retention goes by it"


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_an_index_with_all_its_platforms_byte_for_byte(
    place: Place, registry: RegistryServer, other: RegistryServer, elsewhere: bool
) -> None:
    """Within a registry its blobs are mounted; to another one they are sent."""
    raw, children = push_multi(registry, "shop/multi", "one")
    target, repository = (other, "prod/multi") if elsewhere else (registry, "shop/multi-copy")
    ended = await promoted(place, f"{registry.host}/shop/multi@{digest_of(raw)}", f"{target.host}/{repository}:stable")
    assert ended.state is PROMOTED
    assert manifest(target, repository, "stable") == raw
    for child in children.values():
        assert manifest(target, repository, digest_of(child)) == child
        for part in (json.loads(child)["config"], *json.loads(child)["layers"]):
            assert digest_of(blob(target, repository, part["digest"])) == part["digest"]


async def test_several_repositories_and_a_source_that_is_only_promoted_from(place: Place, registry: RegistryServer) -> None:
    raw, host = registry.push_image("common/base", "1", media_type=DOCKER_MANIFEST), registry.host
    ended = await promoted(place, f"{host}/common/base@{digest_of(raw)}", f"{host}/shop/a:stable", f"{host}/shop/b:stable")
    assert ended.state is PROMOTED
    assert manifest(registry, "shop/a", "stable") == manifest(registry, "shop/b", "stable") == raw


async def test_again_changes_nothing_and_sends_nothing(place: Place, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = push_multi(registry, "shop/again", "one")
    image, target = f"{registry.host}/shop/again@{digest_of(raw)}", f"{registry.host}/shop/again-copy:stable"
    first = await promoted(place, image, target)

    async def no(*_: object, **__: object) -> None:
        raise AssertionError("what is there was sent again")

    for name in ("push_blob", "mount"):
        monkeypatch.setattr(RegistryClient, name, no)
    second = await promoted(place, image, target)
    assert (first.state, second.state) == (PROMOTED, PROMOTED)
    assert second.sequence > first.sequence
    assert manifest(registry, "shop/again-copy", "stable") == raw


# What is refused


async def test_an_image_that_is_not_there(place: Place, registry: RegistryServer) -> None:
    registry.push_image("shop/app", "1")
    ended = await promoted(place, f"{registry.host}/shop/app@{NOBODYS}", f"{registry.host}/shop/app-copy:stable")
    assert ended.state is FAILED
    assert f"there is no {registry.host}/shop/app@{NOBODYS}" in (ended.message or "")
    assert manifest(registry, "shop/app-copy", "stable") is None
    assert (await place.ledger.chores.read(ended.chore)).state is ChoreState.DONE


async def test_a_version_s_tag_never_moves(place: Place, registry: RegistryServer) -> None:
    old, new = (registry.push_image("shop/fixed", tag, layers=(tag.encode(),)) for tag in ("1.2.3", "new"))
    host = registry.host
    ended = await promoted(place, f"{host}/shop/fixed@{digest_of(new)}", f"{host}/shop/fixed:stable", f"{host}/shop/fixed:1.2.3")
    assert ended.state is FAILED
    assert f"{host}/shop/fixed:1.2.3 stands at {digest_of(old)} already" in (ended.message or "")
    assert manifest(registry, "shop/fixed", "1.2.3") == old
    assert manifest(registry, "shop/fixed", "stable") is None, "nothing was begun"


async def test_the_policy_is_asked_before_and_when_the_work_is_done(place: Place, registry: RegistryServer) -> None:
    raw, host = registry.push_image("shop/policy", "1"), registry.host
    image = f"{host}/shop/policy@{digest_of(raw)}"
    for source, target in ((image, f"{host}/else/app:1"), (f"{host}/else/app@{digest_of(raw)}", f"{host}/shop/policy:a")):
        with pytest.raises(PolicyDenied):
            await accept(place, source, target)
    with pytest.raises(NotFound, match="no project 'nobody'"):
        await accept(place, image, f"{host}/shop/policy:a", project="nobody")
    promotion = await accept(place, image, f"{host}/shop/policy:a")
    await place.ledger.store_projects(parse_projects("version: 1\nprojects: {shop: {}}"))
    ended = await run(place, promotion)
    assert ended.state is FAILED
    assert "policy.destinations" in (ended.message or "")
    assert manifest(registry, "shop/policy", "a") is None


async def test_a_registry_that_says_no_ends_it_and_one_that_is_away_does_not(
    place: Place, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, host = registry.push_image("shop/trouble", "1"), registry.host
    image, target = f"{host}/shop/trouble@{digest_of(raw)}", f"{host}/shop/trouble:stable"

    def raising(error: Exception) -> None:
        async def put(*_: object) -> str:
            raise error

        monkeypatch.setattr(RegistryClient, "put_manifest", put)

    raising(RegistryUnavailable("503"))
    promotion = await run(place, await accept(place, image, target))
    assert (promotion.state, promotion.tries, promotion.message) == (WAITING, 1, "waits for the registry: 503")
    assert await place.ledger.chores.active(host) is None, "other chores of the registry get on meanwhile"
    chore = await place.ledger.chores.read(promotion.chore)
    assert chore.due is not None
    assert timedelta(0) < chore.due - await place.ledger.now() < timedelta(seconds=3)
    monkeypatch.undo()
    assert (await run(place, promotion)).state is PROMOTED

    raising(RegistryDenied("403"))
    failed = await promoted(place, image, f"{host}/shop/trouble:else")
    assert (failed.state, failed.message) == (FAILED, "403")


async def test_trouble_is_not_waited_out_for_ever(place: Place, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise RegistryUnavailable("503")

    raw, host = registry.push_image("shop/ever", "1"), registry.host
    promotion = await accept(place, f"{host}/shop/ever@{digest_of(raw)}", f"{host}/shop/ever:stable")
    monkeypatch.setattr(RegistryClient, "resolve", away)
    monkeypatch.setattr("worker.promotion._PATIENCE", timedelta(0))
    assert (await run(place, promotion)).state is FAILED


# The order


async def test_a_promotion_that_goes_on_late_moves_nothing_back(place: Place, registry: RegistryServer) -> None:
    """Its order is that in which it was taken in, not that in which its worker came to it."""
    first, second = (registry.push_image("shop/order", tag, layers=(tag.encode(),)) for tag in ("a", "b"))
    image, host = f"{registry.host}/shop/order", registry.host
    early = await accept(place, f"{image}@{digest_of(first)}", f"{image}:stable", f"{image}:also")
    late = await promoted(place, f"{image}@{digest_of(second)}", f"{image}:stable")
    ended = await run(place, early)
    assert (late.state, ended.state) == (PROMOTED, OVERTAKEN)
    assert (ended.overtaken, ended.promoted) == ((f"{host}/shop/order:stable",), (f"{host}/shop/order:also",))
    assert "a later push or promotion has moved it" in (ended.message or "")
    assert manifest(registry, "shop/order", "stable") == second
    assert manifest(registry, "shop/order", "also") == first


async def test_who_promoted_what_is_told_once(place: Place, registry: RegistryServer) -> None:
    raw, host = registry.push_image("shop/told", "1"), registry.host
    image, targets = f"{host}/shop/told@{digest_of(raw)}", (f"{host}/shop/told:stable", f"{host}/shop/told:1.0.0")
    promotion = await run(place, await accept(place, image, *targets, by="ada"))
    await run(place, promotion)
    events = [event for event in await told(place) if event["data"]["customData"].get("promotion") == promotion.id]
    assert [event["type"] for event in events] == [PromotionEvent.PUBLISHED, PromotionEvent.PUBLISHED, PromotionEvent.FINISHED]
    assert {event["data"]["customData"]["image"] for event in events[:2]} == set(targets)
    assert {event["data"]["customData"]["by"] for event in events} == {"ada"}
    assert events[-1]["data"]["customData"]["outcome"] == "success"
    wanted = await place.ledger.tags.wanted(f"{host}/shop/told", "stable")
    assert (wanted.sequence, wanted.digest, wanted.by) == (promotion.sequence, digest_of(raw), f"promotion:{promotion.id}")
    assert await place.ledger.tags.wanted(f"{host}/shop/told", "1.0.0") is None


# The front


async def test_rest(place: Place, registry: RegistryServer) -> None:
    raw, host = registry.push_image("shop/rest", "1"), registry.host
    body = {"project": "shop", "image": f"{host}/shop/rest@{digest_of(raw)}", "targets": [f"{host}/shop/rest:stable"]}
    async with served(place.ledger, place.settings) as client:
        answer = await client.post("/v1/promotions", json=body, headers={"Idempotency-Key": "release-1"})
        record = answer.json()
        assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/promotions/{record['id']}")
        assert (record["state"], record["request"]["targets"]) == ("waiting", body["targets"])
        again = await client.post("/v1/promotions", json={**body, "by": "else"}, headers={"Idempotency-Key": "release-1"})
        assert (again.status_code, again.json()["id"], again.json()["sequence"]) == (200, record["id"], record["sequence"])
        other = await client.post(
            "/v1/promotions", json={**body, "targets": [f"{host}/shop/rest:x"]}, headers={"Idempotency-Key": "release-1"}
        )
        assert (other.status_code, other.json()["title"]) == (409, "Conflict")
        await go_on(place, f"promote:{record['id']}", KINDS)
        shown = (await client.get(f"/v1/promotions/{record['id']}")).json()
        assert (shown["state"], shown["promoted"]) == ("promoted", body["targets"])
        again = await client.post("/v1/promotions", json=body, headers={"Idempotency-Key": "release-1"})
        assert (again.status_code, again.json()["state"]) == (200, "promoted")
        listed = (await client.get("/v1/promotions")).json()["promotions"]
        assert [one["id"] for one in listed] == [record["id"]]
        for change, status, path in (
            ({"image": f"{host}/shop/rest:1"}, 400, "image"),
            ({"targets": [f"{host}/shop/rest"]}, 400, "targets.0"),
            ({"targets": [f"{host}/elsewhere:1"]}, 403, "targets.0"),
        ):
            answer = await client.post("/v1/promotions", json={**body, **change})
            assert (answer.status_code, answer.json()["problems"][0]["path"]) == (status, path)
        assert (await client.post("/v1/promotions", json={**body, "project": "nobody"})).status_code == 404
        assert (await client.post("/v1/promotions", json=body, headers={"Idempotency-Key": "x" * 201})).status_code == 400
        assert (await client.post("/v1/promotions", content=b"x" * 70_000)).status_code == 413
        assert (await client.get("/v1/promotions/none")).status_code == 404


async def test_a_key_that_was_used_for_something_else(place: Place, registry: RegistryServer) -> None:
    raw, host = registry.push_image("shop/key", "1"), registry.host
    given = {"project": "shop", "image": f"{host}/shop/key@{digest_of(raw)}", "targets": [f"{host}/shop/key:a"]}
    first, new = await promote(place.ledger, given, idempotency_key="k")
    assert new
    assert (await promote(place.ledger, given, idempotency_key="k")) == (first, False)
    with pytest.raises(Conflict, match=first.id):
        await promote(place.ledger, {**given, "targets": [f"{host}/shop/key:b"]}, idempotency_key="k")


async def crabpot(place: Place, *arguments: str) -> tuple[int, str, str]:
    return await run_crabpot("promote", *arguments, CRABPOT_REDIS_URL=place.settings.redis_url)


async def test_the_command(place: Place, registry: RegistryServer) -> None:
    raw, _ = push_multi(registry, "shop/cli", "one")
    image, host = f"{registry.host}/shop/cli@{digest_of(raw)}", registry.host
    code, out, err = await crabpot(place, image, "stable", "--project", "shop", "--no-wait")
    waiting = await place.ledger.promotions.read(out.strip())
    assert (code, err, waiting.state) == (0, "", WAITING)
    code, out, err = await crabpot(place, image, "stable", "--project", "shop", "--timeout", "0.1")
    assert (code, out) == (124, "")
    assert "goes on by itself" in err
    async with working(place):
        code, out, err = await crabpot(place, image, "next", f"{host}/shop/cli-copy:1.0.0", "--project", "shop")
        assert (code, err) == (0, "")
        assert set(out.splitlines()) == {f"{host}/shop/cli:next@{digest_of(raw)}", f"{host}/shop/cli-copy:1.0.0@{digest_of(raw)}"}
        code, out, _ = await crabpot(place, image, "next", "--project", "shop", "--json")
        assert (code, json.loads(out)["state"]) == (0, "promoted")
        assert json.loads(out)["request"]["by"]
        code, out, err = await crabpot(place, f"{host}/shop/cli@{NOBODYS}", "next", "--project", "shop")
        assert (code, out) == (1, "")
        assert f"there is no {host}/shop/cli@{NOBODYS}" in err
        later = f"999999 {NOBODYS} 01a20a76-c61e-7703-9dd2-5db96d858f06"
        await place.ledger.connection.command("HSET", place.ledger.connection.keys.tags(f"{host}/shop/cli"), "taken", later)
        code, out, err = await crabpot(place, image, "taken", "free", "--project", "shop")
        assert (code, out) == (5, f"{host}/shop/cli:free@{digest_of(raw)}\n")
        assert f"{host}/shop/cli:taken: a later push or promotion has moved it" in err
    assert manifest(registry, "shop/cli", "next") == manifest(registry, "shop/cli-copy", "1.0.0") == raw


async def test_the_command_outlasts_a_server_that_is_restarted(place: Place, registry: RegistryServer, monkeypatch) -> None:
    raw, host = registry.push_image("shop/outlast", "1"), registry.host
    promotion = await accept(place, f"{host}/shop/outlast@{digest_of(raw)}", f"{host}/shop/outlast:stable")
    waiting = promotion.model_dump(mode="json")
    answers: list[dict | Exception] = [ServerUnavailable("away"), LedgerUnavailable("away"), {**waiting, "state": "promoted"}]

    class Restarted(Client):
        def promotion(self, promotion: str) -> dict:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(command, "_PULSE", 0.0)
    client = Restarted(None)  # type: ignore[arg-type]
    assert command._await_end(client, waiting, None)["state"] == "promoted"
    monkeypatch.setattr(command, "_BACK", -1.0)
    answers.append(ServerUnavailable("away"))
    with pytest.raises(ServerUnavailable):
        command._await_end(client, waiting, None)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("{host}/shop/app:1", "stable", "--project", "shop"), 2, "image: got"),
        (("app@{digest}", "stable", "--project", "shop"), 2, "image: got"),
        (("{host}/shop/app@{digest}", ".stable", "--project", "shop"), 2, "targets.0: got"),
        (("{host}/shop/app@{digest}", "{host}/x/y:1", "--project", "shop"), 2, "policy.destinations"),
        (("{host}/shop/app@{digest}", "stable", "--project", "nobody"), 3, "no project 'nobody'"),
        (("{host}/shop/app@{digest}", "stable"), 2, "--project"),
        (("{host}/shop/app@{digest}", "--project", "shop"), 2, "TAG"),
    ],
)
async def test_what_is_wrong_is_said_with_an_exit_code(place: Place, registry: RegistryServer, arguments, code, said) -> None:
    given = [argument.format(host=registry.host, digest=NOBODYS) for argument in arguments]
    found, out, err = await crabpot(place, *given)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
