"""What several modules of integration tests need."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ledger.settings import Settings
from tests.integration.kept_registry import KeptRegistry, kept_registry
from tests.integration.registry_kinds import KINDS, Kind
from tests.integration.registry_server import RegistryServer, run_registry
from tests.integration.retention_site import RetentionSite, retention_site

_numbers = itertools.count()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of registry that there is, one after another."""
    return KINDS[request.param]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A docker-registry of the module's own, open to all."""
    with run_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def registry_of_kind(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """One of that kind; a module that wants its tests run with each of them calls it `registry`."""
    with kind.run(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def registry_place(tmp_path: Path) -> Iterator[KeptRegistry]:
    """A docker-registry of the test's own that is kept running and can be collected."""
    with kept_registry(tmp_path) as found:
        yield found


@pytest.fixture
async def site(settings: Settings, registry: RegistryServer) -> AsyncIterator[RetentionSite]:
    """Retention at work on a repository of its own in the module's `registry`, with a policy."""
    async with retention_site(settings, registry, f"retention{next(_numbers)}/app") as site:
        await site.settle()
        yield site
