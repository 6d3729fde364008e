"""What a dry run prints, read and judged; and which workloads can be collected at all."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ledger.collected import CollectedInKubernetes
from ledger.projects import parse_projects
from worker.collect.judging import Eligible, Needed, judge, merged, read_dry_run
from worker.collect.steps import No, Wait, Well
from worker.collect.workload import CLOSED, MARK, READ_ONLY, RESTARTED, Workload

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
PRINTED = f"""team/app
team/app: marking manifest {A}
team/app: marking blob {B}

2 blobs marked, 1 blobs and 0 manifests eligible for deletion
blob eligible for deletion: {C}
team/app: layer link eligible for deletion: {C}
"""


def test_a_dry_run_is_read() -> None:
    assert read_dry_run(PRINTED) == Eligible(2, frozenset({C}), frozenset({("team/app", C)}), 0)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "failed to garbage collect: failed to mark",
        PRINTED.replace(f"blob eligible for deletion: {C}\n", ""),
        PRINTED + PRINTED,
    ],
)
def test_a_dry_run_that_was_cut_off_is_not_relied_on(output: str) -> None:
    assert isinstance(read_dry_run(output), str)


NEEDED = {"team/app": Needed(frozenset({A}), {B: 1})}


@pytest.mark.parametrize(
    ("eligible", "why"),
    [
        (Eligible(2, frozenset({C}), frozenset(), 0), None),
        (Eligible(2, frozenset({A}), frozenset(), 0), f"as {A} of team/app"),
        (Eligible(2, frozenset({B}), frozenset(), 0), f"as {B} of team/app"),
        (Eligible(2, frozenset(), frozenset({("team/app", B)}), 0), f"as {B} of team/app"),
        (Eligible(2, frozenset(), frozenset({("team/other", B)}), 0), None),
        (Eligible(1, frozenset(), frozenset(), 0), "its tags need 2"),
        (Eligible(2, frozenset(), frozenset(), 1), "manifests would be deleted"),
    ],
)
def test_nothing_is_swept_that_a_tag_needs(eligible: Eligible, why: str | None) -> None:
    found = judge(eligible, NEEDED)
    assert found is None if why is None else why in (found or "")


def test_what_is_needed_before_or_after_is_needed() -> None:
    assert merged(NEEDED, {"team/app": Needed(frozenset({C}), {})})["team/app"] == Needed(frozenset({A, C}), {B: 1})


SETTINGS = CollectedInKubernetes(kind="kubernetes", registry="r.example.com", namespace="r", workload="deployment/registry", claim="data")
CLAIM = {"spec": {"accessModes": ["ReadWriteOnce"]}}


def workload(settings: CollectedInKubernetes = SETTINGS, **spec: Any) -> Workload:
    body = yaml.safe_load("""
metadata: {name: registry, generation: 2}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: registry}}
  template:
    metadata: {labels: {app: registry}}
    spec:
      containers: [{name: registry, image: r, env: [{name: A, value: b}], volumeMounts: [{name: data, mountPath: /d}], ports: [{containerPort: 5000}]}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, readyReplicas: 1}
