"""The client against Debian's docker-registry: open, with htpasswd, over TLS, and read-only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ledger.errors import ManifestUnknown, RegistryConfused, RegistryDenied, RegistryUnavailable, SettingsInvalid
from ledger.references import ImageReference
from tests.integration.registry_server import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Certificate,
    RegistryServer,
    digest_of,
    run_registry,
)
from worker.registry import Anonymous, DockerConfig, RegistryClient


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with run_registry(tmp_path_factory.mktemp("closed"), htpasswd=True) as server:
        server.push_image("team/app", "1")
        yield server


@pytest.fixture
async def client(registry: RegistryServer) -> AsyncIterator[RegistryClient]:
    client = RegistryClient(Anonymous(), insecure=frozenset({registry.host}))
    yield client
    await client.aclose()


def image(registry: RegistryServer, repository: str, tag: str | None = None, digest: str | None = None) -> ImageReference:
    return ImageReference(registry.host, repository, tag, digest)


def login(registry: RegistryServer, password: str = PASSWORD) -> DockerConfig:
    return DockerConfig(auths={registry.host: {"username": USER, "password": password}})


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_resolve_and_manifest_by_tag_and_digest(registry: RegistryServer, client: RegistryClient, media_type: str) -> None:
    raw = registry.push_image("resolve/app", "1", media_type=media_type)
    for reference in (image(registry, "resolve/app", "1"), image(registry, "resolve/app", digest=digest_of(raw))):
        found = await client.resolve(reference)
        assert found is not None
        assert (found.digest, found.media_type, found.size) == (digest_of(raw), media_type, len(raw))
        manifest = await client.manifest(reference)
        assert (manifest.raw, manifest.descriptor) == (raw, found)


@pytest.mark.parametrize(("index", "child"), [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)])
async def test_an_index_is_resolved_to_itself_and_not_to_its_amd64_child(
    registry: RegistryServer, client: RegistryClient, index: str, child: str
) -> None:
    amd = registry.push_image("index/app", "amd", layers=(b"amd",), labels={"of": "amd"}, media_type=child)
    arm = registry.push_image("index/app", "arm", layers=(b"arm", b"more"), labels={"of": "arm"}, media_type=child)
    raw = registry.push_index("index/app", "both", {"unknown/unknown": arm, "linux/amd64": amd, "linux/arm64/v8": arm}, media_type=index)
    both = image(registry, "index/app", "both")
    found = await client.resolve(both)
    assert found is not None
    assert (found.digest, found.media_type) == (digest_of(raw), index)
    assert (await client.config(both))["config"]["Labels"] == {"of": "amd"}
    assert (await client.config(both, platform="linux/arm64/v8"))["config"]["Labels"] == {"of": "arm"}
    with pytest.raises(ManifestUnknown, match="linux/s390x"):
        await client.config(both, platform="linux/s390x")
    sizes = [json.loads(one)["config"]["size"] + sum(layer["size"] for layer in json.loads(one)["layers"]) for one in (arm, amd, arm)]
    assert await client.image_size(both) == sum(sizes)


async def test_an_absent_tag_repository_and_digest_are_a_definite_none(registry: RegistryServer, client: RegistryClient) -> None:
    registry.push_image("absent/app", "1")
    for reference in (
        image(registry, "absent/app", "2"),
        image(registry, "absent/none", "1"),
        image(registry, "absent/app", digest="sha256:" + "0" * 64),
    ):
        assert await client.resolve(reference) is None
        with pytest.raises(ManifestUnknown):
            await client.manifest(reference)


async def test_config_and_size(registry: RegistryServer, client: RegistryClient) -> None:
    raw = registry.push_image("config/app", "1", layers=(b"x" * 1000, b"y" * 50), labels={"dev.crabpot.attempt": "b.1"})
    reference = image(registry, "config/app", digest=digest_of(raw))
    assert (await client.config(reference))["config"]["Labels"] == {"dev.crabpot.attempt": "b.1"}
    assert await client.image_size(reference) == 1050 + json.loads(raw)["config"]["size"]


async def test_a_tag_is_set_by_putting_the_same_manifest(registry: RegistryServer, client: RegistryClient) -> None:
    raw = registry.push_image("tagging/app", "1")
    assert await client.put_manifest(image(registry, "tagging/app", "latest"), raw, OCI_MANIFEST) == digest_of(raw)
    found = await client.resolve(image(registry, "tagging/app", "latest"))
    assert found is not None
    assert found.digest == digest_of(raw)


async def test_a_manifest_whose_blobs_are_elsewhere_is_refused(registry: RegistryServer, client: RegistryClient) -> None:
    raw = registry.push_image("blobs/here", "1", layers=(b"only here",))
    with pytest.raises(ManifestUnknown, match="MANIFEST_BLOB_UNKNOWN"):
        await client.put_manifest(image(registry, "blobs/there", "1"), raw, OCI_MANIFEST)
    with pytest.raises(ValueError, match="not the name of these bytes"):
        await client.put_manifest(image(registry, "blobs/here", digest="sha256:" + "0" * 64), raw, OCI_MANIFEST)


async def test_tags(registry: RegistryServer, client: RegistryClient) -> None:
    for tag in ("b", "a", "latest"):
        registry.push_image("tags/app", tag)
    assert sorted([tag async for tag in client.tags(registry.host, "tags/app")]) == ["a", "b", "latest"]
    with pytest.raises(ManifestUnknown):
        _ = [tag async for tag in client.tags(registry.host, "tags/none")]


async def test_asking_whether_a_push_is_allowed_leaves_nothing(tmp_path: Path) -> None:
    with run_registry(tmp_path / "fresh") as fresh:
        asking = RegistryClient(Anonymous(), insecure=frozenset({fresh.host}))
        await asking.can_push(fresh.host, "team/app")
        await asking.aclose()
        assert fresh.catalog() == []
        left = {path.name for path in (tmp_path / "fresh" / "data").rglob("*") if path.is_file()}
        assert not left & {"data", "startedat"}  # 2.8 itself leaves a hash state of the cancelled upload


async def test_a_registry_in_maintenance_is_asked_again_later(tmp_path: Path) -> None:
    with run_registry(tmp_path) as server:
        raw = server.push_image("team/app", "1")
    with run_registry(tmp_path, readonly=True) as server:
        client = RegistryClient(Anonymous(), insecure=frozenset({server.host}))
        assert await client.resolve(image(server, "team/app", "1")) is not None
        for refused in (client.can_push(server.host, "team/app"), client.put_manifest(image(server, "team/app", "2"), raw, OCI_MANIFEST)):
            with pytest.raises(RegistryUnavailable, match="read-only"):
                await refused
        await client.aclose()


async def test_basic_auth(closed: RegistryServer) -> None:
    client = RegistryClient(login(closed), insecure=frozenset({closed.host}))
    await client.ping(closed.host)
    assert await client.resolve(image(closed, "team/app", "1")) is not None
    assert await client.resolve(image(closed, "team/app", "2")) is None
    await client.can_push(closed.host, "team/app")
    await client.aclose()


@pytest.mark.parametrize(("password", "says"), [("wrong", "refuses the configured user and password"), (None, "none is configured")])
async def test_basic_auth_refused(closed: RegistryServer, password: str | None, says: str) -> None:
    client = RegistryClient(login(closed, password) if password else Anonymous(), insecure=frozenset({closed.host}))
    await client.ping(closed.host)
    for asked in (client.resolve(image(closed, "team/app", "1")), client.can_push(closed.host, "team/app")):
        with pytest.raises(RegistryDenied, match=says) as caught:
            await asked
        assert "wrong" not in str(caught.value)
    await client.aclose()


async def test_https_with_a_ca_of_its_own(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    with run_registry(tmp_path / "tls", tls=certificate) as server:
        trusting = RegistryClient(Anonymous(), certificates={server.host: str(certificate.path)})
        await trusting.ping(server.host)
        assert await trusting.resolve(image(server, "team/app", "1")) is None
        await trusting.aclose()
        strange = RegistryClient(Anonymous())
        with pytest.raises(RegistryUnavailable, match="name its CA certificate"):
            await strange.ping(server.host)
        await strange.aclose()
        plain = RegistryClient(Anonymous(), insecure=frozenset({server.host}))
        with pytest.raises(RegistryConfused):
            await plain.ping(server.host)
        await plain.aclose()


async def test_https_is_the_default(registry: RegistryServer) -> None:
    client = RegistryClient(Anonymous())
    with pytest.raises(RegistryUnavailable, match="set `insecure`"):
        await client.ping(registry.host)
    await client.aclose()


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for path in (tmp_path / "none.pem", tmp_path / "junk.pem"):
        with pytest.raises(SettingsInvalid, match=r"registries\.registry\.test\.certificate"):
            RegistryClient(Anonymous(), certificates={"registry.test": str(path)})


async def test_a_registry_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    with run_registry(tmp_path) as server:
        client = RegistryClient(Anonymous(), insecure=frozenset({server.host}))
        await client.ping(server.host)
    with pytest.raises(RegistryUnavailable):
        await client.resolve(image(server, "team/app", "1"))
    await client.aclose()
