"""The chart: what it installs, that its rights are those that are used and no more, and that a wrong value is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledger.collected import CollectedInKubernetes
from ledger.projects import parse_projects
from ledger.settings import Settings
from worker.cluster.kubernetes import WATCH_RIGHTS, WORKER_RIGHTS
from worker.cluster.manifest import MANAGED_BY
from worker.cluster.workloads import Workload
from worker.collect.rights import rights_of

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/crabpot"
FULL, RIGHTS_ONLY = CHART / "ci/full-values.yaml", CHART / "ci/rights-only-values.yaml"
pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed (`cluster env` puts one on the PATH)")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], text=True, capture_output=True, check=False)


@cache
def render(*arguments: str) -> tuple[dict[str, Any], ...]:
    done = helm("template", "crab", str(CHART), "--namespace", "crab-system", "--kube-version", "1.36.0", *arguments)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def of_kind(kind: str, *arguments: str) -> dict[str, dict[str, Any]]:
    return {
        f"{found['metadata'].get('namespace', '')}/{found['metadata']['name']}": found
        for found in render(*arguments)
        if found["kind"] == kind
    }


def rights(role: dict[str, Any]) -> set[tuple[str, str]]:
    return {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]}


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, deployment in of_kind("Deployment", "--values", str(FULL)).items():
        pod = deployment["spec"]["template"]["spec"]
        yield name.rpartition("-")[2], pod, pod["containers"][0]


@pytest.mark.parametrize("values", sorted((CHART / "ci").iterdir()), ids=lambda path: path.name)
def test_the_chart_lints_strictly(values: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("account", "needed"), [("worker", WORKER_RIGHTS), ("watch", WATCH_RIGHTS)])
def test_an_account_may_do_what_the_code_checks_for_and_no_more(account: str, needed: tuple[tuple[str, str, str], ...]) -> None:
    role = of_kind("Role", "--values", str(RIGHTS_ONLY))[f"crabpot-builds/crab-crabpot-{account}"]
    assert rights(role) == {(verb, f"{resource}/{sub}" if sub else resource) for verb, resource, sub in needed}


@pytest.mark.parametrize("how", ["job", "exec"])
def test_who_collects_a_registry_has_the_rights_for_exactly_that(how: str) -> None:
    workload = {"job": "statefulset/registry", "exec": "deployment/registry"}[how]
    where = {"namespace": "images", "workload": workload, "claim": "data-registry-0", "how": how}
    given = (f"collect[0].{name}={value}" for name, value in where.items())
    arguments = ("--values", str(RIGHTS_ONLY), *(word for one in given for word in ("--set", one)))
    role = of_kind("Role", *arguments)["images/crab-crabpot-collect-0"]
    settings = CollectedInKubernetes(kind="kubernetes", registry="registry.example.com", **where)  # type: ignore[arg-type]
    assert rights(role) == {(verb, f"{resource}/{sub}" if sub else resource) for verb, resource, sub in rights_of(settings)}
    named = {resource: rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule for resource in rule["resources"]}
    assert named == {f"{workload.partition('/')[0]}s": ["registry"], "persistentvolumeclaims": ["data-registry-0"]}
    binding = of_kind("RoleBinding", *arguments)["images/crab-crabpot-collect-0"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "crab-crabpot-worker", "namespace": "crab-system"}]


def needed_to_ask() -> set[tuple[str, str, str]]:
    return {("list", kind.group, kind.resource) for kind in Workload}


def rights_by_group(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    rules = role["rules"]
    return {
        (verb, group, resource) for rule in rules for verb in rule["verbs"] for group in rule["apiGroups"] for resource in rule["resources"]
    }


def test_a_worker_that_asks_its_own_cluster_may_list_what_makes_pods_and_no_more() -> None:
    arguments = ("--values", str(RIGHTS_ONLY), "--set", "running.enabled=true")
    [(name, role)] = of_kind("ClusterRole", *arguments).items()
    assert rights_by_group(role) == needed_to_ask()
    [binding] = of_kind("ClusterRoleBinding", *arguments).values()
    assert f"/{binding['roleRef']['name']}" == name
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "crab-crabpot-worker", "namespace": "crab-system"}]


def test_clusters_that_are_asked_by_kubeconfig_are_files_of_the_worker() -> None:
    _, pod, container = next(found for found in containers() if found[0] == "worker")
    assert {"name": "clusters", "mountPath": "/etc/crabpot/clusters", "readOnly": True} in container["volumeMounts"]
    assert {"name": "clusters", "secret": {"secretName": "clusters", "defaultMode": 0o440}} in pod["volumes"]


def test_rights_are_for_the_builds_namespaces_only_and_secrets_are_named_one_by_one() -> None:
    roles = of_kind("Role", "--values", str(FULL))
    assert set(roles) == {f"{namespace}/crab-crabpot-{account}" for namespace in ("team-a", "team-b") for account in ("worker", "watch")}
    secrets = [rule for rule in roles["team-a/crab-crabpot-worker"]["rules"] if "secrets" in rule["resources"]]
    assert secrets == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["push-a", "push-b"], "verbs": ["get"]}]
    assert ("get", "secrets") not in rights(roles["team-b/crab-crabpot-worker"])
    assert not of_kind("ClusterRole", "--values", str(FULL))
    assert not of_kind("ClusterRoleBinding", "--values", str(FULL))


def test_each_binding_gives_a_role_to_its_own_account_only() -> None:
    for name, binding in of_kind("RoleBinding", "--values", str(FULL)).items():
        account = name.partition("/")[2]
        assert binding["roleRef"]["name"] == account
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "crab-system"}]


def test_rights_alone_can_be_installed_without_any_process() -> None:
    kinds = {found["kind"] for found in render("--values", str(RIGHTS_ONLY))}
    assert kinds == {"Namespace", "ServiceAccount", "Role", "RoleBinding"}
    accounts = of_kind("ServiceAccount", "--values", str(RIGHTS_ONLY))
    assert set(accounts) == {f"crab-system/crab-crabpot-{name}" for name in ("worker", "watch", "serve", "beat")}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())


def test_a_namespace_is_made_only_where_asked_for_and_outlives_the_release() -> None:
    namespaces = of_kind("Namespace", "--values", str(FULL))
    assert set(namespaces) == {"/team-a"}
    metadata = namespaces["/team-a"]["metadata"]
    assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"
    assert metadata["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"


def test_every_process_is_hardened_and_only_those_that_need_it_have_the_cluster_token() -> None:
    tokens = {}
    for name, pod, container in containers():
        tokens[name] = pod["automountServiceAccountToken"]
        assert pod["serviceAccountName"] == f"crab-crabpot-{name}"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["limits"]["memory"]
    assert tokens == {"worker": True, "watch": True, "serve": False, "beat": False}


def test_every_variable_that_the_chart_sets_is_a_setting() -> None:
    known = {f"CRABPOT_{name.upper()}" for name in Settings.model_fields}
    for _, _, container in containers():
        ours = {variable["name"] for variable in container["env"] if variable["name"].startswith("CRABPOT_")}
        assert ours <= known
        assert {"CRABPOT_REDIS_URL", "CRABPOT_CLUSTER", "CRABPOT_NAMESPACE"} <= ours


def test_the_values_arrive_as_settings_as_they_were_given() -> None:
    _, _, container = next(found for found in containers() if found[0] == "worker")
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert given["CRABPOT_EVENT_STREAM_LENGTH"] == "5000000"
    assert given["CRABPOT_KEEP_FINISHED"] == "90d"
    assert given["CRABPOT_NAMESPACE"] == "team-a"


def test_the_projects_arrive_as_a_projects_file_that_crabpot_reads() -> None:
    stored = of_kind("ConfigMap", "--values", str(FULL))["crab-system/crab-crabpot-projects"]["data"]["projects.yaml"]
    projects = parse_projects(stored)
    assert projects.limits.max_builds == 8
    assert projects.clusters["prod"].kubeconfig == "/etc/crabpot/clusters/prod"
    assert projects.clusters["here"].in_cluster
    assert projects.projects["demo"].namespace == "team-a"


def test_nothing_may_connect_to_builds_worker_watch_and_beat() -> None:
    policies = of_kind("NetworkPolicy", "--values", str(FULL))
    assert {name for name, policy in policies.items() if policy["spec"].get("ingress")} == {"crab-system/crab-crabpot-serve"}
    assert {"team-a/crab-crabpot-builds", "team-b/crab-crabpot-builds"} < set(policies)
    assert policies["team-a/crab-crabpot-builds"]["spec"]["podSelector"] == {"matchLabels": {MANAGED_BY: "crabpot"}}
    assert not of_kind("NetworkPolicy", "--values", str(RIGHTS_ONLY))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("workers.replicas=3", "workers"),
        ("worker.replica=3", "replica"),
        ("redis.url=redis://:password@redis:6379", "url"),
        ("settings.REDIS_URL=x", "REDIS_URL"),
        ("builds.namespaces[0].name=Not_A_Name", "name"),
        ("serve.service.type=Nodeport", "type"),
        ("collect[0].namespace=r,collect[0].workload=statefulset/r,collect[0].claim=r,collect[0].how=exec", "collect[0].how"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(setting: str, named: str) -> None:
    done = helm("template", "crab", str(CHART), "--kube-version", "1.36.0", "--values", str(FULL), "--set", setting)
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize("missing", ["image.repository", "redis.secret.name", "serve.apiToken.secret"])
def test_what_must_be_given_is_asked_for(missing: str) -> None:
    done = helm("template", "crab", str(CHART), "--kube-version", "1.36.0", "--values", str(FULL), "--set", f"{missing}=")
    assert done.returncode != 0
    assert missing.partition(".")[0] in done.stderr
