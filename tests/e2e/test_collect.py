"""Collecting the garbage of a registry that deploy/registry has put on the cluster, by Job and by exec, killed at every step."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from tests.collect_runs import SAVED, SITE, Around, Killed, drive
from tests.conftest import PROJECTS
from tests.e2e.harness_cluster import Cluster, missing, until
from tests.e2e.harness_collect import DeployedRegistry, deployed_registry, render
from tests.e2e.test_chart import schemas_of
from tests.integration.registry_server import OCI_MANIFEST, digest_of
from worker.cluster.connection import Api
from worker.cluster.watching import Pace
from worker.collect.kubernetes import KubernetesSite
from worker.collect.steps import Purpose
from worker.collect.workload import READ_ONLY
from worker.registry.credentials import DockerConfigFile

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def registry(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRegistry]:
    with deployed_registry(cluster, tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def stateful(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRegistry]:
    with deployed_registry(cluster, tmp_path_factory.mktemp("stateful"), "StatefulSet") as found:
        yield found


@pytest.fixture
async def ledger(redis: str) -> AsyncIterator[Ledger]:
    ledger = Ledger.open(Settings(redis_url=redis, prefix="collect"))
    await ledger.store_projects(parse_projects(PROJECTS))
    yield ledger
    await ledger.close()


class Content:
    """What is in the registry: what must stay, and what goes."""

    def __init__(self, registry: DeployedRegistry, mark: str) -> None:
        self.registry, self.mark = registry, mark
        push = registry.server.push_image
        layers = (b"base", mark.encode())
        self.kept = [(f"team/{mark}", push(f"team/{mark}", "v1", layers=layers)), ("team/tool", push("team/tool", "v1", layers=(b"base",)))]
        gone = push(f"team/{mark}", "v2", layers=(b"base", mark.encode() * 5000))
        with registry.server.http() as http:
            http.delete(f"team/{mark}/manifests/{digest_of(gone)}").raise_for_status()
        self.garbage = digest_of(mark.encode() * 5000)
        assert self.garbage in registry.blobs()

    def check(self) -> None:
        """The registry is read-write and as it was deployed, and what was pushed can be read."""
        until(self.registry.server.serves, "the registry serves")
        self.registry.server.push_image("team/after", self.mark, layers=(b"after",))
        with self.registry.server.http() as http:
            for repository, raw in self.kept:
                assert http.get(f"{repository}/manifests/{digest_of(raw)}", headers={"Accept": OCI_MANIFEST}).content == raw
                for part in (json.loads(raw)["config"], *json.loads(raw)["layers"]):
                    assert digest_of(http.get(f"{repository}/blobs/{part['digest']}").content) == part["digest"]
        workload = self.registry.workload()
        assert READ_ONLY not in json.dumps(workload["spec"])
        left = {**(workload["metadata"].get("annotations") or {}), **workload["spec"]["template"]["metadata"]["labels"]}
        assert not [key for key in left if key.startswith("crabpot.dev/") and "last-applied" not in key]
        assert "crabpot.dev" not in json.dumps(workload["spec"]["template"])


async def collect(ledger: Ledger, registry: DeployedRegistry, kubeconfig: Path, how: str, around: Around = lambda _: None, **named):
    settings = registry.settings(how)
    api = Api(kubeconfig, None, Pace())
    try:
        site = KubernetesSite(settings, api)
        return await drive(ledger, settings, site, DockerConfigFile(registry.docker_config), around, seconds=240, pause=0.3, **named)
    finally:
        await api.close()


def test_every_object_is_valid_to_the_cluster_s_own_schemas(cluster: Cluster, tmp_path: Path) -> None:
    if shutil.which("kubeconform") is None:
        missing("kubeconform is not on the PATH")
    (tmp_path / "schemas").mkdir()
    command = ["kubeconform", "-strict", "-summary", "-schema-location", schemas_of(cluster, tmp_path / "schemas"), "-"]
    (tmp_path / "overlay").mkdir()
    for rendered in (
        subprocess.run(
            ["kubectl", "kustomize", "deploy/registry"], text=True, capture_output=True, check=True, cwd=Path(__file__).parents[2]
        ).stdout,
        render(tmp_path / "overlay", "somewhere", "volume"),
    ):
        done = subprocess.run(command, input=rendered, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Invalid: 0, Errors: 0, Skipped: 0" in done.stdout
        broken = rendered.replace("fsGroupChangePolicy", "fsGroupPolicy")
        assert subprocess.run(command, input=broken, text=True, capture_output=True, check=False).returncode != 0, "this check can fail"


def test_the_registry_is_hardened(registry: DeployedRegistry) -> None:
    """Its namespace enforces the restricted standard, so that it runs says most; and nobody gets in without a password."""
    pod = registry.workload()["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    with registry.server.http() as http:
        http.auth = None
        assert http.get("_catalog").status_code == 401


@pytest.mark.parametrize(("kind", "how"), [("registry", "job"), ("registry", "exec"), ("stateful", "job")])
async def test_killed_at_every_step_it_ends_read_write_and_nothing_pushed_is_lost(ledger, request, tmp_path, kind, how):
    """The worker is killed before and after each call to the cluster, and each time that it writes down where it stands, the first time that it
    comes there; all with no more rights than the chart gives.
    """
    registry: DeployedRegistry = request.getfixturevalue(kind)
    content = Content(registry, f"killed-{how}")
    account = registry.account(tmp_path, how)
    ahead = {f"{name} {when}" for name in SITE for when in ("before", "after")} | {f"save {step}" for step in SAVED}

    def around(what: str) -> None:
        if what in ahead:
            ahead.remove(what)
            raise Killed

    end = (await collect(ledger, registry, account, how, around, run=f"{kind}-{how}"))[-1]
    assert end.trouble is None, end.trouble
    assert not ahead
    assert content.garbage not in registry.blobs()
    assert end.dry.eligible >= (2 if how == "job" else 0)
    assert end.verified.manifests >= 2
    assert await ledger.holds.all() == []
    content.check()
    until(lambda: not (registry.cluster.get(registry.namespace, "jobs") or {}).get("items"), "no sweep is left")


async def test_a_plan_changes_nothing(ledger, registry, tmp_path):
    content = Content(registry, "planned")
    before = registry.workload()["metadata"]["generation"]
    end = (await collect(ledger, registry, registry.account(tmp_path, "exec"), "exec", purpose=Purpose.PLAN, run="planned"))[-1]
    assert end.trouble is None, end.trouble
    assert end.dry.eligible >= 2
    assert end.dry.bytes >= len(b"planned" * 5000)
    assert registry.workload()["metadata"]["generation"] == before
    assert content.garbage in registry.blobs()


async def test_a_controller_that_reverts_it_stops_the_run(ledger, registry, tmp_path):
    content = Content(registry, "reverted")
    happened: list[str] = []

    def around(what: str) -> None:
        if what == "dry_run after" and not happened:
            happened.append(what)
            registry.cluster.kubectl("--namespace", registry.namespace, "set", "env", "deployment/registry", f"{READ_ONLY}-")

    end = (await collect(ledger, registry, registry.account(tmp_path, "exec"), "exec", around, run="reverted"))[-1]
    assert "made it read-write again" in end.trouble
    assert not end.swept
    assert content.garbage in registry.blobs()
    content.check()
