"""Fixtures that every room of the tests shares: a Redis with the settings that crabpot asks for, and a ledger on it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis as redis_client

from ledger.projects import Projects, parse_projects
from ledger.settings import Settings
from ledger.store import Ledger

# An example may take any time on a slow machine; all else as it is there (CI draws the same ones each time).
hypothesis.settings.register_profile("crabpot", parent=hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("crabpot")

PROJECTS = """
version: 1
limits: {max_builds: 4}
projects:
  demo:
    repository: https://git.example.com/team/demo.git
    max_builds: 2
    rules:
      - {ref: refs/heads/main, image: "registry.example.com/team/demo", tags: ["{sha}", latest]}
  other:
    repository: https://git.example.com/team/other.git
    rules:
      - {ref: "refs/heads/**", image: "registry.example.com/team/other", tags: ["{short_sha}"]}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class RedisServer:
    """A redis-server of our own: AOF on, noeviction; `durable` for one that is killed and started again at will.

    With `everysec`, Redis keeps acknowledged writes in memory for up to two seconds while the disk is busy with the last sync.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder, self.port = folder, free_port()
        self._sync = "always" if durable else "everysec"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = shutil.which("redis-server")
        assert binary, "install redis-server (Debian: apt-get install redis-server)"
        self.process = subprocess.Popen(
            [
                binary,
                "--port",
                str(self.port),
                "--dir",
                str(self.folder),
                "--appendonly",
                "yes",
                "--appendfsync",
                self._sync,
                "--maxmemory-policy",
                "noeviction",
                "--save",
                "",
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis_client.Redis(port=self.port, retry=redis_client.retry.Retry(redis_client.backoff.ConstantBackoff(0.02), 500))
        client.ping()
        client.close()

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    """The session's Redis, emptied."""
    with redis_client.Redis(port=_redis_server.port) as client:
        client.flushall()
        client.script_flush()
    return _redis_server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that a test may kill."""
    server = RedisServer(tmp_path, durable=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def projects() -> Projects:
    return parse_projects(PROJECTS)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=redis_url, state=tmp_path / "state", cluster="local")


@pytest.fixture
async def ledger(settings: Settings, projects: Projects) -> AsyncIterator[Ledger]:
    """A ledger on an empty Redis, with `PROJECTS` stored."""
    ledger = Ledger.open(settings)
    await ledger.store_projects(projects)
    yield ledger
    await ledger.close()
