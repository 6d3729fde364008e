"""Which authority is trusted for which host: a registry's own also where its answers lead, and never for another registry."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import certifi
import pytest

from ledger.access import RegistryAccess
from ledger.errors import RegistryDenied, RegistryUnavailable
from ledger.projects import ProjectSettings
from ledger.references import ImageReference
from ledger.settings import Settings
from tests.integration.registry_server import OCI_MANIFEST, Certificate, Reply, Request, ScriptedServer, digest_of, scripted
from worker.registries import Registries
from worker.registry import Anonymous, Descriptor, RegistryClient

RAW = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
BLOB = Descriptor(media_type="", digest=digest_of(b"blob"), size=4)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


def elsewhere(server: ScriptedServer) -> str:
    """The same server by its other name: another host."""
    return server.host.replace("127.0.0.1", "localhost")


def company(request: Request) -> Reply:
    """GitLab beside its registry: the token server and the store of blobs."""
    return Reply(body=b'{"token": "opaque"}') if request.path == "/jwt/auth" else Reply(body=b"blob")


def leading_to(host: str, request: Request) -> Reply:
    """A registry whose token server and blobs are at another host."""
    if "authorization" not in request.headers:
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="https://{host}/jwt/auth",service="s"'})
    if "/blobs/" in request.path:
        return Reply(307, {"Location": f"https://{host}/signed"})
    return Reply(200, {"Content-Type": OCI_MANIFEST}, RAW)


async def read_blob(client: RegistryClient, registry: str) -> bytes:
    async with client.blob(ImageReference(registry, "team/app"), BLOB) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_a_registrys_ca_is_trusted_where_its_answers_lead_and_nowhere_else(certificate: Certificate) -> None:
    async with (
        scripted(company, certificate) as other,
        scripted(lambda request: leading_to(elsewhere(other), request), certificate) as server,
        RegistryClient(Anonymous(), certificates={server.host: str(certificate.path)}) as client,
    ):
        assert (await client.manifest(ImageReference(server.host, "team/app", "1"))).raw == RAW
        assert await client.blob_size(ImageReference(server.host, "team/app"), BLOB.digest) == 4
        assert await read_blob(client, server.host) == b"blob"
        assert [path for _, path in other.asked()] == ["/jwt/auth", "/signed", "/signed"]
        for name in (elsewhere(other), elsewhere(server)):  # as registries of their own they have no CA, whatever led to them before
            with pytest.raises(RegistryUnavailable, match="name its CA certificate"):
                await client.ping(name)
        assert len(other.requests) == 3


async def test_a_host_that_has_a_ca_of_its_own_is_trusted_by_that(certificate: Certificate, tmp_path: Path) -> None:
    stranger = Certificate.make(tmp_path, subject="stranger")
    async with (
        scripted(company, stranger) as other,
        scripted(lambda request: leading_to(elsewhere(other), request), certificate) as server,
    ):
        image, own = ImageReference(server.host, "team/app", "1"), {server.host: str(certificate.path)}
        async with RegistryClient(Anonymous(), certificates=own) as client:
            with pytest.raises(RegistryUnavailable, match="name its CA certificate"):
                await client.manifest(image)
        async with RegistryClient(Anonymous(), certificates=own | {elsewhere(other): str(stranger.path)}) as client:
            assert (await client.manifest(image)).raw == RAW
            assert await read_blob(client, server.host) == b"blob"


async def test_a_project_gives_each_client_the_cas_of_all_its_registries(certificate: Certificate, tmp_path: Path) -> None:
    stranger = Certificate.make(tmp_path, subject="stranger")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    async with (
        scripted(company, stranger) as other,
        scripted(lambda request: leading_to(elsewhere(other), request), certificate) as server,
    ):
        project = ProjectSettings(
            registries={
                server.host: RegistryAccess(certificate=certificate.path),
                elsewhere(other): RegistryAccess(certificate=stranger.path),
                "broken.test": RegistryAccess(certificate=junk),
            }
        )
        registries = Registries(None, Settings())  # type: ignore[arg-type]
        try:
            client = registries.client("shop", project, server.host)
            assert (await client.manifest(ImageReference(server.host, "team/app", "1"))).raw == RAW
            assert registries.client("shop", project, server.host) is client
            with pytest.raises(RegistryDenied, match="certificate cannot be used"):
                registries.client("shop", project, "broken.test")
        finally:
            await registries.close()


async def test_the_systems_authorities_are_trusted(certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenSSL finds them, by both of its variables; httpx alone would look at one bundle only."""
    (tmp_path / "own.pem").write_bytes(certificate.path.read_bytes())
    subprocess.run(["openssl", "rehash", tmp_path], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    unrelated = Certificate.make(tmp_path, subject="stranger")
    async with scripted(lambda request: Reply(), certificate) as server:
        for certificates in ({}, {server.host: str(unrelated.path)}):
            async with RegistryClient(Anonymous(), certificates=certificates) as client:
                await client.ping(server.host)
