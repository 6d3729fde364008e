"""Inventories read from real registries: what is in them, how few requests they take, and what makes them say that they are not whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from ledger.errors import RegistryUnsupported
from ledger.references import ImageReference
from ledger.retention import Retention
from tests.integration.registry_kinds import Kind
from tests.integration.registry_server import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    RegistryServer,
    Reply,
    Request,
    digest_of,
    scripted,
)
from worker.registry import Anonymous, RegistryClient, RegistryReader
from worker.registry.wire import Wire
from worker.retention.inventory import Blob, Inventory, Origin, Repository, Stored, Tag
from worker.retention.memory import LocalMemory, Push
from worker.retention.plan import plan
from worker.retention.policy import Policies
from worker.retention.protection import QUARANTINE, Protected
from worker.retention.scope import find_repositories, referrers_of
from worker.retention.survey import survey

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CREATED = "2025-12-24T18:00:00.123456789Z"


@pytest.fixture(scope="module")
def registry(registry_of_kind: RegistryServer) -> RegistryServer:
    return registry_of_kind


@pytest.fixture
async def reader(registry: RegistryServer) -> AsyncIterator[RegistryReader]:
    async with RegistryReader(Anonymous(), insecure=frozenset({registry.host})) as reader:
        yield reader


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request, as `GET /v2/…`."""
    found: list[str] = []
    send = Wire.send

    async def counted(self, method, url, **named):
        found.append(f"{method} {url.partition('/v2/')[2]}")
        return await send(self, method, url, **named)

    monkeypatch.setattr(Wire, "send", counted)
    return found


def only(inventory: Inventory) -> tuple[dict[str, Tag], dict[str, Stored]]:
    [repository] = inventory.repositories
    assert repository.trouble is None
    return {tag.name: tag for tag in repository.tags}, {one.digest: one for one in repository.manifests}


async def test_everything_that_hangs_together_is_read(registry: RegistryServer, reader: RegistryReader) -> None:
    amd = registry.push_image("all/app", None, layers=(b"amd", b"base"), created=CREATED)
    arm = registry.push_image("all/app", None, layers=(b"arm", b"base"), created="2020-01-01T00:00:00Z")
    inner = registry.push_index("all/app", "inner", {"linux/amd64": amd})
    outer = registry.push_index("all/app", "outer", {"linux/amd64": inner, "linux/arm64": arm})
    plain = registry.push_image("all/app", "plain", layers=(b"plain",), media_type=DOCKER_MANIFEST, created=CREATED)
    docker_list = registry.push_index("all/app", "list", {"linux/amd64": plain}, media_type=DOCKER_LIST)
    signature = registry.push_referrer("all/app", plain, tag=f"{digest_of(plain).replace(':', '-')}.sig")
    tags, manifests = only(await survey(reader, registry.host, ["all/app"], LocalMemory(), NOW))
    found = {name: tag.digest for name, tag in tags.items()}
    about = f"{digest_of(plain).replace(':', '-')}.sig"
    expected = {"inner": inner, "outer": outer, "plain": plain, "list": docker_list, about: signature}
    assert found == {name: digest_of(raw) for name, raw in expected.items()}
    assert manifests.keys() == {digest_of(raw) for raw in (amd, arm, inner, outer, plain, docker_list, signature)}
    assert manifests[digest_of(outer)].children == (digest_of(inner), digest_of(arm))
    assert manifests[digest_of(signature)].subject == digest_of(plain)
    assert manifests[digest_of(amd)].blobs[1:] == (Blob(digest_of(b"amd"), 3), Blob(digest_of(b"base"), 4))
    assert manifests[digest_of(plain)].size == len(plain)
    at = datetime(2025, 12, 24, 18, 0, 0, 123456, tzinfo=UTC)
    assert {name: tag.pushed for name, tag in tags.items()} == {"inner": at, "outer": at, "plain": at, "list": at, about: None}


