"""The client against every kind of registry that is here: what is read, set, copied and deleted, and what one of them cannot do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.errors import ManifestUnknown, ReadOnly, RegistryConfused, RegistryUnavailable, RegistryUnsupported
from ledger.references import ImageReference
from tests.integration.registry_kinds import KINDS, Kind
from tests.integration.registry_server import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    RegistryServer,
    Reply,
    Request,
    digest_of,
    run_registry,
    scripted,
)
from worker.registry import Anonymous, Descriptor, RegistryClient, RegistryReader
from worker.registry.copying import copy_image
from worker.registry.rehearsal import Rehearsal
from worker.retention.untagging import take_away


@pytest.fixture(scope="module")
def registry(registry_of_kind: RegistryServer) -> RegistryServer:
    return registry_of_kind


@pytest.fixture
async def client(registry: RegistryServer) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(Anonymous(), insecure=frozenset({registry.host})) as client:
        yield client


def image(registry: RegistryServer, repository: str, tag: str | None = None, raw: bytes | None = None) -> ImageReference:
    return ImageReference(registry.host, repository, tag, digest_of(raw) if raw else None)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_images_are_read(registry: RegistryServer, client: RegistryClient, media_type: str) -> None:
    raw = registry.push_image("read/app", media_type.split(".")[1], media_type=media_type)
    named = image(registry, "read/app", media_type.split(".")[1])
    found = await client.resolve(named)
    assert found is not None
    assert (found.digest, found.media_type) == (digest_of(raw), media_type)
    assert (await client.manifest(named)).raw == raw
    assert await client.resolve(image(registry, "read/app", "none")) is None
    [layer] = (await client.manifest(named)).layers
    assert await client.blob_size(named, layer.digest) == layer.size == 5
    assert await client.blob_size(named, digest_of(b"never pushed")) is None
    async with client.blob(named, layer) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"layer"
    with pytest.raises(RegistryConfused, match="something else"):
        async with client.blob(named, Descriptor(media_type="", digest=layer.digest, size=4)) as pieces:
            _ = [piece async for piece in pieces]


async def test_lists_are_followed_to_their_end(
    registry: RegistryServer, client: RegistryClient, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.registry.reader._PAGE", 10)
    raw = registry.push_image("many/app", "0")
    for number in range(1, 35):
        await client.put_manifest(image(registry, "many/app", str(number)), raw, OCI_MANIFEST)
    with registry.http() as http:
        assert ("link" in http.get("many/app/tags/list?n=10").headers) is kind.pages_tags
    assert sorted([int(tag) async for tag in client.tags(registry.host, "many/app")]) == list(range(35))
    with pytest.raises(ManifestUnknown):
        _ = [tag async for tag in client.tags(registry.host, "many/none")]


async def test_asking_for_uploads_makes_no_repository(registry: RegistryServer, client: RegistryClient, kind: Kind) -> None:
    if kind.program == "zot":
        pytest.skip("zot is not collected: nobody asks it")
    assert await client.refuses_uploads(image(registry, "crabpot/probe")) is False
    assert "crabpot/probe" not in [name async for name in client.catalog(registry.host)]
    assert [name async for name in client.catalog(registry.host, page=1)] == [name async for name in client.catalog(registry.host)]


async def test_the_catalog(registry: RegistryServer, client: RegistryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.registry.reader._PAGE", 2)
    names = {f"listed/app{number}" for number in range(5)}
    for name in names:
        registry.push_image(name, "1")
    assert names <= {name async for name in client.catalog(registry.host)}


async def test_referrers_by_the_api_or_by_the_tag(registry: RegistryServer, client: RegistryClient, kind: Kind) -> None:
    raw = registry.push_image("signed/app", "1", labels={"of": "signed"})
    assert await client.referrers(image(registry, "signed/app", raw=raw)) == ()
    signature = registry.push_referrer("signed/app", raw)
    if not kind.referrers:
        about = {"mediaType": OCI_MANIFEST, "digest": digest_of(signature), "size": len(signature), "artifactType": "application/vnd.test"}
        tag = digest_of(raw).replace(":", "-")
        registry.push_manifest("signed/app", tag, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [about]})
    [found] = await client.referrers(image(registry, "signed/app", raw=raw))
    assert (found.digest, found.artifact_type) == (digest_of(signature), "application/vnd.test")
    assert (await client.manifest(image(registry, "signed/app", raw=signature))).subject == digest_of(raw)


async def test_a_digest_goes_with_all_its_tags(registry: RegistryServer, client: RegistryClient) -> None:
    raw = registry.push_image("gone/app", "1")
    await client.put_manifest(image(registry, "gone/app", "2"), raw, OCI_MANIFEST)
    registry.push_image("gone/app", "stays", layers=(b"other",))
    assert await client.delete(image(registry, "gone/app", raw=raw))
    assert await client.resolve(image(registry, "gone/app", "1")) is None
    assert await client.resolve(image(registry, "gone/app", "2")) is None
    assert not await client.delete(image(registry, "gone/app", raw=raw))
    assert [tag async for tag in client.tags(registry.host, "gone/app")] == ["stays"]
    with pytest.raises(ValueError, match="names no digest"):
        await client.delete(image(registry, "gone/app", "stays"))


async def test_a_tag_alone_where_that_is_possible(registry: RegistryServer, client: RegistryClient, kind: Kind) -> None:
    raw = registry.push_image("untag/app", "1")
    await client.put_manifest(image(registry, "untag/app", "2"), raw, OCI_MANIFEST)
    if not kind.untags:
        with pytest.raises(RegistryUnsupported, match="cannot take a tag away alone"):
            await client.untag(image(registry, "untag/app", "1"))
        assert await client.resolve(image(registry, "untag/app", "1")) is not None
        return
    assert await client.untag(image(registry, "untag/app", "1"))
    assert await client.resolve(image(registry, "untag/app", "1")) is None
    assert not await client.untag(image(registry, "untag/app", "1"))
    for name in (image(registry, "untag/app", "2"), image(registry, "untag/app", raw=raw)):
        found = await client.resolve(name)
        assert found is not None
        assert found.digest == digest_of(raw)
    assert await client.untag(image(registry, "untag/app", "2"))  # its last tag
    assert await client.resolve(image(registry, "untag/app", raw=raw)) is not None
    with pytest.raises(ValueError, match="names no tag alone"):
        await client.untag(image(registry, "untag/app", raw=raw))


async def test_a_tag_whose_manifest_is_gone(registry: RegistryServer, client: RegistryClient, kind: Kind) -> None:
    raw = registry.push_image("broken/app", "1")
    registry.push_image("broken/app", "2", layers=(b"other",))
    registry.lose_manifest("broken/app", raw)
    broken = image(registry, "broken/app", "1")
    assert await client.resolve(broken) is None
    assert await client.lists_tag(broken)
    async with Rehearsal(Anonymous(), insecure=frozenset({registry.host})) as rehearsal:
        assert await rehearsal.untag(broken)
        assert not await rehearsal.untag(broken)
    if kind.untags_broken:
        assert await client.untag(broken)
        assert not await client.untag(broken)
    else:
        with pytest.raises(RegistryUnsupported, match=r"is gone, and .* takes no such tag away; push any image to it, and remove that"):
            await client.untag(broken)
        mended = registry.push_image("broken/app", "1", layers=(b"any",))  # what the message says
        assert await client.delete(image(registry, "broken/app", raw=mended))
    assert [tag async for tag in client.tags(registry.host, "broken/app")] == ["2"]


async def test_a_blob_is_mounted_from_another_repository(registry: RegistryServer, client: RegistryClient) -> None:
    raw = registry.push_image("mount/from", "1", layers=(b"to be mounted",))
    blob = Descriptor(media_type="", digest=digest_of(b"to be mounted"), size=13)
    target = image(registry, "mount/to", "1")
    assert await client.mount(target, blob, "mount/from")
    assert await client.blob_size(target, blob.digest) == 13
    absent = Descriptor(media_type="", digest=digest_of(b"never pushed"), size=12)
    assert not await client.mount(target, absent, "mount/from")
    assert json.loads(raw)["layers"][0]["digest"] == blob.digest


@pytest.mark.parametrize(("index", "child"), [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)])
async def test_an_image_of_two_platforms_is_copied_to_another_repository(
    registry: RegistryServer, client: RegistryClient, index: str, child: str
) -> None:
    repository = f"copy/{index.split('.')[1]}"
    children = {
        f"linux/{name}": registry.push_image(repository, None, layers=(name.encode() * 100_000, b"shared"), media_type=child)
        for name in ("amd64", "arm64")
    }
    raw = registry.push_index(repository, "1", children, media_type=index)
    target = image(registry, f"{repository}-copy", "kept")
    assert await copy_image(client, image(registry, repository, "1"), client, target) == digest_of(raw)
    assert (await client.manifest(target)).raw == raw
    assert await client.image_size(target) == await client.image_size(image(registry, repository, "1"))
    assert await copy_image(client, image(registry, repository, raw=raw), client, target) == digest_of(raw)


async def test_an_image_is_copied_to_another_registry(registry: RegistryServer, tmp_path: Path) -> None:
    with run_registry(tmp_path) as other:
        raw = registry.push_image("far/app", "1", layers=(b"x" * 300_000, b"small"))
        async with RegistryClient(Anonymous(), insecure=frozenset({registry.host, other.host})) as client:
            target = image(other, "moved/app", "1")
            assert await copy_image(client, image(registry, "far/app", "1"), client, target) == digest_of(raw)
            found = await client.manifest(target)
            assert found.raw == raw
            async with client.blob(target, found.layers[0]) as pieces:
                assert b"".join([piece async for piece in pieces]) == b"x" * 300_000
            with pytest.raises(ManifestUnknown):
                await copy_image(client, image(registry, "far/app", "none"), client, target)


async def test_a_reader_sends_nothing_but_questions(registry: RegistryServer) -> None:
    raw = registry.push_image("held/app", "1")
    async with RegistryReader(Anonymous(), insecure=frozenset({registry.host})) as reader:
        assert await reader.resolve(image(registry, "held/app", "1")) is not None
        for call in (
            RegistryClient.delete(reader, image(registry, "held/app", raw=raw)),  # type: ignore[arg-type]
            reader._authorizer.send("DELETE", registry.host, f"/v2/held/app/manifests/{digest_of(raw)}"),
            reader._authorizer.send("PUT", registry.host, "/v2/held/app/manifests/2", content=raw),
        ):
            with pytest.raises((ReadOnly, AttributeError)):
                await call
        assert await reader.resolve(image(registry, "held/app", raw=raw)) is not None


async def test_a_rehearsal_answers_as_if_and_changes_nothing(registry: RegistryServer, client: RegistryClient) -> None:
    raw = registry.push_image("play/app", "1")
    other = registry.push_image("play/app", "2", layers=(b"2",))
    async with Rehearsal(Anonymous(), insecure=frozenset({registry.host})) as rehearsal:
        one, two = image(registry, "play/app", "1"), image(registry, "play/app", "2")
        assert await rehearsal.delete(one.with_digest(digest_of(raw)))
        assert await rehearsal.resolve(one) is None
        with pytest.raises(ManifestUnknown):
            await rehearsal.manifest(one)
        assert not await rehearsal.delete(one.with_digest(digest_of(raw)))
        assert await rehearsal.untag(two)
        assert await rehearsal.resolve(two) is None
        assert await rehearsal.resolve(two.with_digest(digest_of(other))) is not None
        await rehearsal.put_manifest(one, raw, OCI_MANIFEST)
        assert (await rehearsal.manifest(one)).raw == raw
        assert await rehearsal.resolve(one.with_digest(digest_of(raw))) is not None
        assert [word.split()[0] for word in rehearsal.would] == ["delete", "delete", "untag", "put"]
    for name in (one, two):
        assert await client.resolve(name) is not None


@pytest.mark.parametrize("program", ["distribution-2.8", "distribution-3"])
async def test_a_registry_that_deletes_nothing_or_not_now_says_so(program: str, tmp_path: Path) -> None:
    binary = KINDS[program].binary
    if binary is None:
        pytest.skip(f"there is no {KINDS[program].program}")
    with run_registry(tmp_path, program=binary) as server:
        raw = server.push_image("team/app", "1")
    for settings, error, says in (
        ({"deletes": False}, RegistryUnsupported, "UNSUPPORTED"),
        ({"readonly": True}, RegistryUnavailable, "read-only"),
    ):
        with run_registry(tmp_path, program=binary, **settings) as server:
            async with RegistryClient(Anonymous(), insecure=frozenset({server.host})) as client:
                for call in (client.delete(image(server, "team/app", raw=raw)), client.untag(image(server, "team/app", "1"))):
                    with pytest.raises(error, match=says):
                        await call
                assert await client.resolve(image(server, "team/app", "1")) is not None


async def test_a_tag_stays_on_its_image_where_nothing_can_be_deleted(tmp_path: Path) -> None:
    """GHCR and Docker Hub refuse every deletion: there the tag must not be put on a tombstone that nobody can bury."""

    async def hold() -> None:
        pass

    with run_registry(tmp_path, deletes=False) as server:
        raw = server.push_image("team/app", "1")
        async with RegistryClient(Anonymous(), insecure=frozenset({server.host})) as client:
            with pytest.raises(RegistryUnsupported):
                await take_away(client, image(server, "team/app", "1"), digest_of(raw), "plan", hold)
            found = await client.resolve(image(server, "team/app", "1"))
            assert found is not None
            assert found.digest == digest_of(raw)


async def test_a_registry_that_collects_its_own_garbage_is_known(registry: RegistryServer, client: RegistryClient, kind: Kind) -> None:
    assert await client.collector(registry.host) == ("zot" if kind.program == "zot" else None)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/api/v2.0/ping", b"Pong", "Harbor"),
        ("/api/v2.0/ping", b'"Pong"', "Harbor"),
        ("/v2/_zot/ext/mgmt", b'{"distSpecVersion": "1.1.1", "http": {"auth": {}}}', "zot"),
        ("/api/v2.0/ping", b"<html>welcome</html>", None),
        ("/v2/_zot/ext/mgmt", b"<html>welcome</html>", None),
    ],
)
async def test_signs_of_a_registry_that_collects_its_own_garbage(path: str, body: bytes, expected: str | None) -> None:
    def behave(request: Request) -> Reply:
        if request.path == path:
            return Reply(200, body=body)
        return Reply() if request.path in ("/v2/", "/v2/_catalog") else Reply(404)

    async with scripted(behave) as server, RegistryReader(Anonymous(), insecure=frozenset({server.host})) as reader:
        assert await reader.collector(server.host) == expected
