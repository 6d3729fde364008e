"""The queue on a real cluster: many processes at once, what no node can take, memory that runs out, a node and a Redis that go away."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.build import Build, Reason, State
from tests.conftest import RedisServer
from tests.e2e.harness import Crabpot, crabpot_on, open_project
from tests.e2e.harness_cluster import Cluster, missing, until

pytestmark = pytest.mark.timeout(300)
"""A node that is gone is noticed by Kubernetes after up to 80 s."""

BUILDS, AT_ONCE = 120, 7
SEEN = ("build.queued", "build.started", "build.finished")
UNSEEN = ("build.queued", "build.finished")
"""Of a pod that runs for 0.3 s: it may have ended before anybody looks."""
CROWD = {"node_selector": {"crowd": "true"}, "tolerations": [{"key": "crowd", "operator": "Exists"}]}


@pytest.fixture(scope="module")
def crowd(cluster: Cluster) -> list[str]:
    """Nodes that exist in the API server only, for many pods."""
    nodes = cluster.kubectl("get", "nodes", "--selector", "crowd=true", "--output", "name").split()
    if len(nodes) < 2:
        missing("the cluster has no crowd; `../shared/cluster/cluster crowd 2` adds one")
    return nodes


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), durable=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def queue(cluster: Cluster, own: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crabpot]:
    """A crabpot with a Redis that may be killed, two watchers and two workers."""
    folder: Path = tmp_path_factory.mktemp("queue")
    one = open_project(cluster, max_builds=AT_ONCE - 2)
    projects = {"limits": {"max_builds": AT_ONCE}, "projects": {"open": one, "other": open_project(cluster)}}
    with crabpot_on(cluster, own.url, folder, "queue", projects) as crabpot:
        crabpot.start("watch-1", "watch-2", "worker-1", "worker-2")
        until(crabpot.leader, "somebody leads")
        yield crabpot


def on_crowd(crabpot: Crabpot, name: str, *, runs: str = "300ms", **fields: Any) -> dict[str, Any]:
    """A build that no executor runs: its pod ends by itself."""
    given = {
        "source": {"kind": "config_map", "config_map": "none"},
        "push": False,
        "tar": {"host_path": "/tmp"},
        "placement": CROWD,
        "identity": {"annotations": {"crowd/run": runs, "crowd/start": "50ms"}},
    }
    return crabpot.request(name, **{**given, **fields})


class Live:
    """How many pods of each project were alive at once at most, by what the API server told; and each pod that there ever was."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        command = ["kubectl", "--kubeconfig", cluster.kubeconfig, "--namespace", namespace, "get", "pods", "--watch", "--output", "json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.uids: dict[str, set[str]] = {}
        self.most: Counter[str] = Counter()
        self._alive: dict[str, str] = {}
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout
        decoder, text = json.JSONDecoder(), ""
        for line in self._process.stdout:
            text += line
            if line.rstrip() == "}":
                self._take(decoder.decode(text.strip()))
                text = ""

    def _take(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        self.uids.setdefault(name, set()).add(pod["metadata"]["uid"])
        ended = any("terminated" in one["state"] for one in pod["status"].get("containerStatuses", ()))
        if ended:
            self._alive.pop(name, None)
        else:
            self._alive[name] = pod["metadata"]["labels"]["crabpot.dev/project"]
        self.most |= Counter(self._alive.values())
        self.most["all"] = max(self.most["all"], len(self._alive))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._thread.join(10)
        assert self._process.stdout
        self._process.stdout.close()


def test_two_watchers_and_ten_workers_do_nothing_twice(queue: Crabpot, crowd: list[str]) -> None:
    workers = [f"worker-{number}" for number in range(3, 11)]
    queue.start(*workers)
    live = Live(queue.cluster, queue.namespace)
    try:
        builds = [queue.submit(on_crowd(queue, f"many-{number}", project=("open", "other")[number % 2])) for number in range(BUILDS)]
        for build in builds:
            assert queue.wait(build, 120).state is State.SUCCEEDED, queue.tell(build)
        time.sleep(1)  # whatever would come a second time
    finally:
        live.stop()
    told = Counter[tuple[str, ...]]()
    for build in builds:
        record, names = queue.read(build), tuple(queue.event_names(build))
        told[names] += 1
        assert (record.attempt, names) in ((1, SEEN), (1, UNSEEN)), queue.tell(build)
        assert len(live.uids[record.current.runs[0].pod]) == 1
    assert told[SEEN] > BUILDS / 2, "that most of them started is told"
    assert live.most["all"] <= AT_ONCE
    assert live.most["open"] <= AT_ONCE - 2
    assert live.most["all"] > AT_ONCE / 2, "several ran at once"
    assert queue.slots() == {}
    queue.stop(*workers)


def test_what_no_node_can_take_holds_nobody_up(queue: Crabpot, crowd: list[str]) -> None:
    impossible = {**CROWD, "node_selector": {"kubernetes.io/arch": "arm64"}}
    stuck = [queue.submit(on_crowd(queue, f"arm-{number}", placement=impossible)) for number in range(8)]
    for build in stuck[:5]:
        queue.until_state(build, State.STARTING)
    others = [queue.submit(on_crowd(queue, f"amd-{number}")) for number in range(10)]
    for build in others:
        assert queue.wait(build, 90).state is State.SUCCEEDED, queue.tell(build)

    def waits() -> Build | None:
        record = queue.read(stuck[0])
        return record if record.state is State.QUEUED and record.no_room > 0 else None

    record = until(waits, "it waits for room", 60)
    assert record.reason is Reason.UNSCHEDULABLE
    assert "node" in (record.message or "")
    assert "build.retried" not in queue.event_names(stuck[0])
    for build in stuck:
        queue.cancel(build)
    for build in stuck:
        assert queue.wait(build, 60).state is State.CANCELLED
    assert queue.slots() == {}


def test_out_of_memory_is_tried_again_with_twice_as_much(queue: Crabpot) -> None:
    """A RUN that needs 250 MB, in a container that is given 200 MiB."""
    text = f"FROM {queue.cluster.registry}/base/busybox:1\nRUN head -c 250m /dev/zero | tail > /dev/null && echo enough\n"
    source = queue.config_map("hungry", {"Dockerfile": text})
    build = queue.submit(queue.request("hungry", source=source, resources={"memory": "200Mi"}))
    record = queue.succeed(build, 120)
    first, *_, last = record.attempts
    assert (first.runs[0].reason, first.memory) == (Reason.OUT_OF_MEMORY, "200Mi")
    assert last.memory in ("400Mi", "800Mi")
    assert first.runs[0].node
    assert first.runs[0].ended


def test_a_node_that_is_deleted_costs_an_attempt(queue: Crabpot, crowd: list[str]) -> None:
    name = crowd[-1].partition("/")[2]
    there = {**CROWD, "node_selector": {"kubernetes.io/hostname": name}}
    build = queue.submit(on_crowd(queue, "lost", runs="24h", placement=there))
    queue.until_state(build, State.RUNNING)
    manifest = json.loads(queue.cluster.kubectl("get", "node", name, "--output", "json"))
    try:
        queue.cluster.kubectl("delete", "node", name)
        record = until(
            lambda: (found := queue.read(build)).attempts and found.attempts[0].runs[0].reason and found, "the node is lost", 150
        )
        assert record.attempts[0].runs[0].reason is Reason.NODE_LOST
    finally:
        kept = {key: manifest["metadata"][key] for key in ("name", "labels", "annotations")}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": kept,
            "spec": {"taints": [{"key": "crowd", "value": "true", "effect": "NoSchedule"}]},
        }
        queue.cluster.kubectl("apply", "--filename", "-", stdin=json.dumps(node))
        queue.cancel(build)
    assert queue.wait(build, 60).state is State.CANCELLED


