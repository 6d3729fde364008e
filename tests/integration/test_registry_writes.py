"""What is sent twice and what is not, and what becomes of a write whose answer is unclear, late or a lie. Against servers of our own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ledger.errors import (
    DeletesByDigest,
    ManifestUnknown,
    RateLimited,
    RegistryConfused,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUnsupported,
)
from ledger.references import ImageReference
from tests.integration.registry_server import OCI_MANIFEST, Behaviour, Reply, Request, ScriptedServer, digest_of, scripted
from worker.registry import IMPATIENT, Anonymous, Budgets, Descriptor, Patience, RegistryClient
from worker.registry.copying import copy_image

RAW = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
HONEST = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": digest_of(RAW)}
SPEAKS = {"Docker-Distribution-Api-Version": "registry/2.0"}
HARBOR = {"Content-Type": "application/json; charset=utf-8"}
IMMUTABLE = b'{"errors": [{"code": "PRECONDITION", "message": "Failed to process request due to \'1\' configured as immutable."}]}'
QUICK = Patience(tries=4, longest=0.01)


@asynccontextmanager
async def registry(behave: Behaviour, patience: Patience = QUICK) -> AsyncIterator[tuple[ScriptedServer, RegistryClient, ImageReference]]:
    """Open to all; the ping is answered."""
    async with (
        scripted(lambda request: Reply() if request.path == "/v2/" else behave(request)) as server,
        RegistryClient(Anonymous(), insecure=frozenset({server.host}), patience=patience) as client,
    ):
        yield server, client, ImageReference(server.host, "team/app", "1")


def methods(server: ScriptedServer) -> list[str]:
    return [method for method, path in server.asked() if path != "/v2/"]


@pytest.mark.parametrize("trouble", [Reply(503), Reply(429, {"Retry-After": "0"}), Reply(500), Reply(502), None])
async def test_reading_is_repeated_as_long_as_the_patience_lasts(trouble: Reply | None) -> None:
    left = 2

    def behave(request: Request) -> Reply | None:
        nonlocal left
        left -= 1
        return trouble if left >= 0 else Reply(200, HONEST, RAW)

    async with registry(behave) as (_, client, image):
        assert (await client.manifest(image)).raw == RAW
        left = 1000
        with pytest.raises((RegistryUnavailable, RateLimited)):
            await client.manifest(image)
        assert left >= 1000 - 8  # a dropped connection is tried anew at once, too
        left = 2
        assert await client.resolve(image) is not None


async def test_who_has_no_patience_asks_once() -> None:
    async with registry(lambda request: Reply(503), IMPATIENT) as (server, client, image):
        with pytest.raises(RegistryUnavailable):
            await client.manifest(image)
        assert methods(server) == ["GET"]


async def test_a_wait_longer_than_the_patience_is_the_callers() -> None:
    async with registry(lambda request: Reply(503, {"Retry-After": "300"})) as (server, client, image):
        with pytest.raises(RegistryUnavailable) as caught:
            await client.manifest(image)
        assert caught.value.retry_after == 300
        with pytest.raises(RateLimited):
            await client.manifest(image)
        assert methods(server) == ["GET"]


async def test_clients_with_one_budget_wait_together() -> None:
    budgets = Budgets()
    async with scripted(lambda request: Reply() if request.path == "/v2/" else Reply(429, {"Retry-After": "60"})) as server:
        name, open_to = ImageReference(server.host, "team/app", "1"), frozenset({server.host})
        async with (
            RegistryClient(Anonymous(), insecure=open_to, budgets=budgets) as one,
            RegistryClient(Anonymous(), insecure=open_to, budgets=budgets) as two,
        ):
            await one.ping(server.host)
            with pytest.raises(RateLimited):
                await one.manifest(name)
            with pytest.raises(RateLimited):
                await two.manifest(name)
        assert methods(server) == ["GET"]


async def test_a_manifest_is_put_again() -> None:
    left = 2

    def behave(request: Request) -> Reply | None:
        nonlocal left
        left -= 1
        return Reply(503) if left >= 0 else Reply(201, HONEST)

    async with registry(behave) as (server, client, image):
        assert await client.put_manifest(image, RAW, OCI_MANIFEST) == digest_of(RAW)
        assert methods(server) == ["PUT", "PUT", "PUT"]
        assert {request.body for request in server.requests[1:]} == {RAW}


@pytest.mark.parametrize("trouble", [Reply(504), None])
async def test_a_delete_without_a_clear_answer_is_sent_once_and_looked_after(trouble: Reply | None) -> None:
    gone = True

    def behave(request: Request) -> Reply | None:
        if request.method == "DELETE":
            return trouble
        return Reply(404, SPEAKS) if gone else Reply(200, HONEST | {"Content-Length": str(len(RAW))}, RAW)

    async with registry(behave) as (server, client, image):
        assert await client.delete(image.with_digest(digest_of(RAW)))
        assert methods(server) == ["DELETE", "HEAD"]
        gone = False
        with pytest.raises(RegistryUnavailable):
            await client.delete(image.with_digest(digest_of(RAW)))
        assert methods(server) == ["DELETE", "HEAD"] * 2


async def test_a_delete_refused_for_its_rate_is_left_to_the_caller() -> None:
    """Who waits must look at the tags again before the next try."""
    async with registry(lambda request: Reply(429, {"Retry-After": "0"})) as (server, client, image):
        with pytest.raises(RateLimited):
            await client.delete(image.with_digest(digest_of(RAW)))
        assert methods(server) == ["DELETE"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(400, SPEAKS, b'{"errors": [{"code": "DIGEST_INVALID", "message": "m"}]}'), DeletesByDigest),
        (Reply(400, SPEAKS), DeletesByDigest),
        (Reply(400, HARBOR, b'{"errors": [{"code": "UNSUPPORTED", "message": "the operation isn\'t supported"}]}'), DeletesByDigest),
        (Reply(412, HARBOR, IMMUTABLE), RegistryDenied),
        (Reply(405, SPEAKS, b'{"errors": [{"code": "UNSUPPORTED", "message": "m"}]}'), RegistryUnsupported),
        (Reply(405, {"Content-Type": "text/plain"}), RegistryUnavailable),
        (Reply(403), RegistryDenied),
        (Reply(400, SPEAKS, b'{"errors": [{"code": "SOMETHING", "message": "m"}]}'), RegistryConfused),
    ],
)
async def test_a_tag_that_cannot_be_taken_away_alone(reply: Reply, error: type[Exception]) -> None:
    async with registry(lambda request: reply if request.method == "DELETE" else Reply(200, HONEST, RAW)) as (_, client, image):
        with pytest.raises(error) as caught:
            await client.untag(image)
        assert type(caught.value) is error


async def test_harbor_keeps_an_immutable_tag_and_that_is_said() -> None:
    async with registry(lambda request: Reply(412, HARBOR, IMMUTABLE) if request.method == "PUT" else Reply(200, HONEST, RAW)) as (
        _,
        client,
        image,
    ):
        with pytest.raises(RegistryDenied, match=r"configured as immutable.*a rule there keeps it as it is"):
            await client.put_manifest(image, RAW, OCI_MANIFEST)


async def test_a_registry_that_deletes_the_manifest_with_its_tag_gets_it_back() -> None:
    there = True

    def behave(request: Request) -> Reply:
        nonlocal there
        if request.method in ("DELETE", "PUT"):
            there = request.method == "PUT"
            return Reply(202 if request.method == "DELETE" else 201, HONEST)
        return Reply(200, HONEST, RAW) if there else Reply(404, SPEAKS)

    async with registry(behave) as (server, client, image):
        with pytest.raises(RegistryConfused, match="was put back"):
            await client.untag(image)
        assert there
        assert server.asked()[-1] == ("PUT", f"/v2/team/app/manifests/{digest_of(RAW)}")


async def test_a_listed_name_that_would_lead_elsewhere_is_refused() -> None:
    async with registry(lambda request: Reply(body=b'{"tags": ["1", "../../other/manifests/1"], "repositories": ["a", "../b"]}')) as (
        _,
        client,
        image,
    ):
        with pytest.raises(RegistryConfused, match="a name that is none"):
            _ = [tag async for tag in client.tags(image.registry, image.repository)]
        with pytest.raises(RegistryConfused, match="a name that is none"):
            _ = [name async for name in client.catalog(image.registry)]


async def test_a_registry_without_a_catalog() -> None:
    async with registry(lambda request: Reply(405, SPEAKS, b'{"errors": [{"code": "UNSUPPORTED"}]}')) as (_, client, image):
        with pytest.raises(RegistryUnsupported):
            _ = [name async for name in client.catalog(image.registry)]


@pytest.mark.parametrize(
    ("location", "sent", "error"),
    [
        ("http://elsewhere.test/v2/team/app/blobs/uploads/1", [b"blob"], "another host"),
        ("/v2/team/app/blobs/uploads/1", [b"bl"], "a blob of 4 bytes"),
        ("/v2/team/app/blobs/uploads/1", [b"blob", b"s"], "a blob of 4 bytes"),
    ],
)
async def test_an_upload_that_goes_wrong(location: str, sent: list[bytes], error: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in sent:
            yield piece

    async with registry(lambda request: Reply(202, {"Location": location})) as (_, client, image):
        with pytest.raises(RegistryConfused, match=error):
            await client.push_blob(image, Descriptor(media_type="", digest=digest_of(b"blob"), size=4), pieces())


async def test_a_blob_is_put_where_the_registry_says_with_its_digest() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"bl"
        yield b"ob"

    def behave(request: Request) -> Reply:
        return Reply(202, {"Location": "/v2/team/app/blobs/uploads/1?_state=x"}) if request.method == "POST" else Reply(201)

    async with registry(behave) as (server, client, image):
        await client.push_blob(image, Descriptor(media_type="", digest=digest_of(b"blob"), size=4), pieces())
        put = server.requests[-1]
        assert (put.method, put.body, put.query) == ("PUT", b"blob", {"_state": ["x"], "digest": [digest_of(b"blob")]})
        assert "transfer-encoding" not in put.headers


async def test_a_blob_that_was_taken_after_all_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that takes long to commit: a proxy gives up waiting, and the blob is there."""
    monkeypatch.setattr("worker.registry.copying.PATIENT", QUICK)
    blob, there = b"blob", False
    layer = {"mediaType": "m", "digest": digest_of(blob), "size": len(blob)}
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]}).encode()

    def behave(request: Request) -> Reply:
        nonlocal there
        if "/manifests/" in request.path:
            return Reply(201 if request.method == "PUT" else 200, {"Content-Type": OCI_MANIFEST}, raw)
        if request.method == "POST":
            return Reply(202, {"Location": "/v2/team/copy/blobs/uploads/1"})
        if request.method == "PUT":
            there = True
            return Reply(504)
        if "/copy/" in request.path and not there:
            return Reply(404, SPEAKS)
        return Reply(200, {}, blob)

    async with registry(behave) as (server, client, image):
        await copy_image(client, image, client, ImageReference(image.registry, "team/copy", "1"))
        assert server.asked().count(("PUT", "/v2/team/copy/blobs/uploads/1")) == 1


async def test_a_blob_that_ends_early_is_found_out() -> None:
    blob = Descriptor(media_type="", digest=digest_of(b"blob"), size=4)
    async with registry(lambda request: Reply(200, {}, b"blo")) as (_, client, image):
        with pytest.raises(RegistryConfused, match="something else"):
            async with client.blob(image, blob) as pieces:
                _ = [piece async for piece in pieces]
    async with registry(lambda request: Reply(404, SPEAKS)) as (_, client, image):
        with pytest.raises(ManifestUnknown):
            async with client.blob(image, blob):
                raise AssertionError("there is nothing to read")
        assert await client.blob_size(image, blob.digest) is None


@pytest.mark.parametrize(
    "subject", [{"digest": "sha256:../x", "size": 1, "mediaType": "m"}, [], "x", {"digest": digest_of(b""), "size": "1"}, 0]
)
async def test_a_broken_subject_makes_a_broken_manifest(subject: Any) -> None:
    raw = json.dumps({"mediaType": OCI_MANIFEST, "subject": subject}).encode()
    async with registry(lambda request: Reply(200, {"Content-Type": OCI_MANIFEST}, raw)) as (_, client, image):
        with pytest.raises(RegistryConfused):
            await client.manifest(image)
