"""The registry of deploy/registry on the tests' cluster: its image made of the registry program, its claim a folder of the node."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from ledger.access import RegistryAccess
from ledger.collected import CollectedInKubernetes
from tests.e2e.harness import CHART
from tests.e2e.harness_cluster import ROOT, Cluster, missing, until
from tests.integration.registry_server import HTPASSWD, PASSWORD, USER, RegistryServer

BASE = ROOT / "deploy/registry"
IMAGE = "cluster.local/registry-e2e"


def load_image(cluster: Cluster, folder: Path) -> None:
    """An image of the registry program in an otherwise empty root: no shell, as a hardened image has none."""
    script = Path(os.environ.get("CLUSTER") or ROOT.parent / "shared/cluster/cluster").resolve()
    program = shutil.which("registry")
    if program is None or not os.access(script.parent / "image", os.X_OK):
        missing("the registry program and the cluster's `image` are not at hand; eval the output of `cluster env`")
    assert program
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(program, root / "bin/registry")
    linked = subprocess.run(["ldd", program], text=True, capture_output=True, check=False).stdout
    for library in re.findall(r"(/\S+\.so\S*)", linked):
        (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library.lstrip("/"))
    subprocess.run(
        [str(script.parent / "image"), f"{IMAGE}:1", str(folder / "image.tar"), str(root), "--env", "PATH=/bin", "--user", "65532"],
        check=True,
    )
    subprocess.run([str(script), "load", str(folder / "image.tar")], check=True, capture_output=True)


_TLS = {
    "env": [
        {"name": "REGISTRY_HTTP_TLS_CERTIFICATE", "value": "/etc/registry/tls/tls.crt"},
        {"name": "REGISTRY_HTTP_TLS_KEY", "value": "/etc/registry/tls/tls.key"},
    ],
    "volumeMounts": [{"name": "tls", "mountPath": "/etc/registry/tls", "readOnly": True}],
    **{probe: {"httpGet": {"scheme": "HTTPS"}} for probe in ("startupProbe", "readinessProbe")},
}
"""What somebody adds to the registry's container who has it serve TLS itself."""


