"""A registry in Kubernetes as a collection looks at it and sweeps it, where the cluster does what real ones do and the tests' own does not:
logs that are cut and rotated, sidecars that never end, pods that share the claim.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from ledger.collected import CollectedInKubernetes
from tests.faults.scripted_kubernetes import FAST, serve
from worker.cluster.connection import Api
from worker.collect.judging import Eligible, read_dry_run
from worker.collect.kubernetes import KubernetesSite
from worker.collect.site import Swept
from worker.collect.steps import No, Wait, Well

SETTINGS = CollectedInKubernetes(kind="kubernetes", registry="r.example.com", namespace="r", workload="deployment/registry", claim="data")
A, B = (f"sha256:{letter * 64}" for letter in "ab")
MARKS = f"team/app: marking blob {A}\n" * 2000
FOUND = f"\n1 blobs marked, 1 blobs and 0 manifests eligible for deletion\nblob eligible for deletion: {B}\n"
WORKLOAD = """
metadata: {name: registry, generation: 2, resourceVersion: "1"}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: registry}}
  template:
    metadata: {labels: {app: registry}}
    spec:
      containers: [{name: registry, image: r, volumeMounts: [{name: data, mountPath: /d}]}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, readyReplicas: 1}
"""
RUNNING: dict[str, Any] = {"running": {}}


def ended(code: int) -> dict[str, Any]:
    return {"terminated": {"exitCode": code}}


@dataclass
class Cluster:
    """One registry, what mounts its claim, and the Jobs with the state of each one's own container."""

    workload: dict[str, Any] = field(default_factory=lambda: yaml.safe_load(WORKLOAD))
    pods: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """What is answered to each question after a log, and the state of the container after it."""
    asked: list[dict[str, str]] = field(default_factory=list)

    def pod(self, name: str, labels: dict[str, str], **status: Any) -> dict[str, Any]:
        volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        return {"metadata": {"name": name, "uid": name, "labels": labels}, "spec": {"volumes": volumes}, "status": status}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        *_, kind, name = request.path.split("/")
        if request.path.endswith("/log"):
            self.asked.append(dict(request.query))
            said, state = self.logs.pop(0)
            self.states[request.path.split("/")[-2].removesuffix("-pod")] = state
            return web.Response(text=said)
        if request.path.endswith("/deployments/registry"):
            return web.json_response(self.workload)
        if kind == "persistentvolumeclaims":
            return web.json_response({"spec": {"accessModes": ["ReadWriteOnce"]}})
        if request.method == "POST":
            made = await request.json()
            made["metadata"]["creationTimestamp"] = "2026-11-23T12:00:00Z"
            self.jobs[made["metadata"]["name"]], self.states[made["metadata"]["name"]] = made, RUNNING
            return web.json_response(made, status=201)
        if kind == "jobs":
            missing = {"kind": "Status", "code": 404, "message": "no such job"}
            return web.json_response(self.jobs[name]) if name in self.jobs else web.json_response(missing, status=404)
        found = self.pods
        if job := request.query.get("labelSelector", "").partition("job-name=")[2]:
            # The mesh's own container goes on for ever, so the pod does.
            statuses = [{"name": "mesh", "state": RUNNING}, {"name": "registry", "state": self.states[job]}]
            found = [self.pod(f"{job}-pod", {}, phase="Running", containerStatuses=statuses)]
        return web.json_response({"metadata": {}, "items": found})


@asynccontextmanager
async def site(folder: Path, cluster: Cluster, **changes: Any) -> AsyncIterator[KubernetesSite]:
    async with serve(folder) as (server, _):
        for kind in ("read", "create", "list", "log"):
            server.on(kind, cluster.answer)
        api = Api(folder / "kubeconfig", None, FAST)
        try:
            yield KubernetesSite(SETTINGS.model_copy(update=changes), api)
        finally:
            await api.close()


async def finished(work: Any) -> Any:
    """What it says once it waits no more."""
    async with asyncio.timeout(20):
        while isinstance(found := await work(), Wait):
            pass
    return found


async def test_a_dry_run_is_followed_and_only_what_goes_is_kept_of_its_log(tmp_path: Path) -> None:
    cluster = Cluster(logs=[(MARKS + FOUND, ended(0))])
    async with site(tmp_path, cluster) as here:
        found = await finished(lambda: here.dry_run("r1-0"))
    assert isinstance(found, Swept)
    assert read_dry_run(found.output) == Eligible(1, frozenset({B}), frozenset(), 0)
    assert len(found.output) < 500
    assert cluster.asked == [{"container": "registry", "follow": "true"}]


