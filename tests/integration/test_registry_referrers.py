"""What refers to an image, where registries answer the question in their own ways: with a list, a no, a web page, or trouble."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ledger.errors import RateLimited, RegistryConfused, RegistryDenied, RegistryError, RegistryUnavailable
from ledger.references import ImageReference
from tests.integration.registry_server import OCI_INDEX, OCI_MANIFEST, Reply, Request, ScriptedServer, digest_of, scripted
from worker.registry import Anonymous, RegistryReader

DIGEST, SIGNATURE = digest_of(b"image"), digest_of(b"sig")
SPEAKS = {"Docker-Distribution-Api-Version": "registry/2.0"}
HTML = {"Content-Type": "text/html; charset=utf-8"}
INDEX = {"Content-Type": OCI_INDEX}


def index(*digests: str) -> bytes:
    manifests = [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 3} for digest in digests]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()


LIST = Reply(200, INDEX, index(SIGNATURE))
NONE = Reply(404, SPEAKS)


def coded(status: int, code: str) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps({"errors": [{"code": code, "message": "m"}]}).encode())


@asynccontextmanager
async def answering(api: Reply | None, tag: Reply = LIST) -> AsyncIterator[tuple[ScriptedServer, RegistryReader, ImageReference]]:
    """A registry that answers so to the API, and so to the fallback tag of each digest."""

    def behave(request: Request) -> Reply | None:
        if request.path == "/v2/":
            return Reply()
        return api if "/referrers/" in request.path else tag

    async with scripted(behave) as server, RegistryReader(Anonymous(), insecure=frozenset({server.host})) as reader:
        yield server, reader, ImageReference(server.host, "team/app", None, DIGEST)


@pytest.mark.parametrize(
    "api",
    [
        Reply(404, SPEAKS | {"Content-Type": "text/plain"}, b"404 page not found"),
        Reply(404, HTML, b"<html>"),
        Reply(405, HTML, b"<html>"),
        coded(405, "UNSUPPORTED"),
        coded(404, "UNSUPPORTED"),
        Reply(200, HTML, b"<html>log in</html>"),
        Reply(200, INDEX, b"<html>log in</html>"),
        Reply(200, {"Content-Type": "application/json"}, b"{}"),
        Reply(200, {"Content-Type": "application/json"}, json.dumps({"manifests": []}).encode()),
    ],
)
async def test_a_registry_without_the_api_is_known_and_asked_once(api: Reply) -> None:
    async with answering(api) as (server, reader, image):
        assert reader.lists_referrers(image.registry) is None
        for digest in (DIGEST, digest_of(b"second"), digest_of(b"third")):
            assert [one.digest for one in await reader.referrers(image.with_digest(digest))] == [SIGNATURE]
        assert reader.lists_referrers(image.registry) is False
        paths = [path for _, path in server.asked()]
        assert sum("/referrers/" in path for path in paths) == 1
        assert sum("/manifests/sha256-" in path for path in paths) == 3


async def test_a_web_site_that_a_registry_leads_to_is_a_no_and_not_even_asked() -> None:
    async with scripted(lambda request: Reply(429, HTML | {"Retry-After": "60"}, b"<html>")) as site:
        for status in (303, 307):
            async with answering(Reply(status, {"Location": f"http://{site.host}/login"})) as (_, reader, image):
                assert [one.digest for one in await reader.referrers(image)] == [SIGNATURE]
                assert reader.lists_referrers(image.registry) is False
        assert site.requests == []


async def test_a_redirect_at_the_same_host_is_followed() -> None:
    def behave(request: Request) -> Reply:
        if "/referrers/" in request.path:
            return Reply(307, {"Location": "/listed"})
        return LIST if request.path == "/listed" else Reply()

    async with scripted(behave) as server, RegistryReader(Anonymous(), insecure=frozenset({server.host})) as reader:
        assert len(await reader.referrers(ImageReference(server.host, "team/app", None, DIGEST))) == 1
        assert reader.lists_referrers(server.host) is True


@pytest.mark.parametrize(
    ("api", "error"),
    [
        (Reply(401, {"WWW-Authenticate": "Basic realm=x"}), RegistryDenied),
        (Reply(403), RegistryDenied),
        (Reply(403, HTML, b"<html>"), RegistryDenied),
        (Reply(429, {"Retry-After": "3"}), RateLimited),
        (Reply(500), RegistryUnavailable),
        (Reply(502, HTML, b"<html>"), RegistryUnavailable),
        (Reply(400), RegistryConfused),
        (Reply(200, INDEX, b'{"manifests": [{"digest": "sha256:../x", "size": 1}]}'), RegistryConfused),
        (None, RegistryUnavailable),
    ],
)
async def test_trouble_is_no_answer(api: Reply | None, error: type[RegistryError]) -> None:
    async with answering(api) as (server, reader, image):
        with pytest.raises(error):
            await reader.referrers(image)
        assert not any("/manifests/" in path for _, path in server.asked())


async def test_what_answers_in_the_registrys_place_is_trouble_and_is_not_remembered() -> None:
    page = Reply(404, HTML, b"<html>default backend</html>")
    async with answering(page, page) as (_, reader, image):
        with pytest.raises(RegistryUnavailable, match="in its place"):
            await reader.referrers(image)
        assert reader.lists_referrers(image.registry) is None


async def test_an_image_that_the_api_does_not_know_says_nothing_of_others() -> None:
    async with answering(coded(404, "NAME_UNKNOWN"), NONE) as (server, reader, image):
        for _ in range(2):
            assert await reader.referrers(image) == ()
        assert sum("/referrers/" in path for _, path in server.asked()) == 2
        assert reader.lists_referrers(image.registry) is None


async def test_the_api_counts_where_there_is_one_and_its_pages_are_followed() -> None:
    async with answering(Reply(200, INDEX, index()), LIST) as (_, reader, image):
        assert await reader.referrers(image) == ()
        assert reader.lists_referrers(image.registry) is True
    further = Reply(200, INDEX | {"Link": f'</v2/team/app/referrers/{DIGEST}?last=1>; rel="next"'}, index(SIGNATURE))

    def behave(request: Request) -> Reply:
        return Reply() if request.path == "/v2/" else Reply(200, INDEX, index(digest_of(b"2"))) if request.query else further

    async with scripted(behave) as server, RegistryReader(Anonymous(), insecure=frozenset({server.host})) as reader:
        found = await reader.referrers(ImageReference(server.host, "team/app", None, DIGEST))
        assert [one.digest for one in found] == [SIGNATURE, digest_of(b"2")]


async def test_a_tag_that_is_no_list_is_none() -> None:
    """GitLab.com gives the image itself for `sha256-<hex>`; here the image is an index, whose parts are no referrers."""
    own = index(SIGNATURE)
    image_manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    for tag, digest in (
        (Reply(200, INDEX, own), digest_of(own)),
        (Reply(200, {"Content-Type": OCI_MANIFEST}, image_manifest), DIGEST),
        (NONE, DIGEST),
    ):
        async with answering(NONE, tag) as (_, reader, image):
            assert await reader.referrers(image.with_digest(digest)) == ()
