"""What Kubernetes tells of a pod, as our `Pod`. Pure, on the API's raw JSON: model classes cost ten times the time and memory.

The end is the container's, not the pod's: the kubelet publishes the container's end 1.5 to 2 s before the pod's phase turns terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import structlog

from worker.cluster import Phase, Pod, PodName
from worker.cluster.manifest import ATTEMPT, BUILD, FINALIZER, PLATFORM

log = structlog.get_logger()
_FINISHED = frozenset({"Succeeded", "Failed"})


def pod_of_ours(raw: Mapping[str, Any]) -> Pod | None:
    """A pod from its JSON, or None for one that somebody else labelled as ours, or changed beyond recognition: it must not stop the rest."""
    try:
        return read_pod(raw)
    except ValueError as error:
        log.warning("foreign_pod", error=str(error))
        return None


def read_pod(raw: Mapping[str, Any]) -> Pod:
    """A pod of ours from its JSON. ValueError for one that lacks what crabpot's pods carry."""
    metadata, spec, status = raw.get("metadata") or {}, raw.get("spec") or {}, raw.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    try:
        identity = PodName(metadata["name"]), metadata["uid"], labels[BUILD], int(labels[ATTEMPT]), annotations[PLATFORM]
    except KeyError as missing:
        raise ValueError(f"the pod {metadata.get('name')} has no {missing}") from None
    container = next(iter(status.get("containerStatuses") or ()), None) or {}
    state = container.get("state") or {}
    terminated = state.get("terminated") or {}
    deleting = "deletionTimestamp" in metadata
    disruption = _condition(status, "DisruptionTarget", "True")
    phase = _phase(status, state, scheduled=bool(spec.get("nodeName")), deleting=deleting)
    reason, detail = next(_reasons(status, state, disruption), (None, None))
    name, uid, build, attempt, platform = identity
    return Pod(
        name=name,
        uid=uid,
        build=build,
        attempt=attempt,
        platform=platform,
        phase=phase,
        node=spec.get("nodeName"),
        created=_time(metadata.get("creationTimestamp")),
        started=_time((state.get("running") or terminated).get("startedAt")),
        ended=_time(terminated.get("finishedAt")),
        exit_code=terminated.get("exitCode"),
        message=terminated.get("message"),
        reason=reason,
        detail=detail,
        disrupted=disruption is not None,
        deleting=deleting,
        held=FINALIZER in (metadata.get("finalizers") or ()),
    )


def _phase(status: Mapping[str, Any], state: Mapping[str, Any], *, scheduled: bool, deleting: bool) -> Phase:
    if "terminated" in state or status.get("phase") in _FINISHED:
        return Phase.ENDED
    if "running" in state:
        return Phase.RUNNING
    # The scheduler passes over a pod that is being deleted: it will never have a node.
    return Phase.ENDED if deleting and not scheduled else Phase.PENDING


def _reasons(
    status: Mapping[str, Any], state: Mapping[str, Any], disruption: Mapping[str, Any] | None
) -> Iterator[tuple[str | None, str | None]]:
    """What is known of why the pod is as it is, the most telling first: (the cluster's word, its sentence)."""
    terminated, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    if terminated.get("reason") in ("OOMKilled", "Completed"):
        yield terminated["reason"], None
    if status.get("reason"):
        yield status["reason"], status.get("message")
    if disruption:
        yield disruption.get("reason"), disruption.get("message")
    if terminated:
        yield terminated.get("reason"), None
    if unscheduled := _condition(status, "PodScheduled", "False"):
        yield unscheduled.get("reason"), unscheduled.get("message")
    if waiting:
        yield waiting.get("reason"), waiting.get("message")


def _condition(status: Mapping[str, Any], kind: str, value: str) -> Mapping[str, Any] | None:
    conditions = status.get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == kind and condition.get("status") == value), None)


def _time(text: str | None) -> datetime | None:
    """Times of containers that never ran are given as 1970."""
    return None if text is None or text.startswith("1970-01-01") else datetime.fromisoformat(text)