async def test_our_own_pushes_tell_the_time_and_the_branch(registry: RegistryServer, reader: RegistryReader, asked: list[str]) -> None:
    raw = registry.push_image("pushed/app", "main-1", created="1970-01-01T00:00:00Z")
    memory = LocalMemory()
    memory.record_push(f"{registry.host}/pushed/app", "main-1", digest_of(raw), Push(NOW - timedelta(days=3), "main"))
    memory.record_push(f"{registry.host}/pushed/app", "main-1", "sha256:" + "0" * 64, Push(NOW, "other"))
    tags, _ = only(await survey(reader, registry.host, ["pushed/app"], memory, NOW))
    assert (tags["main-1"].pushed, tags["main-1"].origin, tags["main-1"].branch) == (NOW - timedelta(days=3), Origin.PUSH, "main")
    assert not any("blobs" in request for request in asked)


async def test_how_few_requests_it_takes(registry: RegistryServer, reader: RegistryReader, asked: list[str], kind: Kind) -> None:
    for number in range(20):
        registry.push_image("few/app", f"t{number}", layers=(b"%d" % number,), labels={"n": str(number)}, created=CREATED)
    memory = LocalMemory()

    async def requests(now: datetime, **named: timedelta) -> tuple[int, Inventory]:
        asked.clear()
        inventory = await survey(reader, registry.host, ["few/app"], memory, now, **named)
        only(inventory)
        return len(asked) - asked.count("GET "), inventory

    first, inventory = await requests(NOW)
    assert first <= 2.1 * 20
    later, again = await requests(NOW + timedelta(hours=1))
    assert later <= 1.05 * 20
    assert again.repositories == inventory.repositories
    registry.push_image("few/app", "t0", layers=(b"new",), created=CREATED)
    changed, moved = await requests(NOW + timedelta(hours=2))
    assert changed == 21 + 3  # what t0 was is looked for, what it is now is read with its config
    cached, kept = await requests(NOW + timedelta(hours=3), tag_age=timedelta(hours=2))
    assert cached == 1
    assert kept.repositories == moved.repositories
    since = [one.untagged_since for one in kept.repositories[0].manifests if one.untagged_since]
    assert since == ([] if kind.forgets_untagged else [NOW + timedelta(hours=2)])


async def test_what_lost_its_tag_is_remembered_with_the_time_until_it_is_gone(
    registry: RegistryServer, reader: RegistryReader, kind: Kind
) -> None:
    old = registry.push_image("lost/app", "latest", layers=(b"old",), created=CREATED)
    memory = LocalMemory()
    await survey(reader, registry.host, ["lost/app"], memory, NOW)
    registry.push_image("lost/app", "latest", layers=(b"new",), created=CREATED)
    for later in (1, 2):
        _, manifests = only(await survey(reader, registry.host, ["lost/app"], memory, NOW + timedelta(days=later)))
        if kind.forgets_untagged:
            assert digest_of(old) not in manifests
        else:
            assert manifests[digest_of(old)].untagged_since == NOW + timedelta(days=1)
    async with RegistryClient(Anonymous(), insecure=frozenset({registry.host})) as client:
        await client.delete(ImageReference(registry.host, "lost/app", digest=digest_of(old)))
    _, manifests = only(await survey(reader, registry.host, ["lost/app"], memory, NOW + timedelta(days=3)))
    assert digest_of(old) not in manifests


async def test_what_somebody_uses_is_read_although_no_tag_leads_to_it(registry: RegistryServer, reader: RegistryReader) -> None:
    child = registry.push_image("used/app", None, layers=(b"child",))
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest_of(child), "size": len(child)}],
    }
    used = registry.push_manifest("used/app", digest_of(json.dumps(body).encode()), body)
    registry.push_image("used/app", "1", layers=(b"tagged",), created=CREATED)
    also = {f"{registry.host}/used/app": [digest_of(used), "sha256:" + "0" * 64]}
    _, manifests = only(await survey(reader, registry.host, ["used/app"], LocalMemory(), NOW, also=also))
    assert {digest_of(used), digest_of(child)} < manifests.keys()


