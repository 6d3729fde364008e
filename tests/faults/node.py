"""What happens to pods on their node: a test says it, and a deletion is obeyed as the kubelet obeys it."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.faults.kubernetes_api import Json
from tests.faults.pod_store import Change, PodStore, has_ended, time_of

NAME = "node-1"
KILLED = 137


class Node:
    """The node that all pods of a store run on."""

    def __init__(self, store: PodStore) -> None:
        self.store = store
        self.silent = False
        """A node that has lost its line: it obeys no deletion."""
        store.listeners.append(self._obey)

    def run(self, name: str) -> None:
        """The container starts."""

        def change(pod: Json) -> None:
            pod["spec"]["nodeName"] = NAME
            pod["status"] = {"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": _now()}}}]}

        self.store.alter(name, change)

    def say(self, name: str, *texts: str) -> None:
        """Lines of the container's log."""
        self.store.write_log(name, *texts)

    def end(self, name: str, exit_code: int = 0, message: str | None = None, reason: str | None = None) -> None:
        """The container ends; the pod's phase says so a moment later. A failure without a message leaves the log's end as one."""
        if not self._state(name).get("running"):
            self.run(name)
        started = self._state(name)["running"]["startedAt"]
        if exit_code and message is None:
            message = "\n".join(text for _, text in self.store.log(self.store.read(name)["metadata"]["uid"])[-80:])
        ended = {
            "exitCode": exit_code,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "startedAt": started,
            "finishedAt": _now(),
            **({"message": message} if message else {}),
        }
        self.store.alter(name, lambda pod: pod["status"].update(containerStatuses=[{"state": {"terminated": ended}}]))
        self._confirm(name, "Failed" if exit_code else "Succeeded")

    def wait(self, name: str, reason: str, message: str = "") -> None:
        """The container cannot start, as with ImagePullBackOff or CreateContainerConfigError."""

        def change(pod: Json) -> None:
            pod["spec"]["nodeName"] = NAME
            pod["status"] |= {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}

        self.store.alter(name, change)

    def find_no_room(self, name: str) -> None:
        """No node has room: the pod stays unscheduled."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
        self.store.alter(name, lambda pod: pod["status"].update(conditions=[condition]))

    def evict(self, name: str) -> None:
        """Taken off its node, by the API: marked first, then deleted."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}
        pod = self.store.alter(name, lambda pod: pod["status"].update(conditions=[condition]))
        self.store.delete(pod["metadata"]["namespace"], name, {})

    def vanish(self, name: str) -> None:
        """Deleted by force: no end is ever seen."""
        self.store.drop(name)

    def warn(self, name: str, reason: str, message: str) -> None:
        """An event that tells of a pod's trouble."""
        uid = self.store.read(name)["metadata"]["uid"]
        self.store.events.append({"reason": reason, "message": message, "lastTimestamp": _now(), "involvedObject": {"uid": uid}})

    def _obey(self, change: Change) -> None:
        """A deletion: SIGTERM, the container's end, and the word that nothing of the pod is left on the node."""
        pod, name = change.pod, change.pod["metadata"]["name"]
        asked = change.kind == "MODIFIED" and pod["metadata"].get("deletionGracePeriodSeconds")
        if not asked or self.silent or has_ended(pod):
            return
        if self._state(name).get("running"):
            self.end(name, KILLED)
        else:
            unknown = {"exitCode": KILLED, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}
            self.store.alter(name, lambda pod: pod["status"].update(containerStatuses=[{"state": {"terminated": unknown}}]))
            self._confirm(name, "Failed")

    def _confirm(self, name: str, phase: str) -> None:
        def change(pod: Json) -> None:
            pod["status"]["phase"] = phase
            if "deletionTimestamp" in pod["metadata"]:
                pod["metadata"]["deletionGracePeriodSeconds"] = 0

        if any(pod["metadata"]["name"] == name for pod in self.store.pods):
            self.store.alter(name, change)

    def _state(self, name: str) -> Json:
        containers = self.store.read(name)["status"].get("containerStatuses")
        return containers[0]["state"] if containers else {}


def _now() -> str:
    return time_of(datetime.now(UTC))