def test_redis_killed_and_restarted_loses_nothing(queue: Crabpot, own: RedisServer, crowd: list[str]) -> None:
    builds = [queue.submit(on_crowd(queue, f"redis-{number}", runs="2s")) for number in range(20)]
    queue.until_state(builds[0], State.RUNNING)
    own.kill()
    time.sleep(10)
    own.start()
    for build in builds:
        assert queue.wait(build, 120).state is State.SUCCEEDED, queue.tell(build)
        assert queue.event_names(build).count("build.finished") == 1
    assert queue.slots() == {}
    assert all(process.alive for process in queue.processes.values())


def test_a_limit_and_a_pause_hold_at_once(queue: Crabpot, crowd: list[str]) -> None:
    queue.limit("project/open", 1)
    builds = [queue.submit(on_crowd(queue, f"limit-{number}", runs="1s")) for number in range(4)]
    live = Live(queue.cluster, queue.namespace)
    for build in builds[:2]:
        assert queue.wait(build, 60).state is State.SUCCEEDED
    queue.pause("all")
    until(lambda: not queue.slots(), "what ran has ended")
    waiting = [build for build in builds if queue.read(build).state is State.QUEUED]
    time.sleep(2)
    assert [build for build in builds if queue.read(build).state is State.QUEUED] == waiting
    queue.resume("all")
    for build in builds:
        assert queue.wait(build, 60).state is State.SUCCEEDED
    live.stop()
    assert live.most["open"] == 1
    queue.limit("project/open", None)