async def test_what_refers_to_an_image_goes_with_it(registry: RegistryServer, reader: RegistryReader, kind: Kind) -> None:
    if not kind.referrers:
        pytest.skip("without the API referrers have tags, which are listed")
    old = registry.push_image("refer/app", "old", layers=(b"old",), created=CREATED)
    registry.push_image("refer/app", "new", layers=(b"new",), created="2026-02-28T00:00:00Z")
    about = registry.push_referrer("refer/app", old)
    name, memory = f"{registry.host}/refer/app", LocalMemory()
    policies = Policies((("p", Retention(repositories=(name,), delete=("*",), keep=({"last": 1},))),))
    first = plan(await survey(reader, registry.host, ["refer/app"], memory, NOW), policies, Protected(), NOW)
    also = await referrers_of(reader, first)
    assert also == {name: [digest_of(about)]}
    again = await survey(reader, registry.host, ["refer/app"], memory, NOW, tag_age=timedelta(minutes=1), also=also)
    made = plan(again, policies, Protected(), NOW)
    assert made.repositories[0].deletions == (digest_of(old), digest_of(about))


async def test_where_there_is_no_api_for_referrers_it_is_asked_once_and_their_tags_say_what_goes_with_an_image(
    registry: RegistryServer, reader: RegistryReader, asked: list[str], kind: Kind
) -> None:
    if kind.referrers:
        pytest.skip("it has the API")
    old = [registry.push_image("noapi/app", f"old{n}", layers=(b"old%d" % n,), labels={"n": str(n)}, created=CREATED) for n in range(9)]
    registry.push_image("noapi/app", "new", layers=(b"new",), created="2026-02-28T00:00:00Z")
    about = registry.push_referrer("noapi/app", old[0])
    listing = registry.push_index("noapi/app", digest_of(old[0]).replace(":", "-"), {"unknown/unknown": about}, media_type=OCI_INDEX)
    policies = Policies((("p", Retention(repositories=(f"{registry.host}/noapi/app",), delete=("*",), keep=({"last": 1},), max_share=1)),))
    made = plan(await survey(reader, registry.host, ["noapi/app"], LocalMemory(), NOW), policies, Protected(), NOW)
    assert {*map(digest_of, old), digest_of(about), digest_of(listing)} == set(made.repositories[0].deletions)
    assert [one.digest for one in await reader.referrers(ImageReference(registry.host, "noapi/app", digest=digest_of(old[0])))] == [
        digest_of(about)
    ]
    asked.clear()
    assert await referrers_of(reader, made) == {}
    assert asked == []


async def test_a_repository_that_is_not_there_is_empty(registry: RegistryServer, reader: RegistryReader) -> None:
    inventory = await survey(reader, registry.host, ["none/app", "none/other"], LocalMemory(), NOW)
    assert inventory.repositories == (Repository(name=f"{registry.host}/none/app"), Repository(name=f"{registry.host}/none/other"))


async def test_repositories_are_found_by_name_or_in_the_catalog(registry: RegistryServer, reader: RegistryReader, asked: list[str]) -> None:
    for name in ("found/a", "found/b", "other/c"):
        registry.push_image(name, "1")

    def policies(*patterns: str) -> Policies:
        return Policies((("p", Retention(repositories=patterns)),))

    assert await find_repositories(reader, registry.host, policies(f"{registry.host}/found/a", "elsewhere.test/x")) == ("found/a",)
    assert not any("_catalog" in request for request in asked)
    assert await find_repositories(reader, registry.host, policies(f"{registry.host}/found/*")) == ("found/a", "found/b")


OK = {"Content-Type": OCI_MANIFEST}
RAW = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()


async def trouble(behave) -> str | None:
    """What a survey of one repository of a server of ours says is wrong."""
    async with (
        scripted(lambda request: Reply() if request.path == "/v2/" else behave(request)) as server,
        RegistryReader(Anonymous(), insecure=frozenset({server.host})) as reader,
    ):
        inventory = await survey(reader, server.host, ["team/app"], LocalMemory(), NOW)
        [repository] = inventory.repositories
        policies = Policies((("p", Retention(repositories=(repository.name,), delete=("*",), keep=({"last": 1},), grace="0s")),))
        made = plan(inventory, policies, Protected(), NOW)
        assert not made.repositories[0].deletions
        return repository.trouble


def listing(request: Request, *tags: str) -> Reply | None:
    return Reply(body=json.dumps({"tags": tags}).encode()) if request.path.endswith("/tags/list") else None


