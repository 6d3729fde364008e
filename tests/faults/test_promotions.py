"""Promises 5 and 6 for promotions: whoever finishes late, is killed in the middle or wakes up much later, the tag stands at the latest."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from datetime import timedelta

import pytest

from ledger.build import State
from ledger.errors import ChoreLost
from ledger.events import PromotionEvent
from ledger.projects import parse_projects
from ledger.promotion import Promotion, PromotionState
from producer.promote import promote
from tests.faults.plant import Plant
from tests.faults.points import Point, Side
from tests.faults.promises import side_by_side
from tests.faults.test_publishing import Stopped, client_of, pushed
from tests.integration.registry_server import digest_of
from worker.chores import go_on
from worker.finish import finish
from worker.kinds import KINDS
from worker.place import Place

PROMOTED = PromotionState.PROMOTED


async def accept(place: Place, image: str, *targets: str) -> Promotion:
    return (await promote(place.ledger, {"project": "demo", "image": image, "targets": targets}))[0]


async def work(place: Place, promotion: Promotion) -> Promotion:
    await go_on(place, promotion.chore, KINDS)
    return await place.ledger.promotions.read(promotion.id)


async def claim_is_over(place: Place, promotion: Promotion) -> None:
    """The time is over for which a claim that nobody gave back keeps others away, and after which tags are looked at once more."""
    connection = place.ledger.connection
    await connection.command("HDEL", connection.keys.chore(promotion.chore), "held")
    await connection.command("ZADD", connection.keys.chores, "XX", 0, promotion.chore)


async def published(place: Place, promotion: Promotion) -> Counter[str]:
    """How often each thing was told of a promotion."""
    events = [json.loads(text) for _, text in await place.ledger.events("0-0", count=100_000, block=0.001)]
    own = [event["data"]["customData"] | {"type": event["type"]} for event in events]
    own = [told for told in own if told.get("promotion") == promotion.id]
    return Counter(told["image"] if told["type"] == PromotionEvent.PUBLISHED else "finished" for told in own)


# Late finishes


async def test_a_build_that_was_there_before_and_ends_later_does_not_move_a_promoted_tag_back(site, registry):
    await site.lead()
    old, latest = await pushed(site, registry, commit="a" * 40), f"{registry.host}/team/demo:latest"
    good = digest_of(registry.push_image("team/demo", "good", layers=(b"good",)))
    ended = await work(site.place, await accept(site.place, f"{registry.host}/team/demo@{good}", latest))
    assert (ended.state, ended.promoted) == (PROMOTED, (latest,))
    await finish(site.place, old.id)
    build, client = await site.ledger.read(old.id), await client_of(site, registry)
    assert build.state is State.SUCCEEDED
    assert (await client.resolve(old.request.images[1])).digest == good, "the tag went back"
    assert (await client.resolve(old.request.images[0])).digest == build.digest


async def test_a_finisher_that_was_about_to_put_the_tag_puts_the_promoted_image_after_it(site, registry, monkeypatch):
    """It has looked at what is wanted, is stopped, and its request goes out when the promotion is over: it looks again and puts it right."""
    await site.lead()
    old = await pushed(site, registry, commit="a" * 40)
    stop = Stopped(monkeypatch, "put_manifest")
    late = asyncio.create_task(finish(site.place, old.id))
    await stop.reached.wait()
    good = digest_of(registry.push_image("team/demo", "good", layers=(b"good",)))
    ended = await work(site.place, await accept(site.place, f"{registry.host}/team/demo@{good}", f"{registry.host}/team/demo:latest"))
    assert ended.state is PROMOTED
    stop.go_on.set()
    await late
    assert (await (await client_of(site, registry)).resolve(old.request.images[1])).digest == good


async def test_a_build_that_came_after_the_promotion_moves_the_tag_on(site, registry):
    await site.lead()
    good = digest_of(registry.push_image("team/demo", "good", layers=(b"good",)))
    promotion = await accept(site.place, f"{registry.host}/team/demo@{good}", f"{registry.host}/team/demo:latest")
    new = await pushed(site, registry, commit="b" * 40)
    assert promotion.sequence < new.sequence
    await finish(site.place, new.id)
    ended, build = await work(site.place, promotion), await site.ledger.read(new.id)
    assert ended.state is PromotionState.OVERTAKEN
    assert (await (await client_of(site, registry)).resolve(new.request.images[1])).digest == build.digest


async def test_a_late_put_of_a_stopped_promotion_is_put_right(site, registry, monkeypatch):
    """The request was about to go out when its worker was stopped: no fence of ours holds it back."""
    await site.lead()
    host, images = registry.host, [registry.push_image("team/demo", tag, layers=(tag.encode(),)) for tag in ("one", "two")]
    one, two = map(digest_of, images)
    promotion = await accept(site.place, f"{host}/team/demo@{one}", f"{host}/team/demo:latest")
    stop = Stopped(monkeypatch, "put_manifest")
    asleep = asyncio.create_task(go_on(site.place, promotion.chore, KINDS))
    await stop.reached.wait()
    await claim_is_over(site.place, promotion)
    taken_over = await work(site.place, promotion)
    assert (taken_over.state, taken_over.doubtful) == (PROMOTED, True)
    assert (await work(site.place, await accept(site.place, f"{host}/team/demo@{two}", f"{host}/team/demo:latest"))).state is PROMOTED
    stop.go_on.set()
    await asleep
    client, latest = await client_of(site, registry), promotion.request.images[0]
    assert (await client.resolve(latest)).digest == one  # the late put went out
    await claim_is_over(site.place, promotion)
    looked = await work(site.place, promotion)
    assert (await client.resolve(latest)).digest == two
    assert (looked.state, looked.doubtful) == (PROMOTED, False)
    assert ("tags_put_right", f"promotion:{promotion.id}") in await site.ledger.mended()
    assert await published(site.place, promotion) == {f"{host}/team/demo:latest": 1, "finished": 1}


async def test_a_worker_that_has_lost_a_promotion_wants_nothing_any_more(site, registry):
    """It was given up by another, perhaps because the policy no longer allows it: the tag stays free for whoever comes."""
    good, repository = digest_of(registry.push_image("team/demo", "good")), f"{registry.host}/team/demo"
    promotion = await accept(site.place, f"{repository}@{good}", f"{repository}:unwanted")
    asleep = await site.ledger.chores.claim(promotion.chore)
    await site.ledger.store_projects(parse_projects("version: 1\nprojects: {demo: {}}"))
    await claim_is_over(site.place, promotion)
    assert (await work(site.place, promotion)).state is PromotionState.FAILED
    with pytest.raises(ChoreLost):
        await site.ledger.promotions.want(asleep, promotion, repository, ["unwanted"])
    assert await site.ledger.tags.wanted(repository, "unwanted") is None


async def test_a_promotion_whose_workers_never_come_to_its_end_fails_in_the_end(site, registry, monkeypatch):
    """A blob that takes longer than any step may: it is begun again and again, and not for ever."""
    good = digest_of(registry.push_image("team/demo", "good"))
    promotion = await accept(site.place, f"{registry.host}/team/demo@{good}", f"{registry.host}/team/demo:stable")
    stop = Stopped(monkeypatch, "manifest")
    stuck = asyncio.create_task(go_on(site.place, promotion.chore, KINDS))
    await stop.reached.wait()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    await claim_is_over(site.place, promotion)
    monkeypatch.setattr("worker.promotion._PATIENCE", timedelta(0))
    ended = await work(site.place, promotion)
    assert ended.state is PromotionState.FAILED
    assert "could not be done in 1 tries" in (ended.message or "")
    assert "workers' logs" in (ended.message or "")


async def test_one_that_no_worker_came_to_for_long_is_done_all_the_same(site, registry, monkeypatch):
    good = digest_of(registry.push_image("team/demo", "good"))
    promotion = await accept(site.place, f"{registry.host}/team/demo@{good}", f"{registry.host}/team/demo:stable")
    monkeypatch.setattr("worker.promotion._PATIENCE", timedelta(0))
    assert (await work(site.place, promotion)).state is PROMOTED


async def test_two_workers_at_one_promotion(site, registry):
    """A message that comes twice."""
    good = digest_of(registry.push_image("team/demo", "good", layers=(b"good",)))
    promotion = await accept(site.place, f"{registry.host}/team/demo@{good}", f"{registry.host}/team/demo:stable")
    await asyncio.gather(*(go_on(site.place, promotion.chore, KINDS) for _ in range(3)))
    assert (await site.ledger.promotions.read(promotion.id)).state is PROMOTED
    assert await published(site.place, promotion) == {f"{registry.host}/team/demo:stable": 1, "finished": 1}


# Killed, failing and stopped at every effect


async def copied(plant: Plant, tag: str, registry) -> tuple[str, bytes]:
    """An index of two platforms that is to be promoted; its reference, and its bytes."""
    repository = f"{plant.settings.prefix}/demo"
    children = {f"linux/{name}": registry.push_image(repository, None, layers=(f"{tag} {name}".encode(),)) for name in ("amd64", "arm64")}
    raw = registry.push_index(repository, tag, children)
    return f"{plant.host}/{repository}@{digest_of(raw)}", raw


def targets_of(plant: Plant) -> tuple[str, str, str]:
    """A tag of the image's repository, and a mutable and a fixed one of another."""
    prefix = f"{plant.host}/{plant.settings.prefix}/demo"
    return f"{prefix}:stable", f"{prefix}/prod:stable", f"{prefix}/prod:1.2.3"


