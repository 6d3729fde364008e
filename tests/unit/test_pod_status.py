"""Pods as a real cluster told of them (Kubernetes 1.36: data/pods), read as ours."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from worker.cluster import Phase, Pod
from worker.cluster.pod_status import read_pod

PODS = Path(__file__).parent / "data" / "pods"


def raw(name: str) -> dict[str, Any]:
    return dict(json.loads((PODS / f"{name}.json").read_text()))


def pod(name: str) -> Pod:
    return read_pod(raw(name))


@pytest.mark.parametrize(
    ("name", "phase", "exit_code", "reason"),
    [
        ("created", Phase.PENDING, None, None),
        ("container-creating", Phase.PENDING, None, "ContainerCreating"),
        ("running", Phase.RUNNING, None, None),
        ("succeeded-phase-running", Phase.ENDED, 0, "Completed"),
        ("succeeded", Phase.ENDED, 0, "Completed"),
        ("failed", Phase.ENDED, 3, "Error"),
        ("exit-137", Phase.ENDED, 137, "Error"),
        ("oom-killed", Phase.ENDED, 137, "OOMKilled"),
        ("deadline", Phase.ENDED, 137, "DeadlineExceeded"),
        ("deleted-running", Phase.RUNNING, None, None),
        ("deleted", Phase.ENDED, 137, "Error"),
        ("evicted-by-api", Phase.ENDED, 137, "EvictionByEvictionAPI"),
        ("evicted-disk", Phase.ENDED, 137, "Evicted"),
        ("err-image-pull", Phase.PENDING, None, "ErrImagePull"),
        ("image-pull-backoff", Phase.PENDING, None, "ImagePullBackOff"),
        ("invalid-image-name", Phase.PENDING, None, "InvalidImageName"),
        ("config-error", Phase.PENDING, None, "CreateContainerConfigError"),
        ("unschedulable", Phase.PENDING, None, "Unschedulable"),
        ("unschedulable-deleted", Phase.ENDED, None, "Unschedulable"),
        ("deleted-before-start", Phase.ENDED, 137, "ContainerStatusUnknown"),
        ("out-of-memory-node", Phase.ENDED, None, "OutOfmemory"),
        ("start-error", Phase.ENDED, 128, "StartError"),
        ("err-image-never-pull", Phase.PENDING, None, "ErrImageNeverPull"),
        ("succeeded-no-digest", Phase.ENDED, 0, "Completed"),
        ("node-deleted", Phase.ENDED, None, "DeletionByPodGC"),
        ("node-tainted", Phase.RUNNING, None, "DeletionByTaintManager"),
    ],
)
def test_phase_and_reason(name: str, phase: Phase, exit_code: int | None, reason: str | None) -> None:
    found = pod(name)
    assert (found.phase, found.exit_code, found.reason) == (phase, exit_code, reason)


def test_the_end_is_the_containers_not_the_pods() -> None:
    assert raw("succeeded-phase-running")["status"]["phase"] == "Running"
    assert pod("succeeded-phase-running").phase is Phase.ENDED


def test_identity_times_and_message() -> None:
    found = pod("succeeded")
    assert (found.name, found.attempt, found.platform) == ("rec-succeeded", 1, "linux/amd64")
    assert found.build == "01990000-0000-7000-8000-000000000001"
    assert found.uid
    assert found.node == "node1"
    assert found.created == datetime(2026, 11, 23, 22, 26, 15, tzinfo=UTC)
    assert found.started == found.ended == datetime(2026, 11, 23, 22, 26, 18, tzinfo=UTC)
    assert found.message is not None
    assert found.message.startswith("sha256:")


def test_a_container_that_never_ran_has_no_start() -> None:
    assert pod("start-error").started is None


@pytest.mark.parametrize(
    ("name", "disrupted", "deleting", "held"),
    [
        ("running", False, False, True),
        ("deleted", False, True, True),
        ("evicted-by-api", True, True, True),
        ("released", False, False, False),
    ],
)
def test_disrupted_deleting_held(name: str, disrupted: bool, deleting: bool, held: bool) -> None:
    found = pod(name)
    assert (found.disrupted, found.deleting, found.held) == (disrupted, deleting, held)


def test_the_clusters_sentence() -> None:
    assert "didn't match Pod's node affinity" in (pod("unschedulable").detail or "")
    assert 'secret "missing" not found' in (pod("config-error").detail or "")
    assert "ephemeral local storage" in (pod("evicted-disk").detail or "")


def test_a_pod_without_our_marks_is_refused() -> None:
    foreign = raw("running")
    del foreign["metadata"]["labels"]["crabpot.dev/build"]
    with pytest.raises(ValueError, match=r"crabpot\.dev/build"):
        read_pod(foreign)


@pytest.mark.parametrize("missing", ["containerStatuses", "conditions"])
def test_a_status_with_less_in_it(missing: str) -> None:
    sparse = raw("running")
    sparse["status"].pop(missing)
    assert read_pod(sparse).uid
