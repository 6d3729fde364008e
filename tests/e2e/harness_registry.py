"""Registries on this machine beside the cluster's own, reached by pods at this machine's address: one with a password, one with TLS."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.conftest import free_port
from tests.e2e.harness_cluster import missing, until
from tests.integration.registry_server import HTPASSWD, PASSWORD, USER


@dataclass(frozen=True)
class LockedRegistry:
    """Plain HTTP, and a user with a password."""

    host: str
    """As it stands in image references."""
    auth: tuple[str, str] = (USER, PASSWORD)

    def docker_config(self, password: str = PASSWORD) -> str:
        """What `docker login` would write."""
        return json.dumps({"auths": {self.host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}})


@dataclass(frozen=True)
class PrivateRegistry:
    """TLS by an authority that nobody knows."""

    host: str
    certificate: Path
    key: Path

    def get(self, path: str) -> httpx.Response:
        trusting = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.get(f"https://{self.host}/v2/{path}", verify=trusting, trust_env=False)


@contextmanager
def locked_registry(folder: Path, address: str) -> Iterator[LockedRegistry]:
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"auth": {"htpasswd": {"realm": "e2e", "path": str(folder / "htpasswd")}}}
    with _serving(folder, address, auth) as host:
        until(lambda: _status(f"http://{host}/v2/") == 401, "the registry with a password is up")
        yield LockedRegistry(host)


@contextmanager
def private_registry(folder: Path, address: str) -> Iterator[PrivateRegistry]:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ("-subj", "/CN=crabpot-e2e", "-addext", f"subjectAltName=IP:{address}", "-days", "2")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *names],
        check=True,
        capture_output=True,
    )
    with _serving(folder, address, {"http": {"tls": {"certificate": str(certificate), "key": str(key)}}}) as host:
        registry = PrivateRegistry(host, certificate, key)
        until(
            lambda: _status(f"https://{host}/v2/", verify=ssl.create_default_context(cafile=str(certificate))) == 200,
            "the TLS registry is up",
        )
        yield registry


def _status(url: str, **options: Any) -> int | None:
    try:
        return httpx.get(url, trust_env=False, **options).status_code
    except httpx.TransportError:
        return None


@contextmanager
def _serving(folder: Path, address: str, more: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    program = shutil.which("registry") or shutil.which("docker-registry")
    if program is None:
        missing("there is no registry program (Debian: docker-registry; `cluster env` puts one on the PATH)")
    assert program
    host = f"{address}:{free_port()}"
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        **more,
        "http": {"addr": host, **more.get("http", {})},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        yield host
    finally:
        process.terminate()
        process.wait(10)
