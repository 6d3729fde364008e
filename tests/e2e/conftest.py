"""One cluster, one Redis, and one crabpot whose processes all modules share; a module that stops or kills processes makes its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from tests.conftest import PROJECTS, RedisServer
from tests.e2e.harness import Crabpot, crabpot_on, open_project
from tests.e2e.harness_cluster import Cluster
from tests.e2e.harness_forge import Forge, Repository
from tests.e2e.harness_registry import LockedRegistry, PrivateRegistry, locked_registry, private_registry

WEBHOOK_SECRET = secrets.token_hex(20)
Submit = Callable[[Crabpot, Mapping[str, Mapping[str, Any]]], dict[str, str]]


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster.from_environment()


@pytest.fixture(scope="session")
def forge(cluster: Cluster) -> Forge:
    return Forge.from_environment()


@pytest.fixture(scope="session")
def redis(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def settings(redis: str) -> Settings:
    """Of a ledger beside those that the processes share."""
    return Settings(redis_url=redis, prefix="collect")


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    ledger = Ledger.open(settings)
    await ledger.store_projects(parse_projects(PROJECTS))
    yield ledger
    await ledger.close()


@pytest.fixture(scope="session")
def locked(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockedRegistry]:
    """A registry that asks for a password."""
    with locked_registry(tmp_path_factory.mktemp("locked"), cluster.host) as registry:
        yield registry


@pytest.fixture(scope="session")
def private(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRegistry]:
    """A registry with a certificate of its own authority."""
    with private_registry(tmp_path_factory.mktemp("private"), cluster.host) as registry:
        yield registry


@pytest.fixture(scope="session")
def app(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """The repository of the main job, which the projects file knows."""
    repository = forge.create(f"app-{secrets.token_hex(3)}", tmp_path_factory.mktemp("app") / "clone")
    yield repository
    repository.delete()


@pytest.fixture(scope="session")
def crabpot(
    cluster: Cluster,
    redis: str,
    app: Repository,
    locked: LockedRegistry,
    private: PrivateRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crabpot]:
    """The crabpot that modules share: worker, watcher and server run from the first to the last test."""
    image = f"{cluster.registry}/e2e/{app.name}"
    rule = {"ref": "refs/heads/main", "image": image, "tags": ["{sha}", "{branch}", "latest"]}
    own = {
        "repository": app.url,
        "webhook_secret": {"env": "APP_WEBHOOK_SECRET"},
        "registries": {cluster.registry: {"insecure": True}},
        "rules": [{**rule, "build": {"build_args": {"GREETING": "hello from the forge"}}}],
    }
    registries = {
        **open_project(cluster)["registries"],
        locked.host: {"insecure": True, "secret": "worker-login"},
        private.host: {"certificate": str(private.certificate)},
    }
    projects = {"limits": {"max_builds": 6}, "projects": {"open": open_project(cluster, registries=registries), "app": own}}
    folder: Path = tmp_path_factory.mktemp("crabpot")
    with crabpot_on(cluster, redis, folder, "main", projects, readable=["worker-login"]) as crabpot:
        crabpot.secret("worker-login", {".dockerconfigjson": locked.docker_config()}, readable=True)
        crabpot.set_secret("APP_WEBHOOK_SECRET", WEBHOOK_SECRET)
        crabpot.start("watch", "worker", "serve")
        yield crabpot


@pytest.fixture(scope="session")
def submit_all() -> Submit:
    """Submit many builds at once, so that they run beside each other while tests look at them one by one: name -> build."""

    def submit(crabpot: Crabpot, requests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        return {name: crabpot.submit(crabpot.request(name, **fields)) for name, fields in requests.items()}

    return submit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure, show what each process said."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Crabpot):
                report.sections += [(f"log of {name}", process.tail(60)) for name, process in value.processes.items()]
    return report
