"""A site: scripted cluster, real Redis, real registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
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
