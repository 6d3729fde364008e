"""Plans applied, undone and purged on real registries: what both plans let go goes, and nothing else ever does."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from ledger.chores import ChoreState
from ledger.errors import Conflict
from ledger.plans import AUTOMATIC, PlanState
from ledger.references import parse_mark
from producer.submit import submit_build_async
from tests.integration.registry_kinds import KINDS
from tests.integration.registry_server import OCI_INDEX, OCI_MANIFEST, RegistryServer, digest_of, run_registry
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from tests.requests import make_request


@pytest.fixture(scope="module")
def registry(registry_of_kind: RegistryServer) -> RegistryServer:
    return registry_of_kind


def push(site: RetentionSite, tag: str | None, content: str, created: str = OLD) -> bytes:
    return site.registry.push_image(site.repository, tag, layers=(content.encode(), b"base"), created=created, labels={"c": content})


def retag(site: RetentionSite, tag: str, raw: bytes, media_type: str = OCI_MANIFEST) -> None:
    with site.registry.http() as http:
        http.put(f"{site.repository}/manifests/{tag}", content=raw, headers={"Content-Type": media_type}).raise_for_status()


async def test_what_is_condemned_goes_into_the_bin_comes_back_and_goes_for_good(site: RetentionSite) -> None:
    new, old = push(site, "new", "new", RECENT), push(site, "old", "old")
    retag(site, "also-old", old)
    sha = await site.plan()
    assert (await site.ledger.plans.read(sha)).totals["delete"] == 2
    before = site.tags()
    assert "2 untagged, 1 binned, 0 skipped" in await site.apply(sha)
    assert site.people_see() == {"new": digest_of(new)}
    assert site.has(digest_of(old)) == digest_of(old)
    assert len(site.tags()) == 2
    assert {event["data"]["image"] for event in await site.events("untagged")} == {f"{site.name}:old", f"{site.name}:also-old"}
    assert len(await site.events("registry.applied")) == 1
    assert "wait for the end" in await site.purge()
    assert "3 returned" in await site.undo(sha)
    assert site.tags() == before
    assert (await site.ledger.plans.read(sha)).state is PlanState.UNDONE
    assert (await site.ledger.plans.read(await site.plan())).totals["delete"] == 0  # what was put back is pinned
    await site.unpin_all()
    third = await site.plan()
    await site.apply(third)
    await site.window_ends()
    assert await site.purge() == "the bin is empty"
    assert site.tags() == {"new": digest_of(new)}
    assert site.has(digest_of(old)) is None
    assert [event["data"]["customData"]["plan"] for event in await site.events("artifact.deleted")] == [third]
    assert await site.undo(third) == "0 returned, 0 left, 0 lost"


async def test_a_tag_that_moved_meanwhile_stays_and_so_does_its_old_digests_new_tag(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    old, other = push(site, "old", "old"), push(site, "other", "other")
    sha = await site.plan()
    moved = push(site, "old", "moved")
    retag(site, "fresh", other)
    await site.apply(sha)
    assert site.has("old") == digest_of(moved)
    assert site.has("fresh") == digest_of(other)
    assert site.has("other") == digest_of(other)
    report = await site.ledger.plans.report(sha)
    assert "by now" in report[f"{site.name}:old"]
    assert report[f"{site.name}:other"].startswith("skipped")
    assert digest_of(old) not in site.people_see().values()
    assert not [entry for entry in await site.ledger.bin.entries(site.name) if entry.digest == digest_of(other)]


async def test_a_condemned_tag_of_a_digest_that_stays_goes_alone(site: RetentionSite) -> None:
    await site.settle({"keep": [{"matching": ["stable"]}, {"last": 1}]})
    push(site, "new", "new", RECENT)
    shared = push(site, "stable", "shared")
    retag(site, "v1", shared)
    sha = await site.plan()
    assert "1 untagged, 0 binned" in await site.apply(sha)
    assert site.people_see().keys() == {"new", "stable"}
    assert site.has("stable") == digest_of(shared)
    await site.undo(sha)
    assert site.has("v1") == digest_of(shared)
    await site.window_ends()
    await site.purge()
    assert site.has("stable") == digest_of(shared)


async def test_an_index_goes_with_its_parts_and_comes_back_with_them(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    amd, arm = push(site, None, "amd"), push(site, None, "arm")
    index = site.registry.push_index(site.repository, "old", {"linux/amd64": amd, "linux/arm64": arm})
    sha = await site.plan()
    await site.apply(sha)
    await site.undo(sha)
    assert site.has("old") == digest_of(index)
    await site.unpin_all()
    sha = await site.plan()
    await site.apply(sha)
    await site.window_ends()
    assert await site.purge() == "the bin is empty"
    assert [site.has(digest_of(raw)) for raw in (index, amd, arm)] == [None, None, None]
    assert site.people_see().keys() == {"new"}


async def test_an_application_in_many_parts_takes_all_that_hangs_together(site: RetentionSite, monkeypatch) -> None:
    """What the bin has already of an index or an image must not hold the rest of it: that would never go, and nobody would see it."""
    monkeypatch.setattr("worker.retention.apply._FRESH", 0.0)
    push(site, "new", "new", RECENT)
    amd, arm, signed = push(site, None, "amd"), push(site, None, "arm"), push(site, "signed", "signed")
    index = site.registry.push_index(site.repository, "old", {"linux/amd64": amd, "linux/arm64": arm})
    signature = push(site, digest_of(signed).replace(":", "-") + ".sig", "signature")
    sha = await site.plan()
    before = site.tags()
    await site.apply(sha)
    assert site.people_see().keys() == {"new"}
    all_of_it = {digest_of(raw) for raw in (amd, arm, index, signed, signature)}
    assert {entry.digest for entry in await site.ledger.bin.entries(site.name)} == all_of_it
    assert not [said for said in (await site.ledger.plans.report(sha)).values() if said.startswith("skipped")]
    await site.undo(sha)
    assert site.tags() == before
    await site.unpin_all()
    await site.apply(await site.plan())
    await site.window_ends()
    assert await site.purge() == "the bin is empty"
    assert not [digest for digest in all_of_it if site.has(digest)]


async def test_what_is_held_again_when_its_window_ends_is_rescued(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    tagged, part = push(site, "a", "tagged"), push(site, "b", "part")
    pinned = push(site, "c", "pinned")
    sha = await site.plan()
    await site.apply(sha)
    retag(site, "again", tagged)
    site.registry.push_index(site.repository, "index", {"linux/amd64": part})
    await site.ledger.shelf.pin(digest_of(pinned), "ada needs it")
    await site.window_ends()
    await site.purge()
    for raw in (tagged, part, pinned):
        assert site.has(digest_of(raw)) == digest_of(raw)
    report = await site.ledger.plans.report(sha)
    assert report[f"{site.name}@{digest_of(tagged)}"].startswith("rescued")
    assert report[f"{site.name}@{digest_of(part)}"].startswith("rescued")
    assert "ada needs it" in report[f"{site.name}@{digest_of(pinned)}"]
    assert [entry.digest for entry in await site.ledger.bin.entries(site.name)] == [digest_of(pinned)]


async def test_what_is_meant_by_a_tag_that_went_stays_in_the_bin(site: RetentionSite) -> None:
    """A deployment of the tag came in the minute in which it went, or somebody pinned it: its digest tells nobody that."""
    push(site, "new", "new", RECENT)
    part = push(site, None, "part")
    index = site.registry.push_index(site.repository, "old", {"linux/amd64": part})
    sha = await site.plan()
    await site.apply(sha)
    await site.ledger.shelf.pin(f"{site.name}:old", "ada needs it")
    await site.window_ends()
    await site.purge()
    assert [site.has(digest_of(raw)) for raw in (index, part)] == [digest_of(index), digest_of(part)]
    assert "ada needs it" in (await site.ledger.plans.report(sha))[f"{site.name}@{digest_of(index)}"]
    await site.unpin_all()
    await site.window_ends()
    assert await site.purge() == "the bin is empty"
    assert [site.has(digest_of(raw)) for raw in (index, part)] == [None, None]


async def test_pins_and_builds_under_way_that_came_after_the_plan_keep_their_images(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    by_digest, by_tag = push(site, "a", "digest"), push(site, "b", "tag")
    sha = await site.plan()
    await site.ledger.shelf.pin(digest_of(by_digest), "ada")
    await site.ledger.shelf.pin(f"{site.name}:b", "ada")
    assert "0 untagged, 0 binned, 2 skipped" in await site.apply(sha)
    assert {site.has("a"), site.has("b")} == {digest_of(by_digest), digest_of(by_tag)}


async def test_a_silent_cluster_keeps_everything_unless_somebody_says_despite(site: RetentionSite) -> None:
    await site.settle(clusters={"prod": {"token": {"env": "T"}}})
    push(site, "new", "new", RECENT)
    old = push(site, "old", "old")
    sha = await site.plan()
    assert "0 binned, 1 skipped" in await site.apply(sha)
    assert "prod did not say" in (await site.ledger.plans.report(sha))[f"{site.name}:old"]
    sha = await site.plan()
    assert "1 binned" in await site.apply(sha, "prod")
    await site.window_ends()
    await site.ledger.usage.store("prod", {digest_of(old): "pod a/b"}, await site.ledger.now())
    await site.purge()
    assert site.has(digest_of(old)) == digest_of(old)


async def test_automatic_policies_apply_by_themselves_where_all_clusters_answer(site: RetentionSite) -> None:
    await site.settle({"apply": "automatic"}, clusters={"prod": {"token": {"env": "T"}}})
    push(site, "new", "new", RECENT)
    push(site, "old", "old")
    running = push(site, "running", "running")
    sha = await site.plan()
    assert (await site.ledger.plans.read(sha)).state is PlanState.PROPOSED
    await site.ledger.usage.store("prod", {digest_of(running): "pod a/b"}, await site.ledger.now())
    sha = await site.plan()
    assert (await site.ledger.plans.read(sha)).approved_by == "automatic"
    assert "1 untagged, 1 binned" in await site.run(f"apply:{sha}")
    assert site.people_see().keys() == {"new", "running"}


async def test_only_an_approved_plan_that_is_not_old_is_applied(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    push(site, "old", "old")
    sha = await site.plan()
    await site.ledger.chores.start(f"apply:{sha}", site.registry.host)
    assert "proposed" in await site.run(f"apply:{sha}")
    assert (await site.ledger.chores.read(f"apply:{sha}")).state is ChoreState.STOPPED
    await site.approve(sha)
    await site.age(sha, timedelta(days=8))
    assert "older than 7 days" in await site.run(f"apply:{sha}")
    with pytest.raises(Conflict, match="make a new one"):
        await site.approve(sha)
    assert site.people_see().keys() == {"new", "old"}


async def test_a_plan_that_somebody_changed_is_not_applied(site: RetentionSite) -> None:
    import zlib

    push(site, "new", "new", RECENT)
    push(site, "old", "old")
    sha = await site.plan()
    text = (await site.ledger.plans.text(sha)).replace('"keep"', '"delete"')
    await site.ledger.connection.command("HSET", site.ledger.connection.keys.plan(sha), "text", zlib.compress(text.encode()))
    assert "not the one of the hash" in await site.apply(sha)
    assert site.people_see().keys() == {"new", "old"}


async def test_a_wanted_tag_is_retired_with_it_and_one_that_is_wanted_otherwise_stays(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    first, second = push(site, "a", "first"), push(site, "b", "second")
    sha = await site.plan()
    key = site.ledger.connection.keys.tags(site.name)
    await site.ledger.connection.command("HSET", key, "a", f"5 {digest_of(first)} build", "b", f"6 sha256:{'0' * 64} build")
    await site.apply(sha)
    assert await site.ledger.tags.wanted(site.name, "a") is None
    assert site.people_see() == {"new": site.has("new"), "b": digest_of(second)}


async def test_without_an_undo_window_it_goes_at_once(site: RetentionSite) -> None:
    await site.settle({"undo": "0s"})
    push(site, "new", "new", RECENT)
    old = push(site, "old", "old")
    await site.apply(await site.plan())
    assert f"purge:{site.registry.host}" in [chore.name for chore in await site.ledger.chores.all()]
    assert await site.purge() == "the bin is empty"
    assert site.has(digest_of(old)) is None


async def test_the_breaker_stops_after_three_failures_and_an_approval_goes_on(site: RetentionSite, monkeypatch) -> None:
    from ledger.errors import RegistryUnavailable
    from worker.registry.client import RegistryClient

    push(site, "new", "new", RECENT)
    push(site, "old", "old")
    sha = await site.plan()

    async def broken(*_):
        raise RegistryUnavailable("503")

    with monkeypatch.context() as patched:
        patched.setattr(RegistryClient, "put_manifest", broken)
        assert "stopped after 3 failures" in await site.apply(sha)
    assert site.people_see().keys() == {"new", "old"}
    await site.approve(sha)
    assert "1 binned" in await site.run(f"apply:{sha}")


@pytest.mark.parametrize("program", ["docker-registry", "registry"])
async def test_where_a_registry_deletes_nothing_every_tag_stays_as_it_was(settings, tmp_path, program: str) -> None:
    """As distribution does unless it is told otherwise: a tag that was put on a tombstone there could never be taken away."""
    kind = next(kind for kind in KINDS.values() if kind.program == program)
    if kind.binary is None:
        pytest.skip(f"there is no {program}")
    with run_registry(tmp_path / "registry", deletes=False, program=kind.binary) as registry:
        async with retention_site(settings, registry, "keeps/all") as site:
            await site.settle()
            push(site, "new", "new", RECENT)
            push(site, "old", "old")
            before = site.tags()
            sha = await site.plan()
            assert "nothing can be taken away there" in await site.apply(sha)
            assert site.tags() == before
            assert await site.ledger.bin.entries(site.name) == []


async def test_a_registry_that_deletes_no_more_loses_no_tag_to_an_undo(settings, tmp_path) -> None:
    with run_registry(tmp_path / "registry") as registry:
        async with retention_site(settings, registry, "once/more") as site:
            await site.settle()
            push(site, "new", "new", RECENT)
            push(site, "old", "old")
            before, sha = site.tags(), await site.plan()
            await site.apply(sha)
    with run_registry(tmp_path / "registry", deletes=False, port=int(registry.host.rpartition(":")[2])) as registry:
        async with retention_site(settings, registry, "once/more") as site:
            await site.undo(sha)
            held = site.tags().items() - before.items()
            assert before.items() <= site.tags().items()
            assert {digest for _, digest in held} == {before["old"]}  # its quarantine tag stands for what it stood for


async def test_what_waits_for_approval_can_be_approved_after_the_rest_went_by_itself(site: RetentionSite) -> None:
    other = RetentionSite(site.place, site.registry, f"{site.repository}-reviewed")
    rules = {"delete": ["*"], "keep": [{"last": 1}], "grace": "0s", "max_share": 1.0, "used_by_no_cluster": True}
    retention = [{"repositories": [site.name], "apply": "automatic", **rules}, {"repositories": [other.name], **rules}]
    registries = {site.registry.host: {"insecure": True}}
    await site.settle(projects={"team": {"registries": registries, "retention": retention}})
    for one in (site, other):
        push(one, "new", "new", RECENT)
        push(one, "old", "old")
    sha = await site.plan()
    await site.run(f"apply:{sha}")
    assert (site.people_see().keys(), other.people_see().keys()) == ({"new"}, {"new", "old"})
    stored = await site.ledger.plans.read(sha)
    assert (stored.state, stored.approved_by) == (PlanState.PROPOSED, AUTOMATIC)
    assert "2 untagged, 2 binned, 0 skipped" in await site.apply(sha)
    assert other.people_see().keys() == {"new"}
    assert (await site.ledger.plans.read(sha)).state is PlanState.APPLIED


async def test_an_index_that_came_while_its_part_was_deleted_gets_it_back(site: RetentionSite, monkeypatch) -> None:
    """There is no conditional DELETE: whoever pushes in that very moment loses nothing all the same."""
    from worker.registry.client import RegistryClient

    push(site, "new", "new", RECENT)
    part = push(site, "old", "part")
    await site.apply(await site.plan())
    await site.window_ends()
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest_of(part), "size": len(part)}],
    }
    delete = RegistryClient.delete

    async def late(self, image):
        if image.digest == digest_of(part):
            retag(site, "index", json.dumps(body).encode(), OCI_INDEX)
        return await delete(self, image)

    monkeypatch.setattr(RegistryClient, "delete", late)
    await site.purge()
    assert site.has(digest_of(part)) == digest_of(part)
    assert site.has("index") is not None


async def test_a_pin_that_is_made_while_a_plan_is_applied_holds_at_once(site: RetentionSite, monkeypatch) -> None:
    from worker.retention.apply import _Applying

    push(site, "new", "new", RECENT)
    push(site, "first", "first", "2023-01-01T00:00:00Z")
    by_digest, by_tag = push(site, "a", "digest"), push(site, "b", "tag")
    sha = await site.plan()
    bin_one = _Applying._bin

    async def and_pin(self, client, digest, agreed):
        assert await bin_one(self, client, digest, agreed)
        await site.ledger.shelf.pin(digest_of(by_digest), "ada")
        await site.ledger.shelf.pin(f"{site.name}:b", "ada")
        return True

    monkeypatch.setattr(_Applying, "_bin", and_pin)
    assert "1 untagged, 1 binned, 2 skipped" in await site.apply(sha)
    assert (site.has("first"), site.has("a"), site.has("b")) == (None, digest_of(by_digest), digest_of(by_tag))
    assert "pinned: ada" in (await site.ledger.plans.report(sha))[f"{site.name}:b"]


async def test_a_pin_that_is_made_between_two_tags_of_an_image_holds_the_second(site: RetentionSite, monkeypatch) -> None:
    from worker.retention.apply import _Applying

    push(site, "new", "new", RECENT)
    old = push(site, "a", "old")
    retag(site, "b", old)
    sha = await site.plan()
    take_one = _Applying._take

    async def and_pin(self, client, tag, digest):
        await take_one(self, client, tag, digest)
        await site.ledger.shelf.pin(f"{site.name}:b", "ada")

    monkeypatch.setattr(_Applying, "_take", and_pin)
    assert "1 untagged" in await site.apply(sha)
    assert (site.has("a"), site.has("b")) == (None, digest_of(old))
    await site.window_ends()
    await site.purge()
    assert site.has("b") == digest_of(old)
    assert site.tags().keys() == {"new", "b"}


async def test_a_pin_and_a_build_protect_by_every_name_of_the_registry(site: RetentionSite) -> None:
    """Nodes pull, builds push and people pin by another name than policies use, or spell it otherwise."""
    host = site.registry.host
    await site.settle(collect=[{"registry": host, "aliases": ["Reg.test", "in-cluster.test:5000"], "kind": "own"}])
    push(site, "new", "new", RECENT)
    for tag in ("pinned", "built", "neither"):
        push(site, tag, tag)
    await site.ledger.shelf.pin(parse_mark(f"rEG.test:443/{site.repository}:pinned"), "ada")
    build = make_request(project="team", destinations=[f"in-cluster.test:5000/{site.repository}:built"])
    await submit_build_async(build, ledger=site.ledger)
    await site.apply(await site.plan())
    assert site.people_see().keys() == {"new", "pinned", "built"}


async def test_undo_leaves_a_pin_as_somebody_made_it(site: RetentionSite) -> None:
    push(site, "new", "new", RECENT)
    push(site, "old", "old"), push(site, "other", "other")
    sha = await site.plan()
    await site.apply(sha)
    made = await site.ledger.shelf.pin(f"{site.name}:old", "the audit", image=f"{site.name}:old", by="ada")
    await site.undo(sha)
    pins = {pin.mark: pin for pin in await site.ledger.shelf.pinned()}
    assert pins[made.mark] == made
    assert (pins[f"{site.name}:other"].image, "undone" in pins[f"{site.name}:other"].why) == (f"{site.name}:other", True)


async def test_a_plan_of_a_registry_that_no_policy_names_is_refused(site: RetentionSite) -> None:
    await site.ledger.chores.start("plan:other.test", "other.test")
    assert await site.run("plan:other.test") == (
        f"no policy names a repository of other.test; those of the projects file name {site.registry.host}"
    )
    assert await site.ledger.plans.all("other.test") == []


async def test_a_tag_that_was_taken_away_just_before_something_went_wrong_is_told_of_and_put_where_a_build_wants_it(
    site: RetentionSite, monkeypatch
) -> None:
    """Nobody had written down yet that it was gone: the next look finds that out."""
    from ledger.errors import RegistryUnavailable
    from worker.retention import apply
    from worker.retention.untagging import take_away

    push(site, "new", "new", RECENT)
    old, wanted = push(site, "old", "old"), push(site, "wanted", "wanted")
    sha, failed = await site.plan(), set()
    built = push(site, None, "built", RECENT)

    async def and_fail(client, image, digest, plan, hold):
        taken = await take_away(client, image, digest, plan, hold)
        if image.tag in failed:
            return taken
        failed.add(image.tag)
        if image.tag == "wanted":  # a build has pushed it after the last look: it was its tag that went
            key = site.ledger.connection.keys.tags(site.name)
            await site.ledger.connection.command("HSET", key, "wanted", f"5 {digest_of(built)} build")
        raise RegistryUnavailable("503")

    monkeypatch.setattr(apply, "take_away", and_fail)
    assert "2 untagged, 2 binned, 0 skipped" in await site.apply(sha)
    assert failed == {"old", "wanted"}
    assert site.people_see() == {"new": site.has("new"), "wanted": digest_of(built)}
    assert sorted(event["data"]["image"] for event in await site.events("untagged")) == [f"{site.name}:old", f"{site.name}:wanted"]
    assert {entry.digest for entry in await site.ledger.bin.entries(site.name)} == {digest_of(old), digest_of(wanted)}