def render(folder: Path, namespace: str, volume: str, kind: str = "Deployment", *, replicas: int = 1, tls: bool = False) -> str:
    """deploy/registry with what differs here: the image, a claim of a given volume, a port of the node, which kind of workload it is, how many
    pods it has and whether these serve TLS (by the secret `registry-tls`).
    """
    claim = {"spec": {"storageClassName": "", "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}}
    patches = [
        {
            "target": {"kind": "PersistentVolumeClaim"},
            "patch": yaml.safe_dump({"kind": "PersistentVolumeClaim", "metadata": {"name": "x"}, **claim}),
        },
        {
            "target": {"kind": "Service", "name": "registry"},
            "patch": yaml.safe_dump([{"op": "add", "path": "/spec/type", "value": "NodePort"}]),
        },
    ]
    pod: dict[str, Any] = {
        "containers": [{"name": "registry", **_TLS}],
        "volumes": [{"name": "tls", "secret": {"secretName": "registry-tls"}}],
    }
    deployment = {"replicas": replicas, **({"template": {"spec": pod}} if tls else {})}
    patches.append(
        {
            "target": {"kind": "Deployment"},
            "patch": yaml.safe_dump({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "registry"}, "spec": deployment}),
        }
    )
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [os.path.relpath(BASE, folder)],
        "images": [{"name": "docker.io/library/registry", "newName": IMAGE, "newTag": "1"}],
        "patches": patches,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    text = subprocess.run(["kubectl", "kustomize", str(folder)], text=True, capture_output=True, check=True).stdout
    return text if kind == "Deployment" else yaml.safe_dump_all(map(_stateful, yaml.safe_load_all(text)))


def _stateful(found: dict[str, Any]) -> dict[str, Any]:
    """A Deployment as the StatefulSet that somebody else might have made of it."""
    if found["kind"] != "Deployment":
        return found
    spec = {name: value for name, value in found["spec"].items() if name != "strategy"}
    return {**found, "kind": "StatefulSet", "spec": {**spec, "serviceName": "registry"}}


@dataclass
class DeployedRegistry:
    """A registry, and how tests reach past what they test."""

    cluster: Cluster
    namespace: str
    server: RegistryServer
    data: Path
    docker_config: Path
    kind: str = "Deployment"
    authority: Path | None = None
    """Of its pods' certificate, where they serve TLS."""

    @property
    def named(self) -> str:
        return f"{self.kind.lower()}/registry"

    def settings(self, how: str) -> CollectedInKubernetes:
        return CollectedInKubernetes(
            kind="kubernetes",
            registry=self.server.host,
            namespace=self.namespace,
            workload=self.named,
            claim="registry",
            how=how,  # type: ignore[arg-type]
            config="/etc/registry/config.yml",
            access=RegistryAccess(insecure=self.authority is None, certificate=self.authority, docker_config=self.docker_config),
        )

    def workload(self) -> dict[str, Any]:
        found = self.cluster.get(self.namespace, self.kind.lower(), "registry")
        assert found
        return found

    def blobs(self) -> set[str]:
        return {f"sha256:{data.parent.name}" for data in self.data.glob("docker/registry/v2/blobs/sha256/*/*/data")}

    def account(self, folder: Path, how: str) -> Path:
        """A kubeconfig of the account that the chart gives the right to collect this registry, and of no other right."""
        given = {"namespace": self.namespace, "workload": self.named, "claim": "registry", "how": how}
        values = [word for name, value in given.items() for word in ("--set", f"collect[0].{name}={value}")]
        system = f"{self.namespace}-system"
        self.cluster.apply("default", {"kind": "Namespace", "metadata": {"name": system}})
        only = ("--show-only", "templates/worker/collect.yaml", "--show-only", "templates/worker/serviceaccount.yaml")
        rendered = subprocess.run(
            [
                "helm",
                "template",
                "crabpot",
                str(CHART),
                "--namespace",
                system,
                "--kube-version",
                "1.36.0",
                "--set",
                "processes.enabled=false",
                *values,
                *only,
            ],
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        self.cluster.kubectl("apply", "--filename", "-", stdin=rendered)
        return self.cluster.kubeconfig_of(system, "crabpot-worker", folder / f"{how}.kubeconfig")


@dataclass(frozen=True)
class Tls:
    """A certificate authority of the test's own, and a certificate by it."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Self:
        """For one host name, and nothing else: no pod's address is in it."""
        folder.mkdir()
        made = cls(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
        signer = folder / "authority.key"
        new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
        subprocess.run([*new, "-keyout", signer, "-out", made.authority, "-subj", "/CN=e2e authority"], check=True, capture_output=True)
        by = ("-CA", made.authority, "-CAkey", signer, "-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=CA:FALSE")
        subprocess.run([*new, "-keyout", made.key, "-out", made.certificate, "-subj", f"/CN={name}", *by], check=True, capture_output=True)
        return made

    def secret(self) -> dict[str, Any]:
        data = {"tls.crt": self.certificate.read_text(), "tls.key": self.key.read_text()}
        return {"kind": "Secret", "metadata": {"name": "registry-tls"}, "type": "kubernetes.io/tls", "stringData": data}


@contextmanager
def deployed_registry(
    cluster: Cluster,
    folder: Path,
    kind: str = "Deployment",
    *,
    replicas: int = 1,
    tls: Tls | None = None,
    known_as: Callable[[str, int], str] = "{}:{}".format,
) -> Iterator[DeployedRegistry]:
    """deploy/registry in a namespace of its own. `known_as`: how it is called that listens at a node's address and port."""
    load_image(cluster, folder)
    namespace = f"e2e-collect-{secrets.token_hex(3)}"
    data = folder / "data"
    data.mkdir()
    os.chown(data, 65532, 65532)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    volume = {
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": str(data)},
        },
    }
    secret = {
        "kind": "Secret",
        "metadata": {"name": "registry"},
        "stringData": {"htpasswd": HTPASSWD, "http-secret": secrets.token_hex(16)},
    }
    (folder / "overlay").mkdir()
    (folder / "config.json").write_text("{}")
    with cluster.namespaces(namespace, f"{namespace}-system"):
        cluster.kubectl("create", "namespace", namespace)
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        cluster.apply(namespace, volume, secret, *([tls.secret()] if tls else ()))
        cluster.kubectl(
            "apply", "--filename", "-", stdin=render(folder / "overlay", namespace, namespace, kind, replicas=replicas, tls=tls is not None)
        )
        try:
            service = cluster.get(namespace, "service", "registry")
            assert service
            node = cluster.registry.rpartition(":")[0]
            host = known_as(node, service["spec"]["ports"][0]["nodePort"])
            server = RegistryServer(host, auth=(USER, PASSWORD), authority=tls.authority if tls else None)
            found = DeployedRegistry(cluster, namespace, server, data, folder / "config.json", kind, tls.authority if tls else None)
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            found.docker_config.write_text(json.dumps({"auths": {host: {"auth": login}}}))
            until(found.server.serves, lambda: f"the registry serves: {cluster.kubectl('--namespace', namespace, 'get', 'events')}", 60)
            yield found
        finally:
            cluster.kubectl("delete", "persistentvolume", namespace, "--ignore-not-found", "--wait=false")
