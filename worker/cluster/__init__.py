"""Where launches run: the protocol that Kubernetes and this machine both keep, and the values that cross it.

None of these values uses Kubernetes' words, so that `worker/kaniko.py` and the steps stay free of them. The same contract tests
(`tests/contract.py`) run against every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NewType, Protocol

PodName = NewType("PodName", str)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretMount:
    """One key of a Secret as a file."""

    secret: str
    key: str
    path: str
    """Absolute path of the file in the container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretVariable:
    """One key of a Secret as an environment variable."""

    name: str
    secret: str
    key: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMount:
    """A folder of the node, of a claim or of a ConfigMap; exactly one of the three is set."""

    path: str
    """Absolute path in the container."""
    host_path: str | None = None
    claim: str | None = None
    config_map: str | None = None
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is to be run for a platform of an attempt."""

    pod: PodName
    build: str
    attempt: int
    platform: str
    project: str
    namespace: str
    image: str
    arguments: tuple[str, ...]
    """Handed to the executor unchanged: no shell and no variable is expanded."""
    environment: dict[str, str] = field(default_factory=dict)
    secret_variables: tuple[SecretVariable, ...] = ()
    secret_mounts: tuple[SecretMount, ...] = ()
    folders: tuple[FolderMount, ...] = ()
    cpu: str | None = None
    memory: str | None = None
    ephemeral_storage: str | None = None
    run_deadline: timedelta | None = None
    """A second line of defence: the cluster itself ends the pod some time after our own deadline."""
    node_selector: dict[str, str] = field(default_factory=dict)
    node_name: str | None = None
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = field(default_factory=dict)
    runtime_class: str | None = None
    priority_class: str | None = None
    service_account: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()


class Phase(StrEnum):
    """How far a pod's container has come."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"  # the container has terminated, or it is certain that it never will start again
    GONE = "gone"  # the pod is absent from the cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of ours as the cluster last told of it."""

    name: PodName
    uid: str
    build: str
    attempt: int
    platform: str
    phase: Phase
    node: str | None = None
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    message: str | None = None
    """The termination message: what the executor wrote to /dev/termination-log."""
    reason: str | None = None
    """The container's or pod's reason in the cluster's own word: OOMKilled, Evicted, ImagePullBackOff, Unschedulable, …"""
    detail: str | None = None
    """The cluster's own sentence about it."""
    disrupted: bool = False
    """Evicted, preempted, or its node was lost (Kubernetes: the DisruptionTarget condition)."""
    deleting: bool = False
    """Somebody has asked for its deletion."""
    held: bool = True
    """Our finalizer still keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All pods of ours, and the version to watch from."""

    pods: tuple[Pod, ...]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a container's log, without its newline."""

    time: datetime
    text: str


Wanted = Callable[[], Awaitable[bool]]
"""Whether a pod is still to be made."""


async def always() -> bool:
    """Nobody else makes, records or deletes the pod."""
    return True


class Cluster(Protocol):
    """Where launches run."""

    async def launch(self, launch: Launch, wanted: Wanted = always) -> Pod:
        """Start it. Idempotent: an equal launch that exists is adopted. PodConflict, NoRoom, LaunchRefused, ClusterDenied, ClusterUnavailable.

        `wanted` is asked before a create whose answer was lost is repeated: the pod may have been made, have ended and be gone by then.
        """
        ...

    async def pods(self) -> Snapshot:
        """All pods of ours. ClusterUnavailable, ClusterDenied."""
        ...

    def watch(self, since: str) -> AsyncIterator[Pod]:
        """Every change of a pod of ours after that version, without end. A deleted pod comes as GONE. WatchExpired, ClusterUnavailable."""
        ...

    def logs(self, pod: PodName, *, since: datetime | None = None) -> AsyncIterator[LogLine]:
        """The container's log, followed to its end; from `since` on (inclusive) where given. Ends at once where there is none."""
        ...

    async def release(self, pod: PodName, uid: str) -> None:
        """Its end is recorded: take the finalizer off. A pod that is gone, or has another uid, is no error."""
        ...

    async def delete(self, pod: PodName, uid: str, grace: timedelta) -> None:
        """Ask for its end; it is GONE only once released too. A pod that is gone, or has another uid, is no error."""
        ...

    async def explain(self, pod: PodName, uid: str) -> tuple[str, str] | None:
        """Why a pod does not start, where its state does not tell: (the cluster's word, its sentence). None where nothing is known."""
        ...

    def cover(self, namespaces: Iterable[str]) -> None:
        """Look for pods in these namespaces too, from now on: a project was added. A watch that goes on ends with WatchExpired."""
        ...

    async def close(self) -> None:
        """Let go of connections. Running pods run on."""
        ...
