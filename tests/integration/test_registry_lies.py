"""What the client makes of registries that are wrong, overloaded, or not registries at all."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import ManifestUnknown, RateLimited, RegistryConfused, RegistryDenied, RegistryUnavailable
from ledger.references import ImageReference
from tests.integration.registry_server import (
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Behaviour,
    Certificate,
    Reply,
    Request,
    ScriptedServer,
    digest_of,
    scripted,
)
from worker.registry import DockerConfig, RegistryClient, Timeouts

CONFIG = b'{"config": {}}'
BODY: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(CONFIG), "size": len(CONFIG)},
    "layers": [],
}
RAW = json.dumps(BODY).encode()
HONEST = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": digest_of(RAW)}
SPEAKS = {"Docker-Distribution-Api-Version": "registry/2.0"}


@asynccontextmanager
async def lying(behave: Behaviour) -> AsyncIterator[tuple[ScriptedServer, RegistryClient, ImageReference]]:
    """A registry that asks for Basic and then behaves as told."""

    def guarded(request: Request) -> Reply | None:
        if "authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": "Basic realm=x"})
        return behave(request)

    async with scripted(guarded) as server:
        credentials = DockerConfig(auths={server.host: {"username": USER, "password": PASSWORD}})
        client = RegistryClient(credentials, insecure=frozenset({server.host}))
        try:
            yield server, client, ImageReference(server.host, "team/app", "1")
        finally:
            await client.aclose()


async def test_a_wrong_digest_is_not_believed() -> None:
    wrong = "sha256:" + "0" * 64
    async with lying(lambda request: Reply(200, HONEST | {"Docker-Content-Digest": wrong}, RAW)) as (_, client, image):
        with pytest.raises(RegistryConfused, match=wrong):
            await client.manifest(image)
        with pytest.raises(RegistryConfused, match="was asked for"):
            await client.resolve(image.with_digest(digest_of(RAW)))
        with pytest.raises(RegistryConfused, match=wrong):
            await client.put_manifest(image, RAW, OCI_MANIFEST)
    async with lying(lambda request: Reply(200, HONEST, RAW)) as (_, client, image):
        with pytest.raises(RegistryConfused, match="was asked for"):
            await client.manifest(image.with_digest(wrong))
        assert (await client.manifest(image)).digest == digest_of(RAW)


async def test_a_config_that_is_not_the_one_named_is_refused() -> None:
    def behave(request: Request) -> Reply:
        return Reply(200, HONEST, RAW) if "manifests" in request.path else Reply(200, {}, b'{"config": {"Labels": {"forged": "yes"}}}')

    async with lying(behave) as (_, client, image):
        with pytest.raises(RegistryConfused):
            await client.config(image)


@pytest.mark.parametrize(
    "headers", [{"Content-Type": OCI_MANIFEST}, HONEST | {"Docker-Content-Digest": "sha512:00"}, {"Docker-Content-Digest": digest_of(RAW)}]
)
async def test_what_a_head_does_not_say_is_computed_from_the_bytes(headers: dict[str, str]) -> None:
    async with lying(lambda request: Reply(200, headers, RAW)) as (server, client, image):
        found = await client.resolve(image)
        assert found is not None
        assert (found.digest, found.media_type, found.size) == (digest_of(RAW), OCI_MANIFEST, len(RAW))
        assert server.asked()[-2:] == [("HEAD", "/v2/team/app/manifests/1"), ("GET", "/v2/team/app/manifests/1")]


async def test_a_registry_without_head_is_asked_by_get() -> None:
    async with lying(lambda request: Reply(405) if request.method == "HEAD" else Reply(200, HONEST, RAW)) as (_, client, image):
        assert await client.resolve(image) is not None


async def test_all_four_types_are_accepted() -> None:
    async with lying(lambda request: Reply(200, HONEST, RAW)) as (server, client, image):
        await client.resolve(image)
        assert {text.strip() for text in server.requests[-1].headers["accept"].split(",")} == {
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
        }


async def test_429_says_how_long_to_wait() -> None:
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'
    for ask in (
        lambda client, image: client.resolve(image),
        lambda client, image: client.manifest(image),
        lambda client, image: client.put_manifest(image, RAW, OCI_MANIFEST),
    ):
        async with lying(lambda request: Reply(429, {"Retry-After": "17"}, body)) as (server, client, image):
            with pytest.raises(RateLimited, match="answered 429") as caught:
                await ask(client, image)
            assert caught.value.retry_after == 17
            asked = len(server.requests)
            with pytest.raises(RateLimited, match="left alone") as caught:
                await client.manifest(image)
            assert caught.value.retry_after == 17
            assert len(server.requests) == asked


async def test_a_proxys_502_is_unavailable_and_its_html_is_not_repeated() -> None:
    async with lying(lambda request: Reply(502, {"Content-Type": "text/html"}, b"<html>" + b"x" * 200_000)) as (_, client, image):
        with pytest.raises(RegistryUnavailable) as caught:
            await client.manifest(image)
        assert len(str(caught.value)) < 200


async def test_a_404_is_definite_only_from_a_registry() -> None:
    page = Reply(404, {"Content-Type": "text/html"}, b"<html>default backend</html>")
    async with lying(lambda request: page) as (_, client, image):
        for asked in (client.resolve(image), client.manifest(image)):
            with pytest.raises(RegistryUnavailable, match="in its place"):
                await asked
    for headers in ({"Content-Type": "text/html", **SPEAKS}, {"Content-Type": "application/json"}, {}):
        async with lying(lambda request, headers=headers: Reply(404, headers)) as (_, client, image):  # type: ignore[misc]
            assert await client.resolve(image) is None


async def test_authorization_does_not_follow_a_redirect_to_another_host(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def store(request: Request) -> Reply:
        return (
            Reply(200, {}, CONFIG)
            if request.path == "/signed"
            else Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{other.host}/token"'})
        )

    async with scripted(store) as other:

        def behave(request: Request) -> Reply:
            if "manifests" in request.path:
                return Reply(200, HONEST, RAW)
            return Reply(307, {"Location": f"http://{other.host}/{'signed' if 'good' in request.path else 'phish'}?signature=s3cr3t"})

        async with lying(behave) as (server, client, image):
            good = ImageReference(server.host, "team/good", "1")
            assert await client.config(good) == json.loads(CONFIG)
            with pytest.raises(RegistryDenied) as caught:
                await client.config(image)
            assert "s3cr3t" not in str(caught.value)
            authorization = server.requests[-1].headers["authorization"].removeprefix("Basic ")
        assert other.asked() == [("GET", "/signed"), ("GET", "/phish")]
        assert not any(secret in caplog.text for secret in ("s3cr3t", PASSWORD, authorization))
        assert not any("authorization" in request.headers or "cookie" in request.headers for request in other.requests)


async def test_https_is_not_left_for_http(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    async with scripted(lambda request: Reply(200, HONEST, RAW)) as plain:

        def behave(request: Request) -> Reply:
            return Reply(307, {"Location": f"http://{plain.host}/"}) if "manifests" in request.path else Reply()

        async with scripted(behave, certificate) as server:
            client = RegistryClient(DockerConfig(), certificates={server.host: str(certificate.path)})
            with pytest.raises(RegistryConfused, match="from https to http"):
                await client.resolve(ImageReference(server.host, "team/app", "1"))
            await client.aclose()
        assert plain.requests == []


async def test_redirects_on_the_same_host_keep_authorization_and_end() -> None:
    def behave(request: Request) -> Reply:
        if request.path.endswith("/1"):
            return Reply(301, {"Location": "/v2/team/app/manifests/2"})
        if request.path.endswith("/2"):
            return Reply(200, HONEST, RAW)
        return Reply(302, {"Location": request.path})

    async with lying(behave) as (_, client, image):
        assert await client.resolve(image) is not None
        with pytest.raises(RegistryConfused, match="redirects more than"):
            await client.resolve(image.with_tag("circle"))
        with pytest.raises(RegistryConfused, match="redirects a PUT"):
            await client.put_manifest(image, RAW, OCI_MANIFEST)


async def test_a_dropped_connection_is_tried_once_more_for_reads_only() -> None:
    drops = 1

    def behave(request: Request) -> Reply | None:
        nonlocal drops
        if drops:
            drops -= 1
            return None
        return Reply(201 if request.method == "PUT" else 200, HONEST, RAW)

    async with lying(behave) as (server, client, image):
        assert await client.resolve(image) is not None
        drops = 2
        with pytest.raises(RegistryUnavailable):
            await client.resolve(image)
        drops = 1
        with pytest.raises(RegistryUnavailable):
            await client.put_manifest(image, RAW, OCI_MANIFEST)
        assert [method for method, _ in server.asked()].count("PUT") == 1


@pytest.mark.parametrize("timeouts", [Timeouts(read=0.05), Timeouts(total=0.05)])
async def test_a_silent_registry_is_unavailable(timeouts: Timeouts) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = RegistryClient(DockerConfig(), insecure=frozenset({host}), timeouts=timeouts)
    with pytest.raises(RegistryUnavailable, match="in time"):
        await client.ping(host)
    await client.aclose()
    await ended.wait()
    server.close()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"x" * (4 * 1024 * 1024 + 1), "more than"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (json.dumps(BODY | {"mediaType": OCI_INDEX}).encode(), "calls itself"),
        (json.dumps(BODY | {"layers": [{"digest": "sha256:../../x", "size": 1}]}).encode(), "descriptor"),
        (json.dumps(BODY | {"layers": [{"digest": digest_of(b""), "size": -1}]}).encode(), "descriptor"),
        (json.dumps(BODY | {"layers": {"digest": digest_of(b"")}}).encode(), "not a list"),
    ],
)
async def test_a_manifest_that_is_none(body: bytes, says: str) -> None:
    async with lying(lambda request: Reply(200, {"Content-Type": OCI_MANIFEST}, body)) as (_, client, image):
        with pytest.raises(RegistryConfused, match=says):
            await client.manifest(image)


async def test_an_index_within_itself_ends() -> None:
    """No honest digest allows a circle, but a deep chain is possible; here each level names the next."""
    levels = [RAW]
    for _ in range(6):
        child = {"mediaType": OCI_INDEX if len(levels) > 1 else OCI_MANIFEST, "digest": digest_of(levels[-1]), "size": len(levels[-1])}
        levels.append(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}).encode())
    stored = {digest_of(raw): raw for raw in levels}

    def behave(request: Request) -> Reply:
        raw = stored.get(request.path.rpartition("/")[2], levels[-1])
        return Reply(200, {"Content-Type": json.loads(raw)["mediaType"]}, raw)

    async with lying(behave) as (_, client, image):
        with pytest.raises(RegistryConfused, match="too deep"):
            await client.image_size(image)
        with pytest.raises(RegistryConfused, match="no config"):
            await client.config(image)
        assert await client.image_size(image.with_digest(digest_of(levels[2]))) == len(CONFIG)


async def test_tags_are_read_page_by_page_by_the_link_and_never_by_counting() -> None:
    def behave(request: Request) -> Reply:
        match request.query.get("last", [""])[0]:
            case "":
                return Reply(200, {"Link": '</v2/team/app/tags/list?last=a&n=1000>; rel="next"'}, b'{"tags": ["a"]}')
            case "a":
                return Reply(200, {"Link": f'<http://{server.host}/v2/team/app/tags/list?last=b>; rel="next"'}, b'{"tags": null}')
            case _:
                return Reply(200, {"Link": '</v2/other>; rel="prev"'}, b'{"tags": ["c"]}')

    async with lying(behave) as (server, client, image):
        assert [tag async for tag in client.tags(image.registry, image.repository)] == ["a", "c"]


@pytest.mark.parametrize(
    ("link", "body", "says"),
    [
        ('</v2/team/app/tags/list?n=1000>; rel="next"', b'{"tags": ["a"]}', "in a circle"),
        ('<http://elsewhere.test/v2/x>; rel="next"', b'{"tags": ["a"]}', "another host"),
        ("", b'{"tags": "a"}', "no list of tags"),
        ("", b'{"tags": [1]}', "no list of tags"),
    ],
)
async def test_a_list_of_tags_that_cannot_be_trusted_is_an_error(link: str, body: bytes, says: str) -> None:
    async with lying(lambda request: Reply(200, {"Link": link} if link else {}, body)) as (_, client, image):
        with pytest.raises(RegistryConfused, match=says):
            _ = [tag async for tag in client.tags(image.registry, image.repository)]


async def test_can_push_cancels_only_at_the_same_host_and_does_not_mind_a_refused_cancel() -> None:
    location = "/v2/team/app/blobs/uploads/1?_state=x"

    def behave(request: Request) -> Reply:
        return Reply(202, {"Location": location}) if request.method == "POST" else Reply(405)

    async with lying(behave) as (server, client, image):
        await client.can_push(image.registry, image.repository)
        assert server.asked()[-1] == ("DELETE", "/v2/team/app/blobs/uploads/1")
        assert server.requests[-1].query == {"_state": ["x"]}
        location = "http://elsewhere.test/v2/x"
        await client.can_push(image.registry, image.repository)
        assert server.asked()[-1] == ("POST", "/v2/team/app/blobs/uploads/")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(403, {}, b'{"errors": [{"code": "DENIED", "message": "no"}]}'), RegistryDenied),
        (Reply(404, SPEAKS), RegistryDenied),
        (Reply(405, {}, b'{"errors": [{"code": "UNSUPPORTED", "message": "a cache"}]}'), RegistryDenied),
        (Reply(503, {"Retry-After": "3"}), RegistryUnavailable),
        (Reply(200), RegistryConfused),
    ],
)
async def test_can_push_refused(reply: Reply, error: type[Exception]) -> None:
    async with lying(lambda request: reply) as (_, client, image):
        with pytest.raises(error):
            await client.can_push(image.registry, image.repository)


async def test_a_cookie_is_not_sent_back() -> None:
    async with lying(lambda request: Reply(200, HONEST | {"Set-Cookie": "sid=1"}, RAW)) as (server, client, image):
        await client.manifest(image)
        await client.manifest(image)
        assert "cookie" not in server.requests[-1].headers


async def test_bad_requests_are_confused_and_missing_blobs_are_missing() -> None:
    async with lying(lambda request: Reply(400, {}, b'{"errors": [{"code": "MANIFEST_INVALID"}]}')) as (_, client, image):
        with pytest.raises(RegistryConfused, match="MANIFEST_INVALID"):
            await client.put_manifest(image, RAW, OCI_MANIFEST)
    async with lying(lambda request: Reply(400, {}, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}')) as (_, client, image):
        with pytest.raises(ManifestUnknown):
            await client.put_manifest(image, RAW, OCI_MANIFEST)
