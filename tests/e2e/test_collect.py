"""Collecting the garbage of a registry that deploy/registry has put on the cluster, by Job and by exec, killed at every step."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.errors import ClusterUnavailable
from tests.e2e.harness_cluster import Cluster, missing
from tests.e2e.harness_collect import DeployedRegistry, deployed_registry, render
from tests.e2e.harness_collect_runs import Content, collect, no_sweep_is_left, running
from tests.e2e.test_chart import schemas_of
from tests.faults.forks import Forks, forking
from tests.faults.points import SITE, Point, Side
from worker.cluster.connection import Api
from worker.cluster.watching import Pace
from worker.collect.kubernetes import KubernetesSite
from worker.collect.steps import Purpose
from worker.collect.workload import READ_ONLY

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def registry(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRegistry]:
    with deployed_registry(cluster, tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def stateful(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRegistry]:
    with deployed_registry(cluster, tmp_path_factory.mktemp("stateful"), "StatefulSet") as found:
        yield found


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("forks") / "log") as forks:
        yield forks


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
async def test_killed_at_every_step_it_ends_read_write_and_nothing_pushed_is_lost(settings, ledger, forks, request, tmp_path, kind, how):
    """Workers are killed with -9: before and after each change where the registry runs, each request that makes one, and each write of the first
    time that the run comes to a step; all with no more rights than the chart gives.
    """
    registry: DeployedRegistry = request.getfixturevalue(kind)
    content = Content(registry, f"killed-{how}")
    async with running(settings, ledger, registry, registry.account(tmp_path, how), how) as run:
        ahead = Counter({Point(f"site.{call}", side, 1): 1 for call in SITE for side in Side})
        ahead |= {Point("site.sweep", Side.AFTER, 1): 2, **{Point("kubernetes.release", side, 1): 3 for side in Side}}
        if how == "job":
            ahead |= {Point("kubernetes.create", side, 1): 2 for side in Side}
        kills = await run.killed_at(forks, ahead, content.nothing_is_lost)
        assert not +ahead
        assert kills > 40
        end = (await ledger.chores.read(run.chore)).progress["state"]
    assert end["trouble"] is None
    assert content.garbage not in registry.blobs()
    assert end["dry"]["eligible"] >= 2
    assert end["verified"]["manifests"] >= 2
    assert await ledger.holds.all() == []
    content.check()
    no_sweep_is_left(registry)


async def test_workers_that_were_stopped_and_wake_up_when_the_run_is_over_change_nothing(settings, ledger, forks, registry, tmp_path):
    """Each has just been told that the run is its own, and is about to ask for a change: one to close it, one to sweep, one to open it."""
    content = Content(registry, "stopped")
    async with running(settings, ledger, registry, registry.account(tmp_path, "job"), "job") as run:
        asleep = []
        for request, number in (("release", 1), ("create", 2), ("release", 3)):
            child = await run.start(forks, (Point(f"kubernetes.{request}", Side.BEFORE, number), "stop"))
            assert await child.stopped(), child.failure
            asleep.append(child)
            await run.claim_ends()
        await run.goes_on()
        assert (await ledger.chores.read(run.chore)).progress["state"]["trouble"] is None
        assert content.garbage not in registry.blobs()
        content.check()
        before = registry.workload()["metadata"]["generation"]
        for child in asleep:
            child.signal(signal.SIGCONT)
            assert await child.ended() == 0, child.failure
    assert registry.workload()["metadata"]["generation"] == before
    assert await ledger.holds.all() == []
    content.check()
    no_sweep_is_left(registry)


async def test_what_somebody_has_changed_since_it_was_looked_at_is_not_changed(registry, tmp_path):
    """As after a sleep between the claim and the request: the API server holds each change against what its worker had seen."""

    async def changed() -> None:
        mark = f"e2e.example.com/changed={secrets.token_hex(4)}"
        registry.cluster.kubectl("--namespace", registry.namespace, "annotate", "--overwrite", "deployment/registry", mark)

    api = Api(registry.account(tmp_path, "job"), None, Pace())
    try:
        site = KubernetesSite(registry.settings("job"), api)
        before = registry.workload()["spec"]
        for change in (site.close("late", changed), site.restart(changed), site.open(changed)):
            with pytest.raises(ClusterUnavailable, match="has been modified"):
                await change
        assert registry.workload()["spec"] == before
        late = await site.sweep("late", 1, resumed=False)
        assert "no pod of the registry is closed by this run" in late.why
    finally:
        await api.close()


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
