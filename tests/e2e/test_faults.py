"""Processes killed midway, with no chance to give anything back: each build still ends, once, and nothing of it is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.build import State
from tests.e2e.harness import Crabpot, crabpot_on, open_project
from tests.e2e.harness_cluster import Cluster, until
from tests.e2e.harness_servers import gate


@pytest.fixture(scope="module")
def mortal(cluster: Cluster, redis: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crabpot]:
    """A crabpot whose processes may be killed."""
    folder: Path = tmp_path_factory.mktemp("mortal")
    projects = {"limits": {"max_builds": 3}, "projects": {"open": open_project(cluster)}}
    with crabpot_on(cluster, redis, folder, "mortal", projects) as crabpot:
        crabpot.start("watch", "worker")
        yield crabpot


def submit(crabpot: Crabpot, name: str, count: int, runs: str) -> list[str]:
    """Builds with a RUN of this command."""
    text = f"FROM {crabpot.cluster.registry}/base/busybox:1\nRUN {runs}\n"
    source = crabpot.config_map(name, {"Dockerfile": text})
    return [crabpot.submit(crabpot.request(f"{name}-{number}", source=source)) for number in range(count)]


def ended_once(crabpot: Crabpot, builds: list[str]) -> None:
    for build in builds:
        record = crabpot.succeed(build, 100)
        names = crabpot.event_names(build)
        assert names.count("build.finished") == 1, crabpot.tell(build)
        assert names.count("artifact.published") == 1, crabpot.tell(build)
        assert record.attempt == 1, "a killed process costs the build nothing"
        assert crabpot.pushed(record).labels["dev.crabpot.attempt"] == f"{build}.1"
    assert crabpot.slots() == {}
    until(lambda: not crabpot.pods(), "every pod is gone")


def test_worker_and_watcher_killed_while_builds_run(mortal: Crabpot) -> None:
    """Three run and two wait; both processes die at once, and others take their place."""
    with gate(mortal.cluster.host) as opens:
        builds = submit(mortal, "both", 5, opens.wait)
        mortal.until_state(builds[0], State.RUNNING)
        mortal.kill("worker")
        mortal.kill("watch")
        mortal.start("worker", "watch")
        opens.open()
        ended_once(mortal, builds)


def test_a_worker_killed_while_it_starts_builds(mortal: Crabpot) -> None:
    """The kill falls between admission and running, wherever that happens to be."""
    builds = submit(mortal, "starting", 3, "sleep 1")
    mortal.until_state(builds[-1], State.STARTING, State.RUNNING)
    mortal.kill("worker")
    mortal.start("worker")
    ended_once(mortal, builds)


def test_a_watcher_killed_while_builds_run_and_end(mortal: Crabpot) -> None:
    """The ends fall into the time in which nobody leads; they are recorded by the next."""

    def all_ended() -> bool:
        ended = [pod for pod in mortal.pods() if "terminated" in pod["status"].get("containerStatuses", [{}])[0].get("state", {})]
        return len(ended) == len(builds)

    with gate(mortal.cluster.host) as opens:
        builds = submit(mortal, "ends", 3, opens.wait)
        for build in builds:
            mortal.until_state(build, State.STARTING, State.RUNNING)
        mortal.kill("watch")
        opens.open()
        until(all_ended, "every container has ended", 60)
    assert not [build for build in builds if mortal.read(build).state.final], "nobody watched"
    mortal.start("watch")
    ended_once(mortal, builds)


def test_a_pod_deleted_while_nobody_watches_is_held_until_its_end_is_recorded(mortal: Crabpot) -> None:
    """Somebody empties the namespace in that time: our finalizer keeps what happened, and no success comes of an absence."""
    with gate(mortal.cluster.host) as opens:
        (build,) = submit(mortal, "held", 1, opens.wait)
        mortal.until_state(build, State.RUNNING)
        mortal.kill("watch")
        mortal.cluster.kubectl("--namespace", mortal.namespace, "delete", "pods", "--all", "--wait=false", "--grace-period=1")
        mortal.start("watch")
        until(lambda: mortal.read(build).attempts[0].runs[0].reason, "the deletion is recorded", 60)
        opens.open()
        record = mortal.until_state(build, State.SUCCEEDED, seconds=100)
    assert [str(attempt.runs[0].reason) for attempt in record.attempts] == ["pod_lost", "None"], mortal.tell(build)
    assert mortal.event_names(build).count("build.finished") == 1
