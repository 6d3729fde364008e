"""The token flow, against docker-registry with a token server of ours: what is granted, kept, renewed and found to be too little."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ledger.errors import RateLimited, RegistryConfused, RegistryDenied, RegistryUnavailable
from ledger.references import ImageReference
from tests.integration.registry_server import (
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Certificate,
    RegistryServer,
    Reply,
    Request,
    TokenServer,
    digest_of,
    run_registry,
    scripted,
)
from worker.registry import Anonymous, Credentials, Descriptor, DockerConfig, RegistryClient
from worker.registry.auth import Authorizer
from worker.registry.copying import copy_image
from worker.registry.scopes import Scope
from worker.registry.wire import Timeouts, Wire


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
async def tokens(certificate: Certificate) -> AsyncIterator[TokenServer]:
    server = TokenServer(certificate)
    server.rights = {"": {"open/app": {"pull"}}, USER: {"team/app": {"pull", "push"}, "team/read": {"pull"}}}
    async with server.running():
        yield server


@pytest.fixture
async def registry(tokens: TokenServer, tmp_path: Path) -> AsyncIterator[RegistryServer]:
    with run_registry(tmp_path, token=tokens) as server:
        yield server


@asynccontextmanager
async def connected(host: str, credentials: Credentials) -> AsyncIterator[RegistryClient]:
    client = RegistryClient(credentials, insecure=frozenset({host}))
    try:
        yield client
    finally:
        await client.aclose()


def ada(host: str, password: str = PASSWORD) -> DockerConfig:
    return DockerConfig(auths={host: {"username": USER, "password": password}})


async def test_a_token_is_fetched_once_for_its_scope_and_used_by_all(registry: RegistryServer, tokens: TokenServer) -> None:
    async with connected(registry.host, ada(registry.host)) as client:
        await asyncio.gather(*(client.resolve(ImageReference(registry.host, "team/app", str(number))) for number in range(8)))
        assert [request.query["scope"] for request in tokens.requests] == [["repository:team/app:pull"]]
        assert tokens.requests[0].query["service"] == [tokens.service]
        raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
        for tag in ("1", "2"):
            await client.put_manifest(ImageReference(registry.host, "team/app", tag), raw, OCI_INDEX)
        assert [request.query["scope"] for request in tokens.requests[1:]] == [["repository:team/app:pull,push"]]


async def test_without_a_credential_a_token_is_asked_for_all_the_same(registry: RegistryServer, tokens: TokenServer) -> None:
    async with connected(registry.host, Anonymous()) as client:
        assert await client.resolve(ImageReference(registry.host, "open/app", "1")) is None
        assert "authorization" not in tokens.requests[0].headers
        with pytest.raises(RegistryDenied, match="grants nothing on team/app"):
            await client.resolve(ImageReference(registry.host, "team/app", "1"))


@pytest.mark.parametrize("rights", [{"pull", "push"}, {"pull", "push", "delete"}])
async def test_an_upload_is_cancelled_where_that_is_granted(
    registry: RegistryServer, tokens: TokenServer, tmp_path: Path, rights: set[str]
) -> None:
    """Distribution wants the right to delete for a cancel; who has it leaves no upload, who has it not may push all the same."""
    tokens.rights[USER]["team/app"] = rights
    async with connected(registry.host, ada(registry.host)) as client:
        await client.can_push(registry.host, "team/app")
    assert bool(list(tmp_path.rglob("startedat"))) is ("delete" not in rights)


async def test_a_reduced_grant_is_denied_before_anything_is_tried(registry: RegistryServer, tokens: TokenServer) -> None:
    async with connected(registry.host, ada(registry.host)) as client:
        assert await client.resolve(ImageReference(registry.host, "team/read", "1")) is None
        with pytest.raises(RegistryDenied, match="grants pull on team/read, and pull,push is needed"):
            await client.can_push(registry.host, "team/read")


async def test_a_refused_password_is_denied_and_not_shown(registry: RegistryServer) -> None:
    async with connected(registry.host, ada(registry.host, "turnip")) as client:
        with pytest.raises(RegistryDenied, match="with the configured credential") as caught:
            await client.resolve(ImageReference(registry.host, "team/app", "1"))
        assert "turnip" not in str(caught.value)


async def test_an_identity_token_is_exchanged_by_oauth2(registry: RegistryServer, tokens: TokenServer) -> None:
    async with connected(registry.host, DockerConfig(auths={registry.host: {"identitytoken": "identity-of-ada"}})) as client:
        await client.can_push(registry.host, "team/app")
    assert {method for method, _ in tokens.asked()} == {"POST"}
    async with connected(registry.host, DockerConfig(auths={registry.host: {"identitytoken": "of-nobody"}})) as client:
        with pytest.raises(RegistryDenied, match="answered 400"):
            await client.can_push(registry.host, "team/app")


async def test_a_token_is_renewed_when_it_has_run_out(registry: RegistryServer, tokens: TokenServer) -> None:
    now = 1000.0
    wire = Wire(insecure=frozenset({registry.host}), certificates={}, user_agent="test", timeouts=Timeouts())
    authorizer, scope = Authorizer(wire, ada(registry.host), clock=lambda: now), Scope("team/app", ("pull",))
    for later, fetched in ((0, 1), (269, 1), (271, 2)):
        now = 1000.0 + later
        assert (await authorizer.send("GET", registry.host, "/v2/team/app/tags/list", scope)).status == 404
        assert len(tokens.requests) == fetched
    await wire.close()


def bearer(host: str, token: str = "opaque") -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="http://{host}/token",service="s"'}


async def test_a_token_that_ended_early_is_renewed_once() -> None:
    fetched = 0

    def behave(request: Request) -> Reply:
        nonlocal fetched
        if request.path == "/token":
            fetched += 1
            return Reply(body=b'{"access_token": "t%d"}' % fetched)
        if request.path == "/v2/" or request.headers.get("authorization") != "Bearer t2":
            return Reply(401, bearer(server.host))
        return Reply(404, {"Docker-Distribution-Api-Version": "registry/2.0"})

    async with scripted(behave) as server, connected(server.host, ada(server.host)) as client:
        assert await client.resolve(ImageReference(server.host, "team/app", "1")) is None
        assert server.asked() == [
            ("GET", "/v2/"),
            ("GET", "/token"),
            ("HEAD", "/v2/team/app/manifests/1"),
            ("GET", "/token"),
            ("HEAD", "/v2/team/app/manifests/1"),
        ]


async def test_an_opaque_token_with_too_little_is_found_by_the_second_401() -> None:
    def behave(request: Request) -> Reply:
        return Reply(body=b'{"token": "opaque"}') if request.path == "/token" else Reply(401, bearer(server.host))

    async with scripted(behave) as server, connected(server.host, ada(server.host)) as client:
        with pytest.raises(RegistryDenied, match="the credential grants less"):
            await client.resolve(ImageReference(server.host, "team/app", "1"))
        assert server.asked().count(("HEAD", "/v2/team/app/manifests/1")) == 2


async def test_a_registry_that_asks_only_later_is_answered() -> None:
    """The ping is open, a private repository is not."""

    def behave(request: Request) -> Reply:
        if request.path == "/v2/":
            return Reply()
        if "authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": 'Negotiate, Basic realm="x, y"'})
        return Reply(404, {"Docker-Distribution-Api-Version": "registry/2.0"})

    async with scripted(behave) as server, connected(server.host, ada(server.host)) as client:
        assert await client.resolve(ImageReference(server.host, "team/app", "1")) is None


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply(429, {"Retry-After": "7"}), RateLimited, "answered 429"),
        (Reply(503), RegistryUnavailable, "answered 503"),
        (Reply(403), RegistryDenied, "answered 403"),
        (Reply(body=b"<html>"), RegistryConfused, "not a JSON object"),
        (Reply(body=b"{}"), RegistryConfused, "without a token"),
        (Reply(body=b'{"token": "two\\r\\nlines"}'), RegistryConfused, "without a token"),
    ],
)
async def test_a_token_server_in_trouble(reply: Reply, error: type[Exception], says: str) -> None:
    def behave(request: Request) -> Reply:
        return reply if request.path == "/token" else Reply(401, bearer(server.host))

    async with scripted(behave) as server, connected(server.host, ada(server.host)) as client:
        with pytest.raises(error, match=says) as caught:
            await client.resolve(ImageReference(server.host, "team/app", "1"))
        assert getattr(caught.value, "retry_after", None) == (7 if reply.status == 429 else None)


@pytest.mark.parametrize(
    ("status", "headers", "error", "says"),
    [
        (404, {}, RegistryConfused, "no /v2/"),
        (401, {}, RegistryConfused, "asks for nothing"),
        (401, {"WWW-Authenticate": "Digest realm=x"}, RegistryConfused, "asks for digest"),
        (502, {}, RegistryUnavailable, "502"),
    ],
)
async def test_pinging_what_is_no_registry(status: int, headers: dict[str, str], error: type[Exception], says: str) -> None:
    async with scripted(lambda request: Reply(status, headers)) as server, connected(server.host, Anonymous()) as client:
        with pytest.raises(error, match=says):
            await client.ping(server.host)


@pytest.mark.parametrize("realm", ["", "ftp://elsewhere/token", "http://["])
async def test_a_challenge_without_a_token_server(realm: str) -> None:
    async with (
        scripted(lambda request: Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'})) as server,
        connected(server.host, Anonymous()) as client,
    ):
        with pytest.raises(RegistryConfused, match="names no token server"):
            await client.resolve(ImageReference(server.host, "team/app", "1"))


async def test_an_https_registry_cannot_lure_the_credential_to_plain_http(
    certificate: Certificate, tokens: TokenServer, tmp_path: Path
) -> None:
    with run_registry(tmp_path, token=tokens, tls=certificate) as server:
        client = RegistryClient(ada(server.host), certificates={server.host: str(certificate.path)})
        with pytest.raises(RegistryConfused, match="plain HTTP"):
            await client.resolve(ImageReference(server.host, "team/app", "1"))
        await client.aclose()
    assert tokens.requests == []


async def test_deleting_asks_for_the_right_to_delete_and_finds_it_missing(registry: RegistryServer, tokens: TokenServer) -> None:
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    async with connected(registry.host, ada(registry.host)) as client:
        image = ImageReference(registry.host, "team/app", "1")
        digest = await client.put_manifest(image, raw, OCI_INDEX)
        with pytest.raises(RegistryDenied, match="grants nothing on team/app"):
            await client.delete(image.with_digest(digest))
        tokens.rights[USER]["team/app"] = {"pull", "push", "delete"}
        assert await client.delete(image.with_digest(digest))
    assert [request.query["scope"] for request in tokens.requests][-1] == ["repository:team/app:delete"]


async def test_mounting_asks_for_both_repositories_at_once(registry: RegistryServer, tokens: TokenServer) -> None:
    tokens.rights[USER]["team/other"] = {"pull"}
    blob = Descriptor(media_type="", digest="sha256:" + "0" * 64, size=1)
    async with connected(registry.host, ada(registry.host)) as client:
        assert not await client.mount(ImageReference(registry.host, "team/app"), blob, "team/other")
    assert ["repository:team/app:pull,push", "repository:team/other:pull"] in [request.query["scope"] for request in tokens.requests]


@pytest.mark.parametrize("names_nothing", [True, False])
async def test_a_copy_between_two_credentials_that_share_nothing_reads_and_sends(
    registry: RegistryServer, tokens: TokenServer, names_nothing: bool
) -> None:
    """One robot a project: the target's may not read the source, so nothing can be mounted, and the reader's reads it."""
    tokens.names_nothing = names_nothing
    tokens.rights = {"red-robot": {"red/app": {"pull", "push"}}, "blue-robot": {"blue/app": {"pull", "push"}}}
    auths = {f"{registry.host}/{one}/app": {"username": f"{one}-robot", "password": PASSWORD} for one in ("red", "blue")}
    source, target = ImageReference(registry.host, "red/app", "1"), ImageReference(registry.host, "blue/app", "2")
    async with connected(registry.host, DockerConfig(auths=auths)) as client:
        blobs = [b"{}", b"one", b"two"]
        for blob in blobs:
            await client.push_blob(source, Descriptor(media_type="", digest=digest_of(blob), size=len(blob)), once(blob))
        config, *layers = ({"mediaType": "m", "digest": digest_of(blob), "size": len(blob)} for blob in blobs)
        body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        digest = await client.put_manifest(source, json.dumps(body).encode(), OCI_MANIFEST)
        assert await copy_image(client, source, client, target) == digest
        found = await client.resolve(target)
        assert found is not None
        assert found.digest == digest


async def once(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def test_the_catalog_has_a_right_of_its_own(registry: RegistryServer, tokens: TokenServer) -> None:
    async with connected(registry.host, ada(registry.host)) as client:
        with pytest.raises(RegistryDenied):
            _ = [name async for name in client.catalog(registry.host)]
        tokens.rights[USER]["catalog"] = {"*"}
        assert [name async for name in client.catalog(registry.host)] == []
    assert tokens.requests[-1].query["scope"] == ["registry:catalog:*"]


async def test_a_blob_is_streamed_with_a_renewed_token_and_without_it_from_elsewhere(tokens: TokenServer) -> None:
    def store(request: Request) -> Reply:
        return Reply(body=b"blob")

    async with scripted(store) as elsewhere:

        def behave(request: Request) -> Reply:
            if request.path == "/token":
                return Reply(body=b'{"token": "t%d"}' % len(server.requests))
            if request.path == "/v2/":
                return Reply(401, bearer(server.host))
            if server.asked().count((request.method, request.path)) == 1:
                return Reply(401, bearer(server.host))
            return Reply(307, {"Location": f"http://{elsewhere.host}/signed"})

        async with scripted(behave) as server, connected(server.host, ada(server.host)) as client:
            blob = Descriptor(media_type="", digest=digest_of(b"blob"), size=4)
            async with client.blob(ImageReference(server.host, "team/app"), blob) as pieces:
                assert b"".join([piece async for piece in pieces]) == b"blob"
        assert "authorization" not in elsewhere.requests[0].headers