async def begin(plant: Plant, registry) -> tuple[Promotion, bytes]:
    await plant.ledger.store_projects(
        parse_projects(f"""
version: 1
projects:
  demo:
    policy: {{destinations: ["{plant.host}/{plant.settings.prefix}/**"]}}
    registries: {{"{plant.host}": {{insecure: true}}}}
""")
    )
    image, raw = await copied(plant, "one", registry)
    return await accept(plant.place, image, *targets_of(plant)), raw


def stands_at(plant: Plant, registry, target: str) -> str | None:
    repository, _, tag = target.removeprefix(f"{plant.host}/").rpartition(":")
    with registry.http() as http:
        answer = http.head(f"{repository}/manifests/{tag}", headers={"Accept": "application/vnd.oci.image.index.v1+json"})
        return answer.headers.get("docker-content-digest")


def assert_whole(plant: Plant, registry, raw: bytes) -> None:
    """Every target is the image, with all that it is made of."""
    with registry.http() as http:
        for target in targets_of(plant):
            assert stands_at(plant, registry, target) == digest_of(raw), target
            repository = target.removeprefix(f"{plant.host}/").rpartition(":")[0]
            for child in json.loads(raw)["manifests"]:
                found = http.get(f"{repository}/manifests/{child['digest']}", headers={"Accept": child["mediaType"]}).raise_for_status()
                assert digest_of(found.content) == child["digest"]
                for part in (found.json()["config"], *found.json()["layers"]):
                    assert digest_of(http.get(f"{repository}/blobs/{part['digest']}").raise_for_status().content) == part["digest"]


