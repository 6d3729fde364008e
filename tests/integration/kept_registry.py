"""A docker-registry (2.8) on this machine that is started again whenever it ends, as the demo has it: what a collection finds there, by name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ledger.access import RegistryAccess
from ledger.collected import CollectedOnThisMachine
from tests.conftest import free_port
from tests.integration.registry_server import OCI_MANIFEST, RegistryServer, digest_of

ROOT = Path(__file__).parents[2]


@dataclass
class KeptRegistry:
    """The registry, what was pushed into it, and what must be true of it after a collection."""

    settings: CollectedOnThisMachine
    server: RegistryServer
    data: Path
    kept: list[tuple[str, bytes]] = field(default_factory=list)
    """Repository and manifest of what must never be lost."""

    @property
    def process(self) -> int:
        return int(self.settings.process.read_text())

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)

    def blobs(self) -> set[str]:
        return {f"sha256:{data.parent.name}" for data in self.data.glob("docker/registry/v2/blobs/sha256/*/*/data")}

    def fill(self) -> str:
        """Images, and one whose manifest is deleted: the digest of its layer, which is garbage then."""
        push = self.server.push_image
        self.kept = [
            ("team/app", push("team/app", "v1", layers=(b"base", b"one"))),
            ("team/tool", push("team/tool", "v1", layers=(b"base",))),
        ]
        gone = push("team/app", "v2", layers=(b"base", b"garbage" * 1000))
        with self.server.http() as http:
            http.delete(f"team/app/manifests/{digest_of(gone)}").raise_for_status()
        return digest_of(b"garbage" * 1000)

    def litter(self, number: int) -> None:
        """Once more something that goes."""
        raw = self.server.push_image("team/app", "again", layers=(b"base", b"%d" % number))
        with self.server.http() as http:
            http.delete(f"team/app/manifests/{digest_of(raw)}").raise_for_status()

    def check(self) -> None:
        """It is read-write, and all that was pushed can be read, past any memory of the registry's."""
        until(lambda: not self.settings.marker.exists() and self.server.serves(), "it serves, and is not told to be read-only")
        self.server.push_image("team/after", "v1", layers=(b"after",))
        self.read_all()

    def read_all(self) -> None:
        """All that was pushed can be read, byte for byte."""
        with self.server.http() as http:
            for repository, raw in self.kept:
                assert http.get(f"{repository}/manifests/{digest_of(raw)}", headers={"Accept": OCI_MANIFEST}).content == raw
                body = httpx.Response(200, content=raw).json()
                for part in (body["config"], *body["layers"]):
                    assert digest_of(http.get(f"{repository}/blobs/{part['digest']}").content) == part["digest"]


def until(look: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@contextmanager
def kept_registry(folder: Path, *, program: str = "docker-registry") -> Iterator[KeptRegistry]:
    """One that serves, with its files in a folder. `program`: by which it is swept."""
    host = f"127.0.0.1:{free_port()}"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{folder}/data'}}, cache: {{blobdescriptor: inmemory}}, delete: {{enabled: true}}}}\n"
    )
    settings = CollectedOnThisMachine(
        registry=host,
        kind="local",
        config=str(config),
        program=program,
        process=folder / "process",
        marker=folder / "read-only",
        access=RegistryAccess(insecure=True),
    )
    command = [str(ROOT / "deploy/demo/registry"), str(config), str(settings.marker), str(settings.process)]
    with (folder / "log").open("wb") as log:
        keeper = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = KeptRegistry(settings, RegistryServer(host), folder / "data")
        until(found.server.serves, "the registry serves")
        yield found
    finally:
        keeper.terminate()
        keeper.wait(10)
