"""Which images a cluster's objects name: pods, whatever makes pods, and what can be rolled back to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ledger.references import ImageReference
from tests.cluster_objects import HOST, cron_job, making, named, pod_of, replica_set, running
from tests.unit.inventories import NOW, digest, goes, holding, image, index, judge, policy, tag
from worker.cluster.workloads import Workload
from worker.retention.agreement import agree
from worker.retention.inventory import Blob
from worker.retention.protection import Protected, Web
from worker.retention.purge import _needed
from worker.retention.running import ImageNotUnderstood, marks_of, read_holder, under_all_names

ONE = digest("one")


def marks(*objects: tuple[Workload, dict[str, Any]], revisions: int = 11) -> dict[str, str]:
    return marks_of([one for kind, found in objects if (one := read_holder(kind, found))], revisions)


def test_every_kind_that_makes_pods_is_told_by_its_name():
    owner = {"kind": "StatefulSet", "name": "db", "uid": "u", "controller": True}
    revision = {
        "metadata": named("db-5b9", ownerReferences=[owner]),
        "revision": 3,
        "data": {"spec": {"template": {"$patch": "replace", "spec": pod_of(f"{HOST}/db:1")}}},
    }
    assert marks(
        (Workload.DEPLOYMENT, making("web", f"{HOST}/web:2")),
        (Workload.STATEFUL_SET, making("db", f"{HOST}/db:2")),
        (Workload.DAEMON_SET, making("agent", f"{HOST}/agent@{ONE}")),
        (Workload.JOB, making("migrate", f"{HOST}/migrate")),
        (Workload.CRON_JOB, cron_job("nightly", f"{HOST}/cron:1", suspend=True)),
        (Workload.REPLICA_SET, making("bare", f"{HOST}/bare:1")),
        (Workload.REPLICATION_CONTROLLER, making("old", f"{HOST}/old:1")),
        (Workload.CONTROLLER_REVISION, revision),
        (Workload.REPLICA_SET, replica_set(7, f"{HOST}/web:1")),
        (Workload.POD, running(pod_of(f"{HOST}/alone:1"))),
    ) == {
        f"{HOST}/web:2": "deployment shop/web",
        f"{HOST}/db:2": "stateful set shop/db",
        ONE: "daemon set shop/agent",
        f"{HOST}/migrate:latest": "job shop/migrate",
        f"{HOST}/cron:1": "cron job shop/nightly (suspended)",
        f"{HOST}/bare:1": "replica set shop/bare",
        f"{HOST}/old:1": "replication controller shop/old",
        f"{HOST}/db:1": "stateful set shop/db, revision 3",
        f"{HOST}/web:1": "deployment shop/web, revision 7",
        f"{HOST}/alone:1": "pod shop/web-1-x",
    }


def test_all_containers_and_image_volumes_of_a_pod_count():
    pod = pod_of(
        f"{HOST}/a:1",
        initContainers=[{"image": f"{HOST}/b:1"}],
        ephemeralContainers=[{"image": f"{HOST}/c:1"}],
        volumes=[{"name": "data", "image": {"reference": f"{HOST}/d:1"}}, {"name": "tmp", "emptyDir": {}}],
    )
    assert marks((Workload.POD, running(pod))).keys() == {f"{HOST}/{name}:1" for name in "abcd"}


@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"])
@pytest.mark.parametrize(
    "told",
    [
        f"{HOST}/web@{ONE}",
        f"docker-pullable://{HOST}:5000/web@{ONE}",
        f"docker://{ONE}",
        ONE,
        ONE.removeprefix("sha256:"),
    ],
)
def test_what_a_container_runs_by_is_a_digest_however_it_is_told(kind: str, told: str):
    assert ONE in marks((Workload.POD, running(pod_of(f"{HOST}/web:1"), told, kind=kind)))


@pytest.mark.parametrize("told", ["", "cri://something", f"{HOST}/web:1", f"{HOST}/web@sha512:{'a' * 128}", "a" * 63, "x" + "a" * 64])
def test_what_is_no_digest_says_no_more_than_the_spec(told: str):
    assert marks((Workload.POD, running(pod_of(f"{HOST}/web:1"), told))).keys() == {f"{HOST}/web:1"}


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1", "docker.io/library/nginx:1"),
        ("team/app:1", "docker.io/team/app:1"),
        ("docker.io/nginx:1", "docker.io/library/nginx:1"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1"),
        ("localhost/app:1", "localhost/app:1"),
        ("host:5000/app", "host:5000/app:latest"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        (f"{HOST}/app:1@{ONE}", ONE),
        (f"nginx@{ONE}", ONE),
    ],
)
def test_names_are_completed_as_a_kubelet_does(name: str, mark: str):
    assert marks((Workload.DEPLOYMENT, making("web", name))).keys() == {mark}


@pytest.mark.parametrize(
    "name", ["", f"{HOST}/app:", f"{HOST}/App:1", "a b", f"{HOST}//app", "{{ image }}", f"{HOST}/app@sha256:12", "a" * 5000]
)
def test_what_no_kubelet_pulls_is_nothing(name: str):
    assert marks((Workload.DEPLOYMENT, making("web", name))) == {}


@pytest.mark.parametrize("name", [f"{HOST}/app@sha512:{'a' * 128}", f"{HOST}:05000/app:1", "HOST/app:1"])
def test_what_a_kubelet_might_pull_and_we_cannot_find_is_never_dropped(name: str):
    with pytest.raises(ImageNotUnderstood, match="deployment shop/web"):
        marks((Workload.DEPLOYMENT, making("web", name)))


def test_the_newest_replica_sets_of_each_deployment_count_and_those_that_have_pods():
    sets = [(Workload.REPLICA_SET, replica_set(number, f"{HOST}/web:{number}")) for number in (9, 10, 2, 11)]
    sets.append((Workload.REPLICA_SET, replica_set(1, f"{HOST}/web:1", replicas=2)))
    sets.append((Workload.REPLICA_SET, replica_set(1, f"{HOST}/api:1", deployment="api")))
    assert marks(*sets, revisions=2).keys() == {f"{HOST}/web:11", f"{HOST}/web:10", f"{HOST}/web:1", f"{HOST}/api:1"}


def test_a_replica_set_whose_place_is_not_known_counts():
    sets = [(Workload.REPLICA_SET, replica_set(number, f"{HOST}/web:{number}")) for number in (3, 2)]
    unknown = replica_set("x", f"{HOST}/web:unknown")
    rollout = replica_set(1, f"{HOST}/web:rollout")
    rollout["metadata"]["ownerReferences"][0]["kind"] = "Rollout"
    found = marks(*sets, (Workload.REPLICA_SET, unknown), (Workload.REPLICA_SET, rollout), revisions=1)
    assert found.keys() == {f"{HOST}/web:3", f"{HOST}/web:unknown", f"{HOST}/web:rollout"}


def test_deployments_of_the_same_name_in_two_namespaces_do_not_share_revisions():
    first = replica_set(5, f"{HOST}/web:5", uid="a")
    second = replica_set(1, f"{HOST}/web:1", uid="b")
    assert len(marks((Workload.REPLICA_SET, first), (Workload.REPLICA_SET, second), revisions=1)) == 2


@given(
    st.lists(st.tuples(st.sampled_from(["web", "api"]), st.integers(1, 30), st.integers(0, 1)), unique_by=lambda one: one[:2]),
    st.integers(1, 12),
)
def test_more_revisions_only_ever_keep_more(sets: list[tuple[str, int, int]], revisions: int):
    objects = [
        (Workload.REPLICA_SET, replica_set(number, f"{HOST}/{name}:{number}", replicas=replicas, deployment=name))
        for name, number, replicas in sets
    ]
    few, more = marks(*objects, revisions=revisions), marks(*objects, revisions=revisions + 1)
    assert few.items() <= more.items()
    for name in {one[0] for one in sets}:
        numbers = sorted((number for whose, number, _ in sets if whose == name), reverse=True)
        assert {f"{HOST}/{name}:{number}" for number in numbers[:revisions]} <= few.keys()
    assert marks(*reversed(objects), revisions=revisions) == few


_TEXT = st.from_regex(r"[a-z0-9]{1,5}(\.[a-z]{1,3})?(:[0-9]{1,4})?(/[a-z0-9_.-]{1,6}){0,2}(:[\w.-]{1,5})?", fullmatch=True)


@given(_TEXT | st.text(max_size=40))
def test_a_name_is_a_mark_or_nothing_or_an_error_and_never_a_fault(text: str):
    try:
        found = marks((Workload.POD, running(pod_of(text))))
    except ImageNotUnderstood:
        return
    for mark in found:
        assert ImageReference.parse(mark).mark == mark


def test_objects_with_nothing_in_them_name_nothing():
    for kind in Workload:
        for spec in (None, {}, {"template": None}, {"template": {"spec": None}}):
            assert read_holder(kind, {"metadata": named("x"), "spec": spec, "status": None, "data": None}) is None


def test_the_account_of_deploy_running_may_list_exactly_what_is_asked_for():
    objects = list(yaml.safe_load_all((Path(__file__).parents[2] / "deploy/running/running.yaml").read_text()))
    [role] = [one for one in objects if one["kind"] == "ClusterRole"]
    given = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert given == {("list", kind.group, kind.resource) for kind in Workload}


def test_a_tag_counts_under_all_names_of_its_registry():
    found = under_all_names(
        {"one.test/a:1": "x", "docker.io/b:1": "y", ONE: "z", "other.test/a:1": "o"}, [("One.test:443", "two.test:5000")]
    )
    assert found == {
        "one.test/a:1": "x",
        "two.test:5000/a:1": "x",
        "docker.io/b:1": "y",
        "index.docker.io/b:1": "y",
        "registry-1.docker.io/b:1": "y",
        ONE: "z",
        "other.test/a:1": "o",
    }


# A digest of a configuration


def built(name: str, **more: Any) -> Any:
    return image(name, **more, blobs=(Blob(digest(("config", name)), 100), Blob(digest(("layer", "shared")), 1000)))


POLICY = policy(keep=[{"last": 1}])
CONFIGS = holding(
    index("index", "part"),
    built("part"),
    built("old"),
    built("new"),
    tag("index", "index", NOW.replace(year=2024)),
    tag("old", "old", NOW.replace(year=2024)),
    tag("new", "new", NOW.replace(year=2025)),
)


def test_what_runs_by_its_configuration_alone_is_kept_with_all_that_holds_it():
    assert goes(judge(CONFIGS, POLICY)) != set()
    by_config = Protected(running={digest(("config", "part")): "pod a/b", digest(("config", "old")): "pod a/c"})
    assert goes(judge(CONFIGS, POLICY, by_config)) == set()
    a_layer = Protected(running={digest(("layer", "shared")): "pod a/b"})
    assert goes(judge(CONFIGS, POLICY, a_layer)) == goes(judge(CONFIGS, POLICY))


def test_a_silence_is_taken_on_by_the_name_of_its_cluster_alone():
    """What an error says of another cluster is no name."""
    silent = Protected(silent={"prod": "the cluster edge did not say what runs there"})
    made = judge(CONFIGS, POLICY, silent).repositories[0]
    [found] = CONFIGS.repositories
    assert agree(made, made, found, ("edge",)).digests == ()
    assert agree(made, made, found, ("edge", "prod")).digests == made.deletions != ()


def test_a_purge_spares_what_runs_by_its_configuration():
    [repository] = CONFIGS.repositories
    untagged = Web.of(type(repository)(name=repository.name, manifests=repository.manifests))
    due = {digest("index"), digest("part"), digest("old")}
    _, used = _needed(untagged, due, Protected(running={digest(("config", "part")): "pod a/b"}))
    assert used.keys() == {digest("index"), digest("part")}