async def test_a_log_that_was_cut_is_followed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.collect.kubernetes._TOLD_LATE", 1)
    cluster = Cluster(logs=[(MARKS, RUNNING), (FOUND, ended(0))])
    async with site(tmp_path, cluster) as here:
        found = await finished(lambda: here.dry_run("r1-0"))
    assert read_dry_run(found.output) == Eligible(1, frozenset({B}), frozenset(), 0)
    assert list(cluster.jobs) == ["crabpot-dry-r1-0"]


async def test_a_log_whose_counts_were_rotated_away_is_made_once_more_and_then_refused(tmp_path: Path) -> None:
    """A worker came to it late, and the kubelet gives the newest part alone."""
    late = f"blob eligible for deletion: {B}\n"
    cluster = Cluster(logs=[(late, ended(0)), (FOUND, ended(0))])
    async with site(tmp_path, cluster) as here:
        assert isinstance(read_dry_run((await finished(lambda: here.dry_run("r1-0"))).output), Eligible)
    assert list(cluster.jobs) == ["crabpot-dry-r1-0", "crabpot-dry-r1-0-again"]
    cluster = Cluster(logs=[(late, ended(0)), (late, ended(0))])
    async with site(tmp_path, cluster) as here:
        assert "did not come to its end" in str(read_dry_run((await finished(lambda: here.dry_run("r1-0"))).output))
    assert len(cluster.jobs) == 2


async def test_a_dry_run_that_somebody_deletes_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(logs=[(MARKS, RUNNING), (MARKS + FOUND, ended(0))])
    async with site(tmp_path, cluster) as here:
        assert isinstance(await here.dry_run("r1-0"), Wait)
        follow = KubernetesSite._follow

        async def deleted(*given: Any) -> str:
            cluster.jobs.clear()
            return await follow(*given)

        monkeypatch.setattr(KubernetesSite, "_follow", deleted)
        assert isinstance(await here.dry_run("r1-0"), Wait), "a plan restarts no registry"
        monkeypatch.undo()
        assert isinstance(await finished(lambda: here.dry_run("r1-0")), Swept)


async def test_a_sweep_beside_a_sidecar_that_never_ends_has_ended_with_its_own_container(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pods = [cluster.pod("registry-1", {"app": "registry", "crabpot.dev/closed": "r1"}, phase="Running")]
    async with site(tmp_path, cluster) as here:
        assert isinstance(await here.sweep("r1", 1, resumed=False), Wait)
        assert isinstance(await here.sweep("r1", 1, resumed=True), Wait)
        cluster.states["crabpot-sweep-r1-1"] = ended(0)
        assert isinstance(await here.sweep("r1", 1, resumed=True), Swept)
        cluster.states["crabpot-sweep-r1-1"] = ended(3)
        cluster.logs = [("no space left", ended(3))]
        failed = await here.sweep("r1", 1, resumed=True)
    assert isinstance(failed, No)
    assert "failed: no space left" in failed.why
    template = cluster.jobs["crabpot-sweep-r1-1"]["spec"]["template"]["metadata"]
    assert template["annotations"] == {"sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"}
    assert template["labels"]["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize(
    ("labels", "phase", "refused"),
    [
        ({"app": "viewer"}, "Running", True),
        ({"app": "viewer"}, "Succeeded", False),
        ({"app": "registry"}, "Running", False),
        ({"crabpot.dev/sweeps": "deployment.registry"}, "Running", False),
    ],
)
async def test_a_pod_that_shares_the_claim_and_cannot_be_made_read_only_is_refused(
    tmp_path: Path, labels: dict[str, str], phase: str, refused: bool
) -> None:
    cluster = Cluster()
    cluster.pods = [cluster.pod("other", labels, phase=phase)]
    async with site(tmp_path, cluster) as here:
        found, standing = await here.look(), await here.standing()
    if refused:
        assert isinstance(found, No)
        assert "the pod other mounts the claim data too, and cannot be made read-only" in found.why
        assert standing.unsettled == "the pod other mounts its claim too"
    else:
        assert isinstance(found, Well), found
        assert "mounts its claim too" not in json.dumps(standing.unsettled)


async def test_a_configuration_that_an_init_container_makes_is_no_job_s(tmp_path: Path) -> None:
    cluster = Cluster()
    spec = cluster.workload["spec"]["template"]["spec"]
    spec["volumes"].append({"name": "conf", "emptyDir": {}})
    spec["initContainers"] = [{"name": "render", "volumeMounts": [{"name": "conf", "mountPath": "/c"}]}]
    async with site(tmp_path, cluster) as here:
        assert isinstance(await here.look(), Well)
        spec["containers"][0]["volumeMounts"].append({"name": "conf", "mountPath": "/etc/registry"})
        found = await here.look()
    assert isinstance(found, No)
    assert "the volume conf of deployment/registry is made by its init container" in found.why
    async with site(tmp_path, cluster, how="exec") as here:
        assert isinstance(await here.look(), Well)
