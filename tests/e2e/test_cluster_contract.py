"""The Kubernetes cluster keeps the contract of every cluster, and does what only a real API server and kubelet can show."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from kubernetes_asyncio.config import incluster_config

from ledger.errors import ClusterDenied, LaunchRefused, NoRoom
from tests.contract import GRACE, ClusterContract, Kind, ended, is_gone, log_of, seen, until
from tests.e2e.harness_cluster import Cluster as Administrator
from worker.cluster import FolderMount, Launch, Phase, PodName, SecretMount, SecretVariable
from worker.cluster.kubernetes import KubernetesCluster
from worker.outcome import outcome, pending

BUSYBOX = os.environ.get("CLUSTER_BUSYBOX_IMAGE", "cluster.local/busybox:1")
"""An image without an entrypoint that has /bin/sh."""
SCRIPTS: dict[str, str] = {
    "succeed": "echo working; printf 'sha256:%064d' 7 >/dev/termination-log",
    "fail": "echo boom >&2; exit 3",
    "sleep": "trap 'exit 143' TERM; echo working; sleep 600 & wait",
    "echo": 'for argument; do printf "[%s]\\n" "$argument"; done',
}


@pytest.fixture(scope="module")
def administrator() -> Administrator:
    return Administrator.from_environment()


@pytest.fixture(scope="module")
def namespaces(administrator: Administrator) -> Iterator[tuple[str, str]]:
    """Two, so that watches are merged and pods are looked for; launches go to the second."""
    names = (f"contract-{secrets.token_hex(3)}", f"contract-{secrets.token_hex(3)}")
    with administrator.namespaces(*names):
        for name in names:
            administrator.kubectl("create", "namespace", name)
        yield names


@pytest.fixture
async def cluster(administrator: Administrator, namespaces: tuple[str, str]) -> AsyncIterator[KubernetesCluster]:
    cluster = KubernetesCluster(namespaces, kubeconfig=Path(administrator.kubeconfig))
    yield cluster
    await cluster.close()


@pytest.fixture
def make_launch(namespaces: tuple[str, str]) -> Any:
    def launch(kind: Kind, **changes: Any) -> Launch:
        return shell(namespaces[1], SCRIPTS[kind], **changes)

    return launch


def shell(namespace: str, script: str, **changes: Any) -> Launch:
    build = changes.pop("build", str(uuid4()))
    arguments = ("/bin/sh", "-c", script, "sh", *changes.pop("arguments", ()))
    fields = {"pod": PodName(f"crabpot-{build}-1-abcdef"), "attempt": 1, "platform": "linux/amd64", "project": "demo", "image": BUSYBOX}
    return Launch(build=build, namespace=namespace, arguments=arguments, **{**fields, **changes})


class TestContract(ClusterContract):
    async def test_mounts_and_variables(
        self, cluster: KubernetesCluster, run: Any, administrator: Administrator, namespaces: tuple[str, str]
    ) -> None:
        """A ConfigMap's files are files, not links; secrets are for root alone; a value with dollars stays as it is."""
        administrator.apply(
            namespaces[1],
            {"kind": "ConfigMap", "metadata": {"name": "files"}, "data": {"Dockerfile": "FROM scratch"}},
            {"kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"key": "hidden"}},
        )
        script = """
            ls -A /files; [ -L /files/Dockerfile ] && echo link; cat /files/Dockerfile; echo
            touch /files/new 2>/dev/null && echo writable
            stat -c %a /deep/config.json; cat /deep/config.json; echo; echo "$HIDDEN"; echo "$DOLLARS"
            [ -e /var/run/secrets/kubernetes.io ] && echo token
            grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status
        """
        launch = shell(
            namespaces[1],
            script,
            folders=(FolderMount(path="/files", config_map="files"),),
            secret_mounts=(SecretMount(secret="secret", key="key", path="/deep/config.json"),),
            secret_variables=(SecretVariable(name="HIDDEN", secret="secret", key="key"),),
            environment={"DOLLARS": "$(HIDDEN) $$ $HOME"},
        )
        pod = await run(launch)
        await ended(cluster, pod.name)
        assert (await log_of(cluster, pod.name)).splitlines() == [
            "Dockerfile",
            "FROM scratch",
            "400",
            "hidden",
            "hidden",
            "$(HIDDEN) $$ $HOME",
            "CapEff:\t00000000000000cb",  # CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID
            "NoNewPrivs:\t1",
        ]

    async def test_out_of_memory(self, cluster: KubernetesCluster, run: Any, namespaces: tuple[str, str]) -> None:
        pod = await run(shell(namespaces[1], "head -c 200m /dev/zero | tail >/dev/null; exit $?", memory="24Mi"))
        found = outcome(await ended(cluster, pod.name), (), pushes=True)
        assert found.reason == "out_of_memory"

    @pytest.mark.parametrize(
        ("changes", "word", "reason"),
        [
            ({"node_selector": {"no": "such"}}, "Unschedulable", "unschedulable"),
            ({"secret_variables": (SecretVariable(name="X", secret="no-such", key="k"),)}, "CreateContainerConfigError", "config_error"),
            ({"image": "UPPER:::bad"}, "InvalidImageName", "config_error"),
        ],
    )
    async def test_pods_without_hope(
        self, cluster: KubernetesCluster, run: Any, namespaces: tuple[str, str], changes: dict[str, Any], word: str, reason: str
    ) -> None:
        pod = await run(shell(namespaces[1], "true", **changes))
        stuck = await seen(cluster, pod.name, lambda pod: pod.reason == word)
        found = pending(stuck)
        assert found is not None
        assert found.reason == reason

    async def test_a_deleted_pod_that_never_started_ends(self, cluster: KubernetesCluster, run: Any, namespaces: tuple[str, str]) -> None:
        """With no node, and with one: each is seen ended, so that its slot comes back."""
        for changes in ({"node_selector": {"no": "such"}}, {"image": "UPPER:::bad"}):
            pod = await run(shell(namespaces[1], "true", **changes))
            await seen(cluster, pod.name, lambda pod: bool(pod.reason) and pod.reason != "ContainerCreating")
            await cluster.delete(pod.name, pod.uid, GRACE)
            end = await seen(cluster, pod.name, lambda pod: pod.phase is Phase.ENDED)
            assert end.held
            assert end.exit_code != 0

    async def test_a_warning_explains_a_secret_that_cannot_be_mounted(
        self, cluster: KubernetesCluster, run: Any, namespaces: tuple[str, str]
    ) -> None:
        pod = await run(shell(namespaces[1], "true", secret_mounts=(SecretMount(secret="no-such", key="k", path="/x"),)))
        await seen(cluster, pod.name, lambda pod: pod.reason == "ContainerCreating")
        while (found := await cluster.explain(pod.name, pod.uid)) is None:
            pass
        assert found[0] == "FailedMount"
        assert 'secret "no-such" not found' in found[1]

    async def test_quota_is_no_room_and_nonsense_is_refused(
        self, cluster: KubernetesCluster, administrator: Administrator, namespaces: tuple[str, str]
    ) -> None:
        with pytest.raises(LaunchRefused):
            await cluster.launch(shell(namespaces[1], "true", service_account="no-such"))
        with pytest.raises(LaunchRefused):
            await cluster.launch(shell("no-such-namespace", "true"))
        administrator.apply(namespaces[0], {"kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
        with pytest.raises(NoRoom):
            await cluster.launch(shell(namespaces[0], "true"))

    async def test_only_labelled_secrets_are_read(
        self, cluster: KubernetesCluster, administrator: Administrator, namespaces: tuple[str, str]
    ) -> None:
        secret = {"kind": "Secret", "metadata": {"name": "login"}, "stringData": {"a": "b"}}
        administrator.apply(namespaces[1], secret)
        with pytest.raises(ClusterDenied, match="label secret login"):
            await cluster.read_secret(namespaces[1], "login")
        administrator.kubectl("--namespace", namespaces[1], "label", "secret", "login", "crabpot.dev/readable=true")
        assert await cluster.read_secret(namespaces[1], "login") == {"a": b"b"}

    async def test_an_account_without_rights_is_told_which(
        self, administrator: Administrator, namespaces: tuple[str, str], tmp_path: Path
    ) -> None:
        path = administrator.kubeconfig_of(namespaces[1], "default", tmp_path / "kubeconfig")
        cluster = KubernetesCluster(namespaces, kubeconfig=path)
        try:
            missing = await cluster.check_rights(namespaces[1])
            assert {"create pods", "watch pods", "get pods/log"} <= set(missing)
            with pytest.raises(ClusterDenied):
                await cluster.pods()
            with pytest.raises(ClusterDenied):
                await cluster.launch(shell(namespaces[1], "true"))
        finally:
            await cluster.close()

    async def test_inside_the_cluster_the_account_is_the_pods_own(
        self, administrator: Administrator, namespaces: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the files and variables that a pod finds, and no kubeconfig."""
        account = json.loads(administrator.kubeconfig_of(namespaces[1], "default", tmp_path / "kubeconfig").read_text())
        given, address = account["clusters"][0]["cluster"], urlsplit(account["clusters"][0]["cluster"]["server"])
        (tmp_path / "token").write_text(account["users"][0]["user"]["token"])
        (tmp_path / "ca.crt").write_bytes(base64.b64decode(given["certificate-authority-data"]))
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(address.hostname))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port))
        cluster = KubernetesCluster(namespaces)
        try:
            with pytest.raises(ClusterDenied, match=f"system:serviceaccount:{namespaces[1]}:default"):
                await cluster.pods()
        finally:
            await cluster.close()

    async def test_a_force_deleted_pod_is_held_by_its_finalizer(
        self, cluster: KubernetesCluster, run: Any, administrator: Administrator, make_launch: Any
    ) -> None:
        """Whoever deletes it and however: its end is told before it goes."""
        launch = make_launch("sleep")
        pod = await run(launch)
        await seen(cluster, pod.name, lambda pod: pod.phase is Phase.RUNNING)
        before = await cluster.pods()
        administrator.kubectl("--namespace", launch.namespace, "delete", "pod", pod.name, "--force", "--grace-period=0", "--wait=false")
        end = await seen(cluster, pod.name, lambda pod: pod.phase is Phase.ENDED)
        assert (end.held, end.deleting) == (True, True)
        assert outcome(end, (), pushes=True).reason == "pod_lost"
        await cluster.release(pod.name, pod.uid)
        await until(cluster, pod.name, is_gone, before.version)