""")
    body["spec"] |= spec
    return Workload(settings, body)


def changed(**fields: Any) -> CollectedInKubernetes:
    return SETTINGS.model_copy(update=fields)


@pytest.mark.parametrize(
    ("found", "claim", "why"),
    [
        (workload(), CLAIM, None),
        (workload(strategy={"type": "RollingUpdate"}), CLAIM, "Recreate"),
        (workload(strategy={"type": "RollingUpdate"}, replicas=1), {"spec": {"accessModes": ["ReadWriteMany"]}}, None),
        (workload(replicas=0), CLAIM, "scaled to 0"),
        (workload(changed(claim="other")), CLAIM, "mounts the claim other"),
        (workload(changed(container="sidecar")), CLAIM, "container"),
        (workload(selector={"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "x"}]}), CLAIM, "more than labels"),
        (workload(), {"spec": {"accessModes": ["ReadWriteOncePod"]}}, "how: exec"),
        (workload(changed(how="exec")), {"spec": {"accessModes": ["ReadWriteOncePod"]}}, None),
        (workload(changed(workload="statefulset/registry")), {"spec": {"accessModes": ["ReadWriteOncePod"]}}, "mode ReadWriteOnce,"),
        (workload(changed(workload="statefulset/registry"), updateStrategy={"type": "OnDelete"}), CLAIM, "OnDelete"),
        (
            workload(changed(workload="statefulset/registry"), replicas=2, volumeClaimTemplates=[{"metadata": {"name": "data"}}]),
            CLAIM,
            "claim of its own",
        ),
    ],
)
def test_what_cannot_be_made_read_only_is_refused_with_what_to_do(found: Workload, claim: dict[str, Any], why: str | None) -> None:
    told = found.look(claim)
    assert isinstance(told, Well) if why is None else isinstance(told, No) and why in told.why


@pytest.mark.parametrize(
    ("variable", "is_refused"),
    [
        ({"name": "REGISTRY_STORAGE_S3_BUCKET", "value": "b"}, True),
        ({"name": "REGISTRY_STORAGE_S3_SECRETKEY", "valueFrom": {}}, True),
        ({"name": "REGISTRY_STORAGE", "value": "gcs"}, True),
        ({"name": "REGISTRY_STORAGE", "value": "filesystem"}, False),
        ({"name": "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "value": "/d"}, False),
        ({"name": "REGISTRY_STORAGE_DELETE_ENABLED", "value": "true"}, False),
    ],
)
def test_blobs_that_are_in_no_claim_are_refused(variable: dict[str, Any], is_refused: bool) -> None:
    found = workload()
    found.template["spec"]["containers"][0]["env"] = [variable]
    told = found.look(CLAIM)
    assert isinstance(told, No) is is_refused
    assert not is_refused or f"{variable['name']} says that they are stored elsewhere" in str(getattr(told, "why", ""))


def test_a_rollout_under_way_is_waited_for() -> None:
    found = workload()
    assert isinstance(Workload(SETTINGS, {**found.body, "metadata": {"name": "registry", "generation": 3}}).look(CLAIM), Wait)


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}, "of its 2 pods 1 are ready"),
        ({"replicas": 2, "updatedReplicas": 1, "readyReplicas": 2}, "being replaced (1 of 2 are new, 2 ready)"),
        ({"replicas": 3, "updatedReplicas": 2, "readyReplicas": 2}, "being replaced"),
    ],
)
def test_what_a_rollout_waits_for_is_said(status: dict[str, int], why: str) -> None:
    found = workload(replicas=2)
    assert why in str(Workload(SETTINGS, {**found.body, "status": {**found.body["status"], **status}}).unsettled)


def test_what_closing_changes_opening_takes_back() -> None:
    closing, opening = workload().closing("r1"), workload().opening()
    env = closing["spec"]["template"]["spec"]["containers"][0]["env"]
    assert env == [{"name": READ_ONLY, "value": '{"enabled":true}'}]
    assert opening["metadata"]["annotations"] == {MARK: None}
    assert opening["spec"]["template"]["metadata"] == {"labels": {CLOSED: None}, "annotations": {RESTARTED: None}}
    assert opening["spec"]["template"]["spec"]["containers"][0]["env"] == [{"name": READ_ONLY, "$patch": "delete"}]


def test_a_sweep_s_pod_is_the_registry_s_container_beside_a_closed_pod_and_gets_none_of_its_requests() -> None:
    stateful = workload(changed(workload="statefulset/registry"), volumeClaimTemplates=[{"metadata": {"name": "more"}}])
    closed = {"metadata": {"name": "registry-0", "uid": "u", "labels": {CLOSED: "r1"}}}
    job = stateful.job("sweep", "r1", ("registry", "garbage-collect", "/c"), [closed])
    assert [(owner["name"], owner["uid"]) for owner in job["metadata"]["ownerReferences"]] == [("registry-0", "u")]
    pod = job["spec"]["template"]
    term = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["labelSelector"]["matchLabels"] == {"app": "registry", CLOSED: "r1"}
    assert "app" not in pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["registry", "garbage-collect", "/c"]
    assert "ports" not in container
    assert container["env"] == [{"name": "A", "value": "b"}]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"]}
    assert claims == {"data", "more-registry-0"}


def test_exec_in_a_stateful_set_is_refused_where_it_is_said() -> None:
    entry = "{registry: q.example.com, kind: kubernetes, namespace: n, workload: KIND/q, claim: c, how: exec}"
    with pytest.raises(Exception, match="say `how: job`"):
        parse_projects(f"version: 1\nprojects: {{}}\ncollect: [{entry.replace('KIND', 'statefulset')}]")
    assert parse_projects(f"version: 1\nprojects: {{}}\ncollect: [{entry.replace('KIND', 'deployment')}]").collect


def test_a_registry_is_named_once_under_collect() -> None:
    with pytest.raises(Exception, match="is named twice"):
        parse_projects(
            "version: 1\nprojects: {}\ncollect: [{registry: r.example.com, kind: own}, {registry: q.example.com, kind: kubernetes, namespace: n, workload: deployment/q, claim: c, aliases: [r.example.com]}]"
        )
