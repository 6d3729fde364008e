"""Registries to test against: Debian's docker-registry as it is, and servers of our own that lie or hand out tokens.

Everything listens on a port of the kernel's choice on 127.0.0.1 and ends with its `with` block.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

USER, PASSWORD = "ada", "carrot"
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuuyWdl9/waXjuy.CPyQsWSe1oCKdqVaAO\n"  # bcrypt of PASSWORD at its least cost
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


@dataclass
class Certificate:
    """A key and its self-signed certificate for 127.0.0.1 and localhost, or other names, made by openssl."""

    key: Path
    path: Path

    @classmethod
    def make(cls, folder: Path, names: str = "IP:127.0.0.1,DNS:localhost", subject: str = "crabpot-test") -> Certificate:
        key, path = folder / "key.pem", folder / "certificate.pem"
        said = ("-subj", f"/CN={subject}", "-addext", f"subjectAltName={names}", "-days", "2")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", path, *said],
            check=True,
            capture_output=True,
        )
        return cls(key, path)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context

    @property
    def der(self) -> str:
        """As a JWT's `x5c` holds it."""
        return "".join(line for line in self.path.read_text().splitlines() if not line.startswith("-----"))

    def sign(self, payload: bytes) -> bytes:
        return subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.key], input=payload, check=True, capture_output=True).stdout


@dataclass
class RegistryServer:
    """A running docker-registry, and small code to put images into it past the code under test."""

    host: str
    """`127.0.0.1:port`, as it stands in an image reference."""
    process: subprocess.Popen[str] | None = None
    """None: somebody else runs it."""
    auth: tuple[str, str] | None = None
    authority: Path | None = None
    """Of its certificate, where it serves TLS and tests speak to it."""
    data: Path = Path()
    """Where its storage is."""

    def lose_manifest(self, repository: str, raw: bytes) -> None:
        """Take a manifest from the storage past the registry, as `garbage-collect -m` does: the tags on it stay."""
        name = digest_of(raw).removeprefix("sha256:")
        zot = self.data / repository / "blobs/sha256" / name
        if zot.exists():
            zot.unlink()
            return
        root = self.data / "docker/registry/v2"
        shutil.rmtree(root / "repositories" / repository / "_manifests/revisions/sha256" / name)
        shutil.rmtree(root / "blobs/sha256" / name[:2] / name)

    def http(self) -> httpx.Client:
        verify = ssl.create_default_context(cafile=str(self.authority)) if self.authority else False
        scheme = "https" if self.authority else "http"
        return httpx.Client(base_url=f"{scheme}://{self.host}/v2/", auth=self.auth, trust_env=False, verify=verify)

    def serves(self) -> bool:
        try:
            with self.http() as http:
                return http.get("").status_code == 200
        except httpx.TransportError:
            return False

    def push_blob(self, repository: str, raw: bytes) -> dict[str, Any]:
        """Store a blob; its descriptor without a media type."""
        digest = digest_of(raw)
        with self.http() as http:
            begun = http.post(f"{repository}/blobs/uploads/").raise_for_status()
            url = begun.url.join(begun.headers["location"]).copy_add_param("digest", digest)
            http.put(url, content=raw, headers={"Content-Type": "application/octet-stream"}).raise_for_status()
        return {"digest": digest, "size": len(raw)}

    def push_manifest(self, repository: str, reference: str, body: dict[str, Any]) -> bytes:
        raw = json.dumps(body).encode()
        with self.http() as http:
            http.put(f"{repository}/manifests/{reference}", content=raw, headers={"Content-Type": body["mediaType"]}).raise_for_status()
        return raw

    def push_referrer(
        self, repository: str, subject: bytes, *, tag: str | None = None, artifact_type: str = "application/vnd.test"
    ) -> bytes:
        """Store an artifact that is about a manifest, untagged unless told; its bytes."""
        about = {"mediaType": json.loads(subject)["mediaType"], "digest": digest_of(subject), "size": len(subject)}
        config = {"mediaType": "application/vnd.oci.empty.v1+json", **self.push_blob(repository, b"{}")}
        layer = {"mediaType": "application/octet-stream", **self.push_blob(repository, artifact_type.encode())}
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config,
            "layers": [layer],
            "subject": about,
        }
        return self.push_manifest(repository, tag or digest_of(json.dumps(body).encode()), body)

    def push_image(
        self,
        repository: str,
        tag: str | None,
        *,
        layers: tuple[bytes, ...] = (b"layer",),
        labels: dict[str, str] | None = None,
        media_type: str = OCI_MANIFEST,
        created: str | None = None,
    ) -> bytes:
        """Store an image under a tag or its digest; its manifest's bytes."""
        config: dict[str, Any] = {"architecture": "amd64", "os": "linux", "config": {"Labels": labels or {}}}
        config["rootfs"] = {"type": "layers", "diff_ids": []}
        if created:
            config["created"] = created
        kind = "vnd.oci.image" if media_type == OCI_MANIFEST else "vnd.docker.container.image"
        body = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {
                "mediaType": f"application/{kind}.{'config.' if 'oci' in kind else ''}v1+json",
                **self.push_blob(repository, json.dumps(config).encode()),
            },
            "layers": [
                {
                    "mediaType": f"application/{'vnd.oci.image.layer.v1.tar' if 'oci' in kind else 'vnd.docker.image.rootfs.diff.tar.gzip'}",
                    **self.push_blob(repository, layer),
                }
                for layer in layers
            ],
        }
        return self.push_manifest(repository, tag or digest_of(json.dumps(body).encode()), body)

    def push_index(self, repository: str, tag: str, children: dict[str, bytes], *, media_type: str = OCI_INDEX) -> bytes:
        """Store an index of images that are there already, by platform; its bytes."""
        manifests = [
            {
                "mediaType": json.loads(raw)["mediaType"],
                "digest": digest_of(raw),
                "size": len(raw),
                "platform": dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False)),
            }
            for platform, raw in children.items()
        ]
        return self.push_manifest(repository, tag, {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})

    def catalog(self) -> list[str]:
        with self.http() as http:
            return list(http.get("_catalog").raise_for_status().json()["repositories"])


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