async def test_a_look_up_that_fails_is_trouble_for_the_whole_repository() -> None:
    """registry-cli took a failed look-up of a digest for no digest, and deleted."""
    for reply in (Reply(500), Reply(403), Reply(404, {"Content-Type": "text/html"}), Reply(200, OK, b"{"), None):
        said = await trouble(
            lambda request, reply=reply: listing(request, "a", "b") or (Reply(200, OK, RAW) if request.path.endswith("/a") else reply)
        )
        assert said
        assert "team/app" in said or "127.0.0.1" in said or "manifest" in said


async def test_a_tag_that_is_listed_and_not_there_is_trouble_and_one_that_has_gone_meanwhile_is_not() -> None:
    gone = Reply(404, {"Docker-Distribution-Api-Version": "registry/2.0"})
    said = await trouble(lambda request: listing(request, "a", "b") or (Reply(200, OK, RAW) if request.path.endswith("/a") else gone))
    assert said is not None
    assert "lists the tag b" in said
    lists = [("a", "b"), ("a",)]
    said = await trouble(
        lambda request: (
            listing(request, *lists.pop(0))
            if request.path.endswith("/list")
            else (Reply(200, OK, RAW) if request.path.endswith("/a") else gone)
        )
    )
    assert said is None


@pytest.mark.parametrize(("media_type", "expected"), [(OCI_MANIFEST, None), (OCI_INDEX, "is not there"), ("application/x", "is not there")])
async def test_a_missing_part_of_an_index_is_trouble_unless_nothing_can_hang_on_it(media_type: str, expected: str | None) -> None:
    child = {"mediaType": media_type, "digest": "sha256:" + "1" * 64, "size": 1}
    raw = json.dumps({"mediaType": OCI_INDEX, "manifests": [child]}).encode()
    gone = Reply(404, {"Docker-Distribution-Api-Version": "registry/2.0"})
    said = await trouble(
        lambda request: listing(request, "a") or (Reply(200, {"Content-Type": OCI_INDEX}, raw) if request.path.endswith("/a") else gone)
    )
    assert said is None if expected is None else expected in str(said)


async def test_a_list_that_ends_early_is_trouble() -> None:
    def behave(request: Request) -> Reply | None:
        if "last" in request.query:
            return Reply(503)
        if request.path.endswith("/list"):
            return Reply(200, {"Link": '</v2/team/app/tags/list?last=a>; rel="next"'}, b'{"tags": ["a"]}')
        return Reply(200, OK, RAW)

    assert "503" in str(await trouble(behave))


async def test_indexes_too_deep_to_follow_are_trouble() -> None:
    def level(number: int) -> bytes:
        below = level(number - 1) if number else b"{}"
        child = {"mediaType": OCI_INDEX, "digest": digest_of(below), "size": len(below)}
        return json.dumps({"mediaType": OCI_INDEX, "manifests": [child] if number else []}).encode()

    levels = [level(number) for number in range(12)]
    by_name = {digest_of(raw): raw for raw in levels} | {"a": levels[-1]}
    said = await trouble(
        lambda request: listing(request, "a") or Reply(200, {"Content-Type": OCI_INDEX}, by_name[request.path.rpartition("/")[2]])
    )
    assert "too deep" in str(said)


async def test_a_quarantined_tag_and_a_signature_need_no_age() -> None:
    seen = []

    def behave(request: Request) -> Reply | None:
        seen.append(request.path)
        return listing(request, f"{QUARANTINE}1", f"sha256-{'0' * 64}.sig") or Reply(200, OK, RAW)

    assert await trouble(behave) is None
    assert not any("blobs" in path for path in seen)


async def test_a_registry_without_a_catalog_wants_names() -> None:
    async with (
        scripted(lambda request: Reply() if request.path == "/v2/" else Reply(405, {}, b'{"errors": [{"code": "UNSUPPORTED"}]}')) as server,
        RegistryReader(Anonymous(), insecure=frozenset({server.host})) as reader,
    ):
        policies = Policies((("p", Retention(repositories=(f"{server.host}/*",))),))
        with pytest.raises(RegistryUnsupported):
            await find_repositories(reader, server.host, policies)
