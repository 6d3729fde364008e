"""A registry's Deployment or StatefulSet: what is read of it, and what is asked for to close, restart, open and sweep it. Pure.

What a run changes carries its name, so that whoever finds it knows whose it is: an annotation on the workload, beside the variable that makes
the registry read-only, and a label on its pods, without which the sweep's pod finds no node; and those pods own the sweep. So a sweep that was
asked for too late (by a worker that slept, after the run had ended) never starts, and is taken away by the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.collected import CollectedInKubernetes
from worker.collect.steps import Finding, No, Wait, Well

READ_ONLY = "REGISTRY_STORAGE_MAINTENANCE_READONLY"
"""What makes distribution read-only; its value is the map, since a boolean there is ignored or refused."""
MARK = "crabpot.dev/collecting"
CLOSED = "crabpot.dev/closed"
RESTARTED = "crabpot.dev/restarted"
SWEEPS = "crabpot.dev/sweeps"
"""The label of a sweep's Job and pods: its registry's workload."""
_NO_MESH_LABELS = {"sidecar.istio.io/inject": "false"}
_NO_MESH = {**_NO_MESH_LABELS, "linkerd.io/inject": "disabled"}
"""A sweep speaks to nobody, and a sidecar would keep its pod from ending."""
_ELSEWHERE = frozenset({"S3", "S3AWS", "AZURE", "GCS", "OSS", "SWIFT", "INMEMORY"})
"""Distribution's storage drivers, as variables name them, whose blobs are in no claim."""
_ONCE = frozenset({"ReadWriteOnce", "ReadWriteOncePod"})
_LONGEST = 12 * 3600
"""Seconds after which the cluster ends a sweep that nobody looks after."""
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload's JSON, with the questions that a collection has."""

    settings: CollectedInKubernetes
    body: Json

    @property
    def template(self) -> Json:
        found: Json = self.body["spec"]["template"]
        return found

    @property
    def container(self) -> Json | None:
        """The registry's: the one named in the settings, else the only one."""
        containers: Sequence[Json] = self.template["spec"]["containers"]
        if self.settings.container is not None:
            return next((one for one in containers if one["name"] == self.settings.container), None)
        return containers[0] if len(containers) == 1 else None

    @property
    def selector(self) -> str | None:
        """As a list of pods takes it; None where it is made of more than labels."""
        given = self.body["spec"]["selector"]
        if given.get("matchExpressions") or not given.get("matchLabels"):
            return None
        return ",".join(f"{key}={value}" for key, value in sorted(given["matchLabels"].items()))

    @property
    def mark(self) -> str | None:
        found: str | None = (self.body["metadata"].get("annotations") or {}).get(MARK)
        return found

    @property
    def closed(self) -> bool:
        container = self.container
        return container is not None and any(variable["name"] == READ_ONLY for variable in container.get("env") or ())

    @property
    def closed_by(self) -> str | None:
        found: str | None = (self.template["metadata"].get("labels") or {}).get(CLOSED)
        return found

    @property
    def unsettled(self) -> str | None:
        """Whether its controller has done what was asked of it."""
        status, wanted = self.body.get("status") or {}, self.body["spec"].get("replicas", 1)
        if status.get("observedGeneration", 0) < self.body["metadata"]["generation"]:
            return "its controller has not seen the change yet"
        there, new, ready = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas"))
        if (there, new) != (wanted, wanted):
            return f"its pods are being replaced ({new} of {wanted} are new, {ready} ready)"
        if ready != wanted:
            return f"of its {wanted} pods {ready} are ready"
        if status.get("currentRevision") != status.get("updateRevision"):
            return "its pods are being replaced"
        return None

    @property
    def elsewhere(self) -> str | None:
        """The variable of the registry's that names another storage than a file system; what its configuration file says is not seen here."""
        for variable in (self.container or {}).get("env") or ():
            name, value = variable["name"], variable.get("value")
            driver = name.removeprefix("REGISTRY_STORAGE_").partition("_")[0] if name.startswith("REGISTRY_STORAGE_") else ""
            if driver in _ELSEWHERE or (name == "REGISTRY_STORAGE" and value not in (None, "", "filesystem")):
                return str(name)
        return None

    def look(self, claim: Json) -> Finding:
        """Whether it can be made read-only and swept: where its storage cannot be told, or is not its own, it cannot."""
        kind, _, name = self.settings.workload.partition("/")
        spec = self.body["spec"]
        if self.container is None:
            return No(f"{self.settings.workload} has several containers; say which is the registry's under `container`")
        if driver := self.elsewhere:
            return No(
                f"its blobs are not in the claim {self.settings.claim}: {driver} says that they are stored elsewhere, where nobody can see who shares"
                " them; such a registry is not collected"
            )
        if self.selector is None:
            return No(f"{self.settings.workload} selects its pods by more than labels, so nobody can be sure to have asked all of them")
        if not any(self._claims()):
            return No(f"no pod of {self.settings.workload} mounts the claim {self.settings.claim}; name the one that holds its blobs")
        if spec.get("replicas", 1) < 1:
            return No(f"{self.settings.workload} is scaled to 0")
        modes = frozenset(claim["spec"].get("accessModes") or ())
        shared = not modes & _ONCE
        if kind == "deployment" and not shared and spec.get("strategy", {}).get("type") != "Recreate":
            return No(
                f"deployment/{name} has a claim that one node can use at a time, and needs `strategy: {{type: Recreate}}` to be restarted"
            )
        if kind == "statefulset" and spec.get("updateStrategy", {}).get("type") == "OnDelete":
            return No(f"statefulset/{name} replaces no pod by itself (updateStrategy OnDelete); use RollingUpdate")
        if kind == "statefulset" and spec.get("replicas", 1) > 1 and spec.get("volumeClaimTemplates"):
            return No(f"each pod of statefulset/{name} has a claim of its own, which are several registries by one name")
        if self.settings.how == "job" and (made := self._made_at_start()):
            return No(
                f"what is in the volume {made} of {self.settings.workload} is made by its init container, which a Job of the sweep's own lacks; "
                "mount it from a ConfigMap or Secret" + (", or say `how: exec`" if kind == "deployment" else "")
            )
        if "ReadWriteOncePod" in modes and self.settings.how == "job":
            other = "say `how: exec`" if kind == "deployment" else "give it the access mode ReadWriteOnce, so that a sweep can mount it"
            return No(f"the claim {self.settings.claim} is for one pod alone; {other}")
        return Wait(self.unsettled) if self.unsettled else Well()

    def _made_at_start(self) -> str | None:
        """An empty volume that an init container fills for the registry's."""
        spec = self.template["spec"]
        empty = {volume["name"] for volume in spec.get("volumes") or () if "emptyDir" in volume}
        filled = {mount["name"] for init in spec.get("initContainers") or () for mount in init.get("volumeMounts") or ()}
        used = {mount["name"] for mount in (self.container or {}).get("volumeMounts") or ()}
        return next(iter(sorted(empty & filled & used)), None)

    def closing(self, run: str) -> Json:
        """The patch that makes it read-only."""
        return self._patch(run, {CLOSED: run}, {}, {"name": READ_ONLY, "value": '{"enabled":true}'})

    def restarting(self, mark: str) -> Json:
        """The patch that replaces its pods, and changes nothing else."""
        return {"spec": {"template": {"metadata": {"annotations": {RESTARTED: mark}}}}}

    def opening(self) -> Json:
        """The patch that takes back whatever a run has changed."""
        return self._patch(None, {CLOSED: None}, {RESTARTED: None}, {"name": READ_ONLY, "$patch": "delete"})

    def _patch(self, mark: str | None, labels: Json, annotations: Json, variable: Json) -> Json:
        container = self.container
        assert container is not None, "look() refuses it"
        return {
            "metadata": {"annotations": {MARK: mark}},
            "spec": {
                "template": {
                    "metadata": {"labels": labels, "annotations": annotations},
                    "spec": {"containers": [{"name": container["name"], "env": [variable]}]},
                }
            },
        }

    def job(self, name: str, run: str, command: Sequence[str], closed: Sequence[Json] | None) -> Json:
        """A sweep as a Job: the registry's own container with another command, on the node of its pod. `closed`: the pods that this run has
        closed, with which the cluster ends it; None: a dry run, beside any.
        """
        container = self.container
        assert container is not None, "look() refuses it"
        kept = ("name", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext", "resources", "workingDir")
        pod = (
            "securityContext",
            "nodeSelector",
            "tolerations",
            "imagePullSecrets",
            "serviceAccountName",
            "priorityClassName",
            "runtimeClassName",
        )
        spec = self.template["spec"]
        labels = {SWEEPS: self.settings.workload.replace("/", "."), MARK: run}
        matching = {**self.body["spec"]["selector"]["matchLabels"], **({} if closed is None else {CLOSED: run})}
        owners = [
            {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]} for pod in closed or ()
        ]
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.settings.namespace, "labels": labels, "ownerReferences": owners},
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": _LONGEST,
                "ttlSecondsAfterFinished": 86400,
                "template": {
                    "metadata": {"labels": {**labels, **_NO_MESH_LABELS}, "annotations": _NO_MESH},
                    "spec": {
                        **{field: spec[field] for field in pod if spec.get(field)},
                        "volumes": [*(spec.get("volumes") or ()), *self._template_volumes()],
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": False,
                        "enableServiceLinks": False,
                        "affinity": {
                            "podAffinity": {
                                "requiredDuringSchedulingIgnoredDuringExecution": [
                                    {"labelSelector": {"matchLabels": matching}, "topologyKey": "kubernetes.io/hostname"}
                                ]
                            }
                        },
                        "containers": [{**{field: container[field] for field in kept if container.get(field)}, "command": list(command)}],
                    },
                },
            },
        }

    def _template_volumes(self) -> Iterator[Json]:
        """What a stateful set adds to its pod: the claims that its templates make."""
        for template in self.body["spec"].get("volumeClaimTemplates") or ():
            name = template["metadata"]["name"]
            yield {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{self.body['metadata']['name']}-0"}}

    def _claims(self) -> Iterator[bool]:
        for volume in self.template["spec"].get("volumes") or ():
            yield (volume.get("persistentVolumeClaim") or {}).get("claimName") == self.settings.claim
        name = self.body["metadata"]["name"]
        for template in self.body["spec"].get("volumeClaimTemplates") or ():
            yield f"{template['metadata']['name']}-{name}-0" == self.settings.claim


def mounts(pod: Json, claim: str) -> bool:
    """Whether a pod uses a claim."""
    return any((volume.get("persistentVolumeClaim") or {}).get("claimName") == claim for volume in pod["spec"].get("volumes") or ())


def has_ended(pod: Json) -> bool:
    """Whether no container of a pod runs, or ever will."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
