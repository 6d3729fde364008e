"""A site: scripted cluster, real Redis, real registry. And plants, whose cluster is a server too."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from pathlib import Path

import certifi
import pytest
import redis.utils

import worker.watcher
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from tests.faults.forks import Forks, forking
from tests.faults.plant import Plant, plant, plant_on_lines
from tests.integration.registry_server import RegistryServer, run_registry
from tests.scripted_cluster import Site


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with run_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
async def site(settings: Settings, registry: RegistryServer) -> AsyncIterator[Site]:
    ledger = Ledger.open(settings)
    projects = parse_projects(f"""
version: 1
limits: {{max_builds: 3}}
projects:
  demo:
    repository: https://git.example.com/team/demo.git
    max_builds: 2
    policy: {{host_paths: [/out], max_memory: 8Gi}}
    rules: [{{ref: refs/heads/main, image: "{registry.host}/team/demo", tags: ["{{sha}}", latest]}}]
    registries: {{"{registry.host}": {{insecure: true}}}}
""")
    await ledger.store_projects(projects)
    site = Site(ledger, settings)
    yield site
    await site.close()
    await ledger.close()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Steps in processes of their own; started when the first test asks for it."""
    with forking(tmp_path_factory.mktemp("forks") / "log") as forks:
        yield forks


@pytest.fixture
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader's rounds come soon. And what many short lives would spend most of their time with is left out."""
    monkeypatch.setattr(worker.watcher, "_TICK", 0.5)
    # Clients read all the world's certificate authorities when they are made: one will do.
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    (tmp_path / "authority.pem").write_text(first + end)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    # Redis's and HTTP's clients look into the file system for each connection: for a version that does not change, and a module that is not there.
    monkeypatch.setattr(redis.utils, "get_lib_version", cache(redis.utils.get_lib_version))
    monkeypatch.setitem(sys.modules, "sniffio", None)


@pytest.fixture
def make_plant(settings, registry, tmp_path, _quick) -> Callable[[], AbstractAsyncContextManager[Plant]]:
    """A function that opens a plant, with a ledger, a cluster and a repository of its own."""
    return partial(plant, settings, registry, tmp_path)


@pytest.fixture
def make_plant_on_lines(settings, registry, tmp_path, _quick) -> Callable[[], AbstractAsyncContextManager[Plant]]:
    """The same, with lines that can be made bad (`Plant.lines`)."""
    return partial(plant_on_lines, settings, registry, tmp_path)