async def points_of(make_plant, forks, registry) -> list[Point]:
    """What a promotion passes on which nothing is done to it."""
    async with make_plant() as plant:
        promotion, raw = await begin(plant, registry)
        child = await forks.start("chore", plant.environment, {"name": promotion.chore}, None)
        assert await child.ended() == 0, child.failure
        assert (await plant.ledger.promotions.read(promotion.id)).state is PROMOTED
        assert_whole(plant, registry, raw)
        return child.passed


@pytest.mark.thorough
async def test_a_promotion_that_is_killed_and_run_again(make_plant, forks, registry):
    """On both sides of every effect: no tag names what is not whole, all ends well, and each thing is told once."""

    async def kill(point: Point) -> None:
        async with make_plant() as plant:
            promotion, raw = await begin(plant, registry)
            child = await forks.start("chore", plant.environment, {"name": promotion.chore}, (point, "kill"))
            assert await child.ended() == -signal.SIGKILL
            for target in targets_of(plant):
                assert stands_at(plant, registry, target) in (None, digest_of(raw))
            await claim_is_over(plant.place, promotion)
            ended = await work(plant.place, promotion)
            assert (ended.state, set(ended.promoted)) == (PROMOTED, set(targets_of(plant)))
            assert_whole(plant, registry, raw)
            assert await published(plant.place, promotion) == {**dict.fromkeys(targets_of(plant), 1), "finished": 1}

    found = await points_of(make_plant, forks, registry)
    effects = [point for point in found if point.is_effect]
    assert {"registry.put_manifest", "registry.post_blob", "ledger.promote", "ledger.chore_write"} <= {point.name for point in effects}
    await side_by_side(effects, kill)


@pytest.mark.thorough
async def test_a_promotion_whose_call_fails(make_plant, forks, registry):
    """The first call of each kind: an effect that is done and unheard, a read. What is due comes again."""

    async def fail(point: Point) -> None:
        async with make_plant() as plant:
            promotion, raw = await begin(plant, registry)
            child = await forks.start("chore", plant.environment, {"name": promotion.chore}, (point, "fail"))
            await child.ended()
            await claim_is_over(plant.place, promotion)
            assert (await work(plant.place, promotion)).state is PROMOTED
            assert_whole(plant, registry, raw)
            assert await published(plant.place, promotion) == {**dict.fromkeys(targets_of(plant), 1), "finished": 1}

    found = await points_of(make_plant, forks, registry)
    await side_by_side([point for point in found if point.number == 1 and point.is_effect == (point.side is Side.AFTER)], fail)


@pytest.mark.thorough
async def test_a_promotion_that_is_stopped_and_resumed_when_all_is_over(make_plant, forks, registry):
    """It wakes up after another worker has ended it and a later promotion has moved the tags on: there they stand in the end."""

    async def stop(point: Point) -> None:
        async with make_plant() as plant:
            promotion, raw = await begin(plant, registry)
            child = await forks.start("chore", plant.environment, {"name": promotion.chore}, (point, "stop"))
            assert await child.stopped()
            await claim_is_over(plant.place, promotion)
            assert (await work(plant.place, promotion)).state is PROMOTED
            assert_whole(plant, registry, raw)
            image, newer = await copied(plant, "two", registry)
            mutable = targets_of(plant)[:2]
            assert (await work(plant.place, await accept(plant.place, image, *mutable))).state is PROMOTED
            child.signal(signal.SIGCONT)
            await child.ended()
            await claim_is_over(plant.place, promotion)
            assert (await work(plant.place, promotion)).state is PROMOTED
            assert [stands_at(plant, registry, target) for target in targets_of(plant)] == [digest_of(newer)] * 2 + [digest_of(raw)]
            assert await published(plant.place, promotion) == {**dict.fromkeys(targets_of(plant), 1), "finished": 1}

    found = await points_of(make_plant, forks, registry)
    await side_by_side([point for point in found if point.is_effect and point.side is Side.BEFORE], stop, at_once=20)
