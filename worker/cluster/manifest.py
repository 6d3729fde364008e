"""A launch as a Kubernetes pod. Pure; the hardening and each of its reasons stand here.

The pod can do no more than Kaniko needs: no API token, no privilege escalation, five capabilities (all inside Pod Security "baseline"):
without DAC_OVERRIDE a stage's clean-up fails, without the other four `chown`, `USER` and `RUN` as another user do.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from typing import Any

from worker.cluster import FolderMount, Launch, SecretMount

CONTAINER = "executor"
FINALIZER = "crabpot.dev/record-end"
"""Keeps a pod, whoever deletes it, until its end is recorded (as the Job controller does with its pods)."""
MANAGED_BY = "app.kubernetes.io/managed-by"
BUILD, ATTEMPT, PROJECT, PLATFORM = "crabpot.dev/build", "crabpot.dev/attempt", "crabpot.dev/project", "crabpot.dev/platform"
"""The platform is an annotation, since a label's value holds no slash."""
LEDGER = "crabpot.dev/ledger"
"""Whose pod it is: another crabpot may use the same namespace, and a Redis that lost its data must not take what runs for orphans."""
SELECTOR = f"{MANAGED_BY}=crabpot"
TERMINATION_GRACE = 5
"""Seconds; Kaniko has nothing to save when it is told to stop."""

_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def selector(ledger: str) -> str:
    """The label selector of a ledger's pods; of every crabpot's where none is named."""
    return f"{SELECTOR},{LEDGER}={ledger}" if ledger else SELECTOR


def pod_manifest(launch: Launch, ledger: str = "") -> dict[str, Any]:
    """The pod to create, as JSON; `ledger` is the identity of the ledger whose build it is."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": launch.pod,
            "namespace": launch.namespace,
            "labels": {
                **launch.labels,
                MANAGED_BY: "crabpot",
                **({LEDGER: ledger} if ledger else {}),
                BUILD: launch.build,
                ATTEMPT: str(launch.attempt),
                PROJECT: launch.project,
            },
            "annotations": {**launch.annotations, PLATFORM: launch.platform},
            "finalizers": [FINALIZER],
        },
        "spec": _without_empty(
            {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": TERMINATION_GRACE,
                "activeDeadlineSeconds": math.ceil(launch.run_deadline.total_seconds()) if launch.run_deadline else None,
                "serviceAccountName": launch.service_account,
                "imagePullSecrets": [{"name": name} for name in launch.image_pull_secrets],
                "nodeName": launch.node_name,
                "nodeSelector": launch.node_selector,
                "tolerations": list(launch.tolerations),
                "affinity": launch.affinity,
                "runtimeClassName": launch.runtime_class,
                "priorityClassName": launch.priority_class,
                "containers": [_container(launch)],
                "volumes": [
                    *(_secret_volume(number, mount) for number, mount in enumerate(launch.secret_mounts)),
                    *(_folder_volume(number, folder) for number, folder in enumerate(launch.folders)),
                ],
            }
        ),
    }


def _container(launch: Launch) -> dict[str, Any]:
    return _without_empty(
        {
            "name": CONTAINER,
            "image": launch.image,
            "imagePullPolicy": "IfNotPresent",
            "args": [_literal(argument) for argument in launch.arguments],
            "env": list(_variables(launch)),
            "resources": _resources(launch),
            "securityContext": _SECURITY,
            # Kaniko writes the digest there; where it wrote nothing, the log's end stands in.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                *(_secret_volume_mount(number, mount) for number, mount in enumerate(launch.secret_mounts)),
                *(_folder_volume_mount(number, folder) for number, folder in enumerate(launch.folders)),
            ],
        }
    )


def _literal(text: str) -> str:
    """Kubernetes expands `$(NAME)` in arguments and variables, and reads `$$` as `$`."""
    return text.replace("$", "$$")


def _variables(launch: Launch) -> Iterator[dict[str, Any]]:
    for name, value in launch.environment.items():
        yield {"name": name, "value": _literal(value)}
    for variable in launch.secret_variables:
        key = {"name": variable.secret, "key": variable.key, "optional": variable.optional}
        yield {"name": variable.name, "valueFrom": {"secretKeyRef": key}}


def _resources(launch: Launch) -> dict[str, Any]:
    """Requests equal limits: a build is never evicted for memory that it was promised."""
    amounts = _without_empty({"cpu": launch.cpu, "memory": launch.memory, "ephemeral-storage": launch.ephemeral_storage})
    return {"requests": amounts, "limits": amounts} if amounts else {}


def _secret_volume(number: int, mount: SecretMount) -> dict[str, Any]:
    item = {"key": mount.key, "path": posixpath.basename(mount.path)}
    # For root alone: a RUN as another user does not read what Kaniko pushes with.
    return {"name": f"secret-{number}", "secret": {"secretName": mount.secret, "defaultMode": 0o400, "items": [item]}}


def _secret_volume_mount(number: int, mount: SecretMount) -> dict[str, Any]:
    return {"name": f"secret-{number}", "mountPath": mount.path, "subPath": posixpath.basename(mount.path), "readOnly": True}


def _folder_volume(number: int, folder: FolderMount) -> dict[str, Any]:
    name = f"folder-{number}"
    if folder.host_path:
        return {"name": name, "hostPath": {"path": folder.host_path, "type": "DirectoryOrCreate" if folder.writable else "Directory"}}
    if folder.claim:
        return {"name": name, "persistentVolumeClaim": {"claimName": folder.claim}}
    return {"name": name, "configMap": {"name": folder.config_map}}


def _folder_volume_mount(number: int, folder: FolderMount) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": f"folder-{number}", "mountPath": folder.path, "readOnly": not folder.writable}
    if folder.config_map:
        # The volume's files are links into ..data, which COPY would copy as links that lead nowhere; ..data itself holds the files.
        mount["subPath"] = "..data"
    return mount


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value not in ([], {})}
