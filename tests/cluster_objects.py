"""Objects of Kubernetes as its API tells them, as far as they say which images run."""

from __future__ import annotations

from typing import Any

HOST = "registry.example.com"


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": "shop", **more}


def pod_of(*images: str, **more: Any) -> dict[str, Any]:
    return {"containers": [{"name": f"c{number}", "image": image} for number, image in enumerate(images)], **more}


def making(name: str, *images: str, **spec: Any) -> dict[str, Any]:
    """What a deployment and its like look like."""
    return {"metadata": named(name), "spec": {"template": {"metadata": {}, "spec": pod_of(*images)}, **spec}}


def replica_set(revision: object, *images: str, replicas: int = 0, deployment: str = "web", uid: str = "") -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment, "uid": uid or f"uid-{deployment}", "controller": True}
    metadata = named(f"{deployment}-{revision}", ownerReferences=[owner], annotations={"deployment.kubernetes.io/revision": str(revision)})
    return {"metadata": metadata, "spec": {"replicas": replicas, "template": {"spec": pod_of(*images)}}}


def running(pod: dict[str, Any], *ids: str, kind: str = "containerStatuses") -> dict[str, Any]:
    return {"metadata": named("web-1-x"), "spec": pod, "status": {kind: [{"name": "c", "imageID": one} for one in ids]}}


def cron_job(name: str, *images: str, suspend: bool) -> dict[str, Any]:
    spec = {"suspend": suspend, "jobTemplate": {"spec": {"template": {"spec": pod_of(*images)}}}}
    return {"metadata": named(name), "spec": spec}