@contextlib.contextmanager
def run_registry(
    folder: Path,
    *,
    htpasswd: bool = False,
    token: TokenServer | None = None,
    tls: Certificate | None = None,
    readonly: bool = False,
    deletes: bool = True,
    program: str = "docker-registry",
    port: int = 0,
) -> Iterator[RegistryServer]:
    """Debian's docker-registry 2.8, or another distribution, with its data in `folder`: open, or with basic or bearer auth."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "delete": {"enabled": deletes},
            "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": readonly}},
        },
        "http": {
            "addr": f"127.0.0.1:{port}",
            "secret": "only for tests",
            "tls": {"certificate": str(tls.path), "key": str(tls.key)} if tls else {},
        },
    }
    if htpasswd:
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    if token:
        config["auth"] = {
            "token": {
                "realm": f"http://{token.host}/token",
                "service": token.service,
                "issuer": token.issuer,
                "rootcertbundle": str(token.certificate.path),
            }
        }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with serving([program, "serve", folder / "config.yml"], r"listening on (127\.0\.0\.1:\d+)") as (host, process):
        yield RegistryServer(host, process, auth=(USER, PASSWORD) if htpasswd else None, data=folder / "data")


@contextlib.contextmanager
def serving(command: list[str | Path], listens: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that says where it listens: what the pattern's groups found, joined by a colon, and its process."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    drain = None
    try:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if match := re.search(listens, line):
                break
        else:
            raise RuntimeError(f"{command[0]} did not start: " + "".join(said))
        drain = threading.Thread(target=lambda: [None for _ in process.stdout or ()], daemon=True)
        drain.start()
        yield ":".join(match.groups()), process
    finally:
        process.terminate()
        process.wait(10)
        if drain:
            drain.join(10)
        if process.stdout:
            process.stdout.close()


@dataclass
class Request:
    """What a server of ours was sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class Reply:
    """What it answers."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


Behaviour = Callable[[Request], "Reply | None"]
"""None drops the connection without an answer."""


class ScriptedServer:
    """An HTTP server that answers what it is told to, true or not, and remembers what it was asked."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.host = ""
        self.requests: list[Request] = []

    def asked(self) -> list[tuple[str, str]]:
        return [(request.method, request.path) for request in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").strip().split("\r\n")
                method, target, _ = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                url = urlsplit(target)
                request = Request(method, url.path, parse_qs(url.query), headers, body)
                self.requests.append(request)
                reply = self.behave(request)
                if reply is None:
                    break
                fields = {"Content-Length": str(len(reply.body)), **reply.headers}
                text = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n" + "".join(
                    f"{name}: {value}\r\n" for name, value in fields.items()
                )
                writer.write(text.encode() + b"\r\n" + (b"" if method == "HEAD" else reply.body))
                await writer.drain()

    @contextlib.asynccontextmanager
    async def running(self, tls: Certificate | None = None) -> AsyncIterator[None]:
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            except asyncio.CancelledError:
                pass
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
                tasks.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.context() if tls else None)
        address, port = server.sockets[0].getsockname()
        self.host = f"{address}:{port}"
        try:
            yield
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def scripted(behave: Behaviour, tls: Certificate | None = None) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(behave)
    async with server.running(tls):
        yield server


class TokenServer(ScriptedServer):
    """A token server as distribution's specification describes it: it grants what the user may of what is asked, and says so in the token."""

    service, issuer = "registry.test", "tokens.test"

    def __init__(self, certificate: Certificate, *, lifetime: int = 300) -> None:
        super().__init__(self.grant)
        self.certificate = certificate
        self.lifetime = lifetime
        self.rights: dict[str, dict[str, set[str]]] = {}
        """User ("" for nobody) -> repository -> actions."""
        self.names_nothing = False
        """Whether a token also names, with no actions, what it grants nothing on, as Harbor's do."""

    def grant(self, request: Request) -> Reply:
        user, asked = "", request.query.get("scope", [])
        if request.method == "POST":
            form = parse_qs(request.body.decode())
            asked = form.get("scope", [""])[0].split()
            if form.get("refresh_token") != ["identity-of-ada"] or form.get("grant_type") != ["refresh_token"]:
                return Reply(400, body=b'{"error":"invalid_grant"}')
            user = USER
        elif header := request.headers.get("authorization"):
            user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
            if password != PASSWORD:
                return Reply(401)
        access = []
        for scope in asked:
            kind, name, actions = scope.split(":")
            allowed = self.rights.get(user, {}).get(name, set()) & set(actions.split(","))
            if allowed or self.names_nothing:
                access.append({"type": kind, "name": name, "actions": sorted(allowed)})
        key = "access_token" if request.method == "POST" else "token"
        body = {key: self.token(user, access), "expires_in": self.lifetime}
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def token(self, user: str, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self.certificate.der]}
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "nbf": now - 10,
            "iat": now,
            "exp": now + 300,
            "jti": str(len(self.requests)),
            "access": access,
        }
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        return (text + b"." + _base64url(self.certificate.sign(text))).decode()


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
