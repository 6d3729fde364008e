"""What several modules of integration tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.registry_kinds import KINDS, Kind
from tests.integration.registry_server import RegistryServer


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of registry that there is, one after another."""
    return KINDS[request.param]


@pytest.fixture(scope="module")
def registry_of_kind(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """One of that kind; a module that wants its tests run with each of them calls it `registry`."""
    with kind.run(tmp_path_factory.mktemp("registry")) as server:
        yield server
