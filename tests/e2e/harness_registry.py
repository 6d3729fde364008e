"""A registry on this machine that asks for a user and a password, reached by pods at this machine's address."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from tests.conftest import free_port
from tests.e2e.harness_cluster import missing, until
from tests.integration.registry_server import HTPASSWD, PASSWORD, USER


@dataclass(frozen=True)
class LockedRegistry:
    host: str
    """As it stands in image references."""
    auth: tuple[str, str] = (USER, PASSWORD)

    def docker_config(self, password: str = PASSWORD) -> str:
        """What `docker login` would write."""
        return json.dumps({"auths": {self.host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}})


@contextmanager
def locked_registry(folder: Path, address: str) -> Iterator[LockedRegistry]:
    program = shutil.which("registry") or shutil.which("docker-registry")
    if program is None:
        missing("there is no registry program (Debian: docker-registry; `cluster env` puts one on the PATH)")
    assert program
    host = f"{address}:{free_port()}"
    (folder / "htpasswd").write_text(HTPASSWD)
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": host},
        "auth": {"htpasswd": {"realm": "e2e", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"http://{host}/v2/", trust_env=False).status_code == 401
        except httpx.TransportError:
            return False

    try:
        until(answers, "the registry with a password is up")
        yield LockedRegistry(host)
    finally:
        process.terminate()
        process.wait(10)
