"""The pod that a launch becomes: its hardening, and that nothing in it is expanded."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from worker.cluster import FolderMount, Launch, PodName, SecretMount, SecretVariable
from worker.cluster.manifest import pod_manifest

PLAIN = Launch(
    pod=PodName("crabpot-b-1-abc"),
    build="b",
    attempt=1,
    platform="linux/arm64/v8",
    project="demo",
    namespace="builds",
    image="r.example.com/k:1",
    arguments=("--a=b",),
)


def container(launch: Launch) -> dict[str, Any]:
    (only,) = pod_manifest(launch)["spec"]["containers"]
    return dict(only)


def test_plain_pod() -> None:
    made = pod_manifest(PLAIN)
    assert made["metadata"] == {
        "name": "crabpot-b-1-abc",
        "namespace": "builds",
        "labels": {
            "app.kubernetes.io/managed-by": "crabpot",
            "crabpot.dev/build": "b",
            "crabpot.dev/attempt": "1",
            "crabpot.dev/project": "demo",
        },
        "annotations": {"crabpot.dev/platform": "linux/arm64/v8"},
        "finalizers": ["crabpot.dev/record-end"],
    }
    spec = dict(made["spec"])
    (only,) = spec.pop("containers")
    assert spec == {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
    }
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert only["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert not {"env", "resources", "volumeMounts"} & set(only)


def test_nothing_is_expanded() -> None:
    odd = "$(HOME) $$ $x $"
    made = container(replace(PLAIN, arguments=(odd,), environment={"A": odd}))
    # Kubernetes reads $$ as $ and expands nothing else without its own parenthesis after a single $.
    assert made["args"][0].replace("$$", "\0").count("$") == 0
    assert made["args"][0].replace("$$", "$") == odd
    assert made["env"] == [{"name": "A", "value": odd.replace("$", "$$")}]


def test_our_labels_cannot_be_forged() -> None:
    made = pod_manifest(
        replace(PLAIN, labels={"crabpot.dev/build": "other", "team": "a"}, annotations={"crabpot.dev/platform": "x", "note": "b"})
    )
    assert made["metadata"]["labels"]["crabpot.dev/build"] == "b"
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["annotations"] == {"note": "b", "crabpot.dev/platform": "linux/arm64/v8"}


def test_secrets() -> None:
    launch = replace(
        PLAIN,
        secret_mounts=(SecretMount(secret="push", key=".dockerconfigjson", path="/kaniko/.docker/config.json"),),
        secret_variables=(
            SecretVariable(name="GIT_TOKEN", secret="forge", key="token"),
            SecretVariable(name="X", secret="s", key="k", optional=True),
        ),
    )
    assert pod_manifest(launch)["spec"]["volumes"] == [
        {
            "name": "secret-0",
            "secret": {"secretName": "push", "defaultMode": 0o400, "items": [{"key": ".dockerconfigjson", "path": "config.json"}]},
        }
    ]
    made = container(launch)
    assert made["volumeMounts"] == [
        {"name": "secret-0", "mountPath": "/kaniko/.docker/config.json", "subPath": "config.json", "readOnly": True}
    ]
    assert made["env"] == [
        {"name": "GIT_TOKEN", "valueFrom": {"secretKeyRef": {"name": "forge", "key": "token", "optional": False}}},
        {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
    ]


def test_folders() -> None:
    launch = replace(
        PLAIN,
        folders=(
            FolderMount(path="/a", host_path="/srv/a"),
            FolderMount(path="/b", host_path="/srv/b", writable=True),
            FolderMount(path="/c", claim="code"),
            FolderMount(path="/d", config_map="code"),
        ),
    )
    assert pod_manifest(launch)["spec"]["volumes"] == [
        {"name": "folder-0", "hostPath": {"path": "/srv/a", "type": "Directory"}},
        {"name": "folder-1", "hostPath": {"path": "/srv/b", "type": "DirectoryOrCreate"}},
        {"name": "folder-2", "persistentVolumeClaim": {"claimName": "code"}},
        {"name": "folder-3", "configMap": {"name": "code"}},
    ]
    assert container(launch)["volumeMounts"] == [
        {"name": "folder-0", "mountPath": "/a", "readOnly": True},
        {"name": "folder-1", "mountPath": "/b", "readOnly": False},
        {"name": "folder-2", "mountPath": "/c", "readOnly": True},
        {"name": "folder-3", "mountPath": "/d", "readOnly": True, "subPath": "..data"},  # the files themselves, not the links to them
    ]


def test_resources_deadline_and_placement() -> None:
    launch = replace(
        PLAIN,
        cpu="500m",
        memory="1Gi",
        ephemeral_storage="2Gi",
        run_deadline=timedelta(seconds=90.2),
        node_selector={"disk": "ssd"},
        node_name="node1",
        tolerations=({"key": "a", "operator": "Exists"},),
        affinity={"nodeAffinity": {"x": [1]}},
        runtime_class="gvisor",
        priority_class="low",
        service_account="builder",
        image_pull_secrets=("pull",),
    )
    spec = pod_manifest(launch)["spec"]
    amounts = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "2Gi"}
    assert container(launch)["resources"] == {"requests": amounts, "limits": amounts}
    assert spec["activeDeadlineSeconds"] == 91
    assert (spec["nodeSelector"], spec["nodeName"], spec["tolerations"]) == ({"disk": "ssd"}, "node1", [{"key": "a", "operator": "Exists"}])
    assert (spec["affinity"], spec["runtimeClassName"], spec["priorityClassName"]) == ({"nodeAffinity": {"x": [1]}}, "gvisor", "low")
    assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("builder", [{"name": "pull"}])
    assert spec["automountServiceAccountToken"] is False
