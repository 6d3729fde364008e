"""A sweep's Job as the cluster tells of it. Pure.

What counts is the sweep's own container: a mesh that puts another beside it keeps the pod, and so the Job, from ever ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.collect.steps import No, Wait
from worker.collect.workload import Json

_PENDING = timedelta(minutes=10)
"""How long a sweep's pod may be without a node or an image."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A Job, and the pods that it has made."""

    body: Json
    pods: Sequence[Json]

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def container(self) -> str:
        return str(self.body["spec"]["template"]["spec"]["containers"][0]["name"])

    @property
    def pod(self) -> str | None:
        """The one in which the sweep runs or ran."""
        return next((str(pod["metadata"]["name"]) for pod in self.pods if self._state(pod).keys() & {"running", "terminated"}), None)

    @property
    def done(self) -> bool:
        """It came to its end, and all was well."""
        return "Complete" in ends_of(self.body) or 0 in self._codes()

    @property
    def failed(self) -> bool:
        return "Failed" in ends_of(self.body) or any(code != 0 for code in self._codes())

    def waits(self, now: datetime) -> Wait | No:
        """What is waited for while it has not ended."""
        why = next((why for pod in self.pods if (why := _not_started(pod))), None)
        if why and now - datetime.fromisoformat(self.body["metadata"]["creationTimestamp"]) > _PENDING:
            return No(f"the pod of the Job {self.name} does not start: {why}")
        return Wait(f"the Job {self.name} {'does not run yet: ' + why if why else 'runs'}")

    def _codes(self) -> list[int]:
        return [state["terminated"]["exitCode"] for pod in self.pods if "terminated" in (state := self._state(pod))]

    def _state(self, pod: Json) -> Json:
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        return next((one["state"] for one in statuses if one["name"] == self.container), {})


def ends_of(job: Json) -> set[str]:
    """How a Job has ended: Complete or Failed; nothing while it goes on."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return {condition["type"] for condition in conditions if condition["status"] == "True"} & {"Complete", "Failed"}


def _not_started(pod: Json) -> str | None:
    """Why a pod does not run yet."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return None
    for container in status.get("containerStatuses") or ():
        waiting = container["state"].get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"[:300]
    return (
        next((str(one.get("message") or "") for one in status.get("conditions") or () if one["status"] == "False"), "") or "it is pending"
    )
