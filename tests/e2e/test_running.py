"""What a real cluster says it uses, asked by the account of deploy/running: what was rolled back from, waits for its time, or runs."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ledger.plans import PlanState
from ledger.references import ImageReference
from ledger.settings import Settings
from ledger.shelf import Pushed
from tests.e2e.harness_cluster import ROOT, Cluster, until
from tests.integration.registry_server import RegistryServer, digest_of
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.cluster.workloads import Workload
from worker.retention.inquiries import Inquiries

pytestmark = pytest.mark.timeout(300)
ACCOUNT = ROOT / "deploy/running/running.yaml"
BASE = "base/busybox"
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Shop:
    """A namespace with workloads, and the repository of their images in the cluster's registry."""

    cluster: Cluster
    namespace: str
    server: RegistryServer

    @property
    def repository(self) -> str:
        return f"e2e/{self.namespace}/app"

    def image(self, tag: str) -> str:
        return f"{self.server.host}/{self.repository}:{tag}"

    def push(self, tag: str, created: str = OLD) -> str:
        """Busybox under a tag, as an image of its own; its digest."""
        with self.server.http() as http:
            manifest = http.get(f"{BASE}/manifests/1", headers={"Accept": MANIFESTS}).raise_for_status().json()
            config = http.get(f"{BASE}/blobs/{manifest['config']['digest']}").raise_for_status().json()
            for layer in manifest["layers"]:
                self.server.push_blob(self.repository, http.get(f"{BASE}/blobs/{layer['digest']}").raise_for_status().content)
        config |= {"created": created, "config": {**(config.get("config") or {}), "Labels": {"tag": tag}}}
        manifest["config"] |= self.server.push_blob(self.repository, json.dumps(config).encode())
        return digest_of(self.server.push_manifest(self.repository, tag, manifest))

    def copy(self, tag: str) -> tuple[str, str]:
        """Busybox under a tag as it is; the digests of manifest and configuration."""
        with self.server.http() as http:
            raw = http.get(f"{BASE}/manifests/1", headers={"Accept": MANIFESTS}).raise_for_status().content
            manifest = json.loads(raw)
            for part in (manifest["config"], *manifest["layers"]):
                self.server.push_blob(self.repository, http.get(f"{BASE}/blobs/{part['digest']}").raise_for_status().content)
            headers = {"Content-Type": manifest["mediaType"]}
            http.put(f"{self.repository}/manifests/{tag}", content=raw, headers=headers).raise_for_status()
        return digest_of(raw), manifest["config"]["digest"]

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments)

    def apply(self, kind: str, name: str, image: str, **spec: Any) -> None:
        template = {"metadata": {"labels": {"app": name}}, "spec": {**pod_of(image), "terminationGracePeriodSeconds": 0}}
        body = {"selector": {"matchLabels": {"app": name}}, "template": template, **spec}
        self.cluster.apply(self.namespace, {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": body})
        self.kubectl("rollout", "status", f"{kind.lower()}/{name}", "--timeout=60s")


def pod_of(image: str, **more: Any) -> dict[str, Any]:
    return {"containers": [{"name": "app", "image": image, "command": ["/bin/busybox", "sleep", "3600"], **more}]}


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Iterator[Shop]:
    namespace = f"e2e-running-{secrets.token_hex(3)}"
    with cluster.namespaces(namespace):
        cluster.kubectl("create", "namespace", namespace)
        yield Shop(cluster, namespace, RegistryServer(cluster.registry))


@pytest.fixture(scope="module")
def kubeconfig(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the account that deploy/running makes, by the script beside it."""
    cluster.kubectl("apply", "--filename", str(ACCOUNT))
    path = tmp_path_factory.mktemp("running") / "kubeconfig"

    def made() -> bool:
        done = subprocess.run([ROOT / "deploy/running/kubeconfig"], text=True, capture_output=True, check=False)
        path.write_text(done.stdout)
        return done.returncode == 0

    try:
        until(made, "the account has a token")
        yield path
    finally:
        cluster.kubectl("delete", "--filename", str(ACCOUNT), "--ignore-not-found", "--wait=false")


@pytest.fixture
async def site(redis: str, tmp_path: Path, shop: Shop, kubeconfig: Path) -> AsyncIterator[RetentionSite]:
    settings = Settings(redis_url=redis, prefix=shop.namespace, cluster="local", state=tmp_path)
    async with retention_site(settings, shop.server, shop.repository) as site:
        await site.settle({"apply": "automatic"}, clusters={"prod": {"kubeconfig": str(kubeconfig)}})
        yield site


async def told(site: RetentionSite, sha: str) -> Mapping[str, str]:
    """Why each tag stays or goes."""
    [repository] = json.loads(await site.ledger.plans.text(sha))["repositories"]
    return {one["tag"]: "; ".join(f"{reason['why']}: {reason['detail']}" for reason in one["reasons"]) for one in repository["decisions"]}


def test_the_account_may_list_what_makes_pods_and_nothing_else(cluster: Cluster, kubeconfig: Path) -> None:
    may = {right for right in cluster.rights(kubeconfig, "default") if not right.startswith("get /")}
    assert may == {f"list {kind.resource}" for kind in Workload}
    assert cluster.kubectl("auth", "can-i", "list", "pods", "--all-namespaces", kubeconfig=kubeconfig).strip() == "yes"


async def test_what_the_cluster_still_needs_stays_and_the_rest_goes(shop: Shop, site: RetentionSite) -> None:
    digests = {tag: shop.push(tag) for tag in ("web1", "web2", "web3", "nightly", "db1", "db2", "moved", "unused")}
    shop.push("new", RECENT)
    copied, config = shop.copy("imported")
    image = ImageReference.parse(shop.image("imported"))
    await site.ledger.shelf.record_push([image], Pushed(copied, datetime(2024, 1, 1, tzinfo=UTC), None))
    for tag in ("web1", "web2", "web3"):
        shop.apply("Deployment", "web", shop.image(tag))
    for tag in ("db1", "db2"):
        shop.apply("StatefulSet", "db", shop.image(tag), serviceName="db")
    shop.cluster.apply(
        shop.namespace,
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "nightly"},
            "spec": {
                "schedule": "0 3 * * *",
                "suspend": True,
                "jobTemplate": {"spec": {"template": {"spec": {**pod_of(shop.image("nightly")), "restartPolicy": "Never"}}}},
            },
        },
        # By a tag that is moved afterwards: its digest is known by the pod's status alone.
        {"kind": "Pod", "metadata": {"name": "by-tag"}, "spec": pod_of(shop.image("moved"))},
        # Never pulled: the runtime knows it by its configuration alone.
        {"kind": "Pod", "metadata": {"name": "imported"}, "spec": pod_of("cluster.local/busybox:1", imagePullPolicy="Never")},
    )
    shop.kubectl("wait", "pod/by-tag", "pod/imported", "--for=condition=Ready", "--timeout=60s")
    ids = {
        name: shop.kubectl("get", "pod", name, "--output", "jsonpath={.status.containerStatuses[0].imageID}")
        for name in ("by-tag", "imported")
    }
    assert ids["by-tag"].endswith(f"@{digests['moved']}")
    assert ids["imported"] == config
    with shop.server.http() as http:
        raw = http.get(f"{shop.repository}/manifests/{digests['moved']}", headers={"Accept": MANIFESTS})
        http.put(f"{shop.repository}/manifests/kept", content=raw.content, headers={"Content-Type": raw.headers["Content-Type"]})
    shop.push("moved")

    sha = await site.plan()
    assert (await site.ledger.plans.read(sha)).approved_by == "automatic", await site.ledger.plans.read(sha)
    why = await told(site, sha)
    prod = f"{shop.namespace}/%s of the cluster prod"
    assert f"running: deployment {prod % 'web'}" in why["web3"]
    assert f"running: deployment {prod % 'web, revision 2'}" in why["web2"]
    assert f"running: deployment {prod % 'web, revision 1'}" in why["web1"]
    assert f"running: stateful set {prod % 'db'}" in why["db2"]
    assert f"running: stateful set {prod % 'db, revision 1'}" in why["db1"]
    assert f"running: cron job {prod % 'nightly (suspended)'}" in why["nightly"]
    assert f"running: pod {prod % 'by-tag'}" in why["kept"]
    assert f"running: pod {prod % 'imported'}" in why["imported"]
    assert why["unused"].startswith("condemned")
    await site.run(f"apply:{sha}")
    assert site.people_see().keys() == why.keys() - {"unused"}


async def test_an_account_that_lost_its_rights_stops_what_is_automatic(shop: Shop, site: RetentionSite) -> None:
    shop.push("another")
    shop.cluster.kubectl("delete", "clusterrolebinding", "crabpot-running")
    source = (await site.ledger.site()).clusters["prod"]

    async def lacking() -> list[Workload]:
        return await Inquiries().lacking("prod", source)

    try:
        # The authorizer follows by a watch of its own.
        while len(await lacking()) < len(Workload):
            pass
        stored = await site.ledger.plans.read(await site.plan())
        assert stored.state is PlanState.PROPOSED
        [said] = stored.totals["review"]
        assert said.startswith(
            "the cluster prod did not say what runs there: its account may not list deployments.apps, list statefulsets.apps"
        )
    finally:
        shop.cluster.kubectl("apply", "--filename", str(ACCOUNT))
