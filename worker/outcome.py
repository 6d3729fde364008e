"""What a pod's end means. Pure: the last that the cluster told of the pod, and the end of its log, become a reason and a sentence.

Success is exit 0 and a digest, nothing else: Kaniko writes the digest before it pushes, and with a cache each layer's digest goes there
too. An absent pod is never a success. Where a RUN itself exits 137, the build failed; where the container was killed with 137, memory
was short. The cluster's own word (OOMKilled, Evicted, DeadlineExceeded) goes before Kaniko's, which may be a mere consequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.build import Reason
from ledger.references import parse_digest
from worker.cluster import Phase, Pod
from worker.complaint import find_complaint, judge


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt of one platform ended."""

    reason: Reason | None
    """None for a success."""
    message: str | None
    """For people; not yet redacted."""
    exit_code: int | None
    digest: str | None
    """Of the image; only with a success."""


_NODE_LOST = frozenset(
    {"NodeLost", "DeletionByTaintManager", "DeletionByPodGC", "NodeShutdown", "Shutdown", "Terminated", "ContainerStatusUnknown"}
)
_PULLING = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError", "RegistryUnavailable"}
)
_STARTING = frozenset(
    {"StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError", "PostStartHookError", "CrashLoopBackOff"}
)
_KILLED = 137


def outcome(pod: Pod, log_tail: Sequence[str], *, pushes: bool) -> Outcome:
    """What the end of a pod (ENDED or GONE) means.

    `log_tail`: the last lines of its log, 120 at least, since Kaniko prints 82 lines of usage after some complaints; may be empty where
    the log is lost. `pushes`: whether the image was to be pushed.
    """
    if pod.exit_code == 0:
        return _success(pod, pushes=pushes)
    reason, message = _failure(pod, log_tail)
    return Outcome(reason, message, pod.exit_code, None)


def pending(pod: Pod) -> Outcome | None:
    """Why a pod that has not started never will, as far as the cluster knows; None where there is hope.

    Nodes may come and go: UNSCHEDULABLE is the present state, which the caller gives a grace.
    """
    if pod.phase is not Phase.PENDING or pod.deleting:
        return None
    # One failed pull may be chance, and a slow API server delays Secrets: the kubelet tries again by itself.
    if pod.reason == "ErrImagePull" or "timed out waiting" in (pod.detail or ""):
        return None
    found = _never_started(pod)
    return Outcome(*found, None, None) if found else None


def _success(pod: Pod, *, pushes: bool) -> Outcome:
    try:
        return Outcome(None, None, 0, parse_digest((pod.message or "").strip()))
    except ValueError:
        pushed = "it may have been pushed" if pushes else "nothing was to be pushed"
        return Outcome(
            Reason.UNKNOWN, f"the executor ended well but left no digest, so there is no telling which image it made ({pushed})", 0, None
        )


def _failure(pod: Pod, log_tail: Sequence[str]) -> tuple[Reason, str]:
    if told := _told_by_cluster(pod):
        return told
    complaint = find_complaint(log_tail) or find_complaint((pod.message or "").splitlines())
    if pod.phase is Phase.GONE and pod.exit_code is None:
        return Reason.POD_LOST, "the pod vanished before its end was seen; somebody deleted it by force, or its node went away"
    # When a pod is deleted, Kaniko is told to stop and what it runs is killed: that is not the build's fault.
    if pod.deleting and (complaint is None or "signal: " in complaint.text):
        return Reason.POD_LOST, "the pod was deleted while it ran, and not by crabpot"
    if complaint:
        return judge(complaint)
    if pod.exit_code == _KILLED:
        return (
            Reason.OUT_OF_MEMORY,
            "the build was killed (exit code 137), most likely since its node had no memory left; raise resources.memory",
        )
    if pod.exit_code is None:
        return Reason.START_FAILED, f"the container never started{_say(pod)}"
    return Reason.UNKNOWN, f"the executor ended with exit code {pod.exit_code} and did not say why; the log's end may"


def _told_by_cluster(pod: Pod) -> tuple[Reason, str] | None:
    """What the cluster itself says of the end."""
    reason = pod.reason or ""
    if reason == "OOMKilled":
        return Reason.OUT_OF_MEMORY, "the build used more memory than it was given: raise resources.memory"
    if reason == "DeadlineExceeded":
        return Reason.RUN_DEADLINE, "the build ran for longer than it may; raise deadlines.running if it needs the time"
    if reason == "Evicted" and "ephemeral" in (pod.detail or ""):
        return Reason.BUILD_FAILED, f"the build used more disk than it was given: raise resources.ephemeral_storage{_say(pod)}"
    if reason in _NODE_LOST and not (pod.deleting and reason == "ContainerStatusUnknown"):
        return Reason.NODE_LOST, f"the node that the build ran on was lost{_say(pod)}"
    if reason == "Evicted" or pod.disrupted:
        return Reason.EVICTED, f"the cluster took the pod off its node{_say(pod)}"
    if reason.startswith("OutOf"):
        return Reason.UNSCHEDULABLE, f"the node has no room for the build{_say(pod)}"
    return _never_started(pod) if pod.exit_code is None or reason in _STARTING else None


def _never_started(pod: Pod) -> tuple[Reason, str] | None:
    """Why a container did not start, by the reason that the cluster gives for waiting."""
    reason = pod.reason or ""
    # A mount fails for many reasons that pass (a claim that is not bound yet); what is not there is a mistake in the request.
    if reason == "CreateContainerConfigError" or (reason == "FailedMount" and "not found" in (pod.detail or "")):
        return Reason.CONFIG_ERROR, f"the pod names something that its namespace has not; create it, or mend the request{_say(pod)}"
    if reason in ("InvalidImageName", "ErrImageNeverPull"):
        return Reason.CONFIG_ERROR, f"the executor's image cannot be used: mend CRABPOT_EXECUTOR_IMAGE{_say(pod)}"
    if reason in _PULLING:
        return (
            Reason.IMAGE_PULL,
            f"the executor's image cannot be pulled: check CRABPOT_EXECUTOR_IMAGE and identity.image_pull_secrets{_say(pod)}",
        )
    if reason in _STARTING:
        return Reason.START_FAILED, f"the container could not be started{_say(pod)}"
    if reason == "Unschedulable":
        return Reason.UNSCHEDULABLE, f"no node has room for the build, or fits its placement{_say(pod)}"
    return None


def _say(pod: Pod) -> str:
    """The cluster's own words, where it has any beyond the container's output."""
    words = [word for word in (pod.reason, pod.detail or (pod.message if pod.reason in _STARTING else None)) if word]
    return f" ({': '.join(words)[:600]})" if words else ""
