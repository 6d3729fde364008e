"""Builds that end otherwise than well: each says its true reason, also when nobody watched while it happened."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledger.build import Reason, State
from tests.e2e.harness import Crabpot, crabpot_on, open_project
from tests.e2e.harness_cluster import Cluster, until
from tests.e2e.harness_forge import Forge, Repository
from tests.e2e.harness_registry import LockedRegistry
from tests.e2e.harness_servers import gate

pytestmark = pytest.mark.timeout(300)
"""Ten builds end before the first test is done."""


@dataclass(frozen=True)
class Expected:
    """How a build must end."""

    reason: Reason
    words: str
    """Stand in its message or in the log's end that is kept with it."""
    real_only: bool = False
    """What the stand-in does not do as Kaniko does."""


EXPECTED = {
    "failing-run": Expected(Reason.BUILD_FAILED, "it broke here"),
    "run-exits-137": Expected(Reason.BUILD_FAILED, "exited with 137"),
    "cached-layer": Expected(Reason.BUILD_FAILED, "the second step broke", real_only=True),
    "missing-copy": Expected(Reason.BUILD_FAILED, "absent.txt"),
    "missing-dockerfile": Expected(Reason.DOCKERFILE_INVALID, "there is no Dockerfile at that path", real_only=True),
    "invalid-dockerfile": Expected(Reason.DOCKERFILE_INVALID, "NONSENSE", real_only=True),
    "missing-base": Expected(Reason.BASE_IMAGE_MISSING, "base/absent"),
    "refused-push": Expected(Reason.REGISTRY_DENIED, "secrets.docker_config"),
    "missing-commit": Expected(Reason.SOURCE_MISSING, "source", real_only=True),
    "private-source": Expected(Reason.SOURCE_DENIED, "secrets.git", real_only=True),
}


@dataclass
class Unseen:
    """Builds whose pods all ended while no watcher ran."""

    crabpot: Crabpot
    builds: dict[str, str]
    messages: dict[str, str] = field(default_factory=dict)
    """The termination message that each pod ended with."""


@pytest.fixture(scope="module")
def repositories(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Repository, Repository]]:
    folder, mark = tmp_path_factory.mktemp("repositories"), secrets.token_hex(3)
    found = (forge.create(f"open-{mark}", folder / "open"), forge.create(f"closed-{mark}", folder / "closed", private=True))
    for repository in found:
        repository.commit({"Dockerfile": "FROM scratch\nCOPY . /\n"})
        repository.push()
    yield found
    for repository in found:
        repository.delete()


def failing(crabpot: Crabpot, locked: LockedRegistry, repositories: tuple[Repository, Repository]) -> dict[str, dict[str, Any]]:
    """The requests, by name; each alone is wrong in one way."""
    base = f"FROM {crabpot.cluster.registry}/base/busybox:1"
    crabpot.secret("wrong-login", {"config.json": locked.docker_config("not-the-password")})

    def context(name: str, text: str, **fields: Any) -> dict[str, Any]:
        return {"source": crabpot.config_map(name, {"Dockerfile": text, "file.txt": "text"}), **fields}

    def git(repository: Repository) -> dict[str, Any]:
        return {"source": {"kind": "git", "url": repository.url, "ref": "refs/heads/main", "commit": secrets.token_hex(20)}}

    return {
        "failing-run": context("failing-run", f"{base}\nRUN echo it broke here && exit 3\n"),
        "run-exits-137": context("run-exits-137", f"{base}\nRUN exit 137\n"),
        # The first layer is pushed to the cache beside the build; by the time that the second RUN fails, its digest is the message.
        "cached-layer": context(
            "cached-layer",
            f"{base}\nRUN echo first > /first\nRUN sleep 2; echo the second step broke; exit 4\n",
            cache={"repository": crabpot.image("cache").rpartition(":")[0]},
        ),
        "missing-copy": context("missing-copy", f"{base}\nCOPY absent.txt /\n"),
        "missing-dockerfile": context("missing-dockerfile", base, dockerfile="no-such.dockerfile"),
        "invalid-dockerfile": context("invalid-dockerfile", f"{base}\nNONSENSE\n"),
        "missing-base": context("missing-base", f"FROM {crabpot.cluster.registry}/base/absent:1\nRUN true\n"),
        "refused-push": context(
            "refused-push",
            "FROM scratch\nCOPY file.txt /\n",
            destinations=[f"{locked.host}/team/app:1.0.0"],
            registries={"insecure": [locked.host]},
            secrets={"docker_config": {"secret": "wrong-login", "key": "config.json"}},
        ),
        "missing-commit": git(repositories[0]),
        "private-source": git(repositories[1]),
    }


@pytest.fixture(scope="module")
def unseen(
    cluster: Cluster,
    redis: str,
    locked: LockedRegistry,
    repositories: tuple[Repository, Repository],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Unseen]:
    """All of them run and end with a worker only; the watcher comes afterwards."""
    folder: Path = tmp_path_factory.mktemp("unseen")
    projects = {"limits": {"max_builds": 20}, "projects": {"open": open_project(cluster)}}
    with crabpot_on(cluster, redis, folder, "unseen", projects) as crabpot:
        crabpot.store_projects()
        requests = failing(crabpot, locked, repositories)
        wanted = {name: fields for name, fields in requests.items() if cluster.real or not EXPECTED[name].real_only}
        builds = {name: crabpot.submit(crabpot.request(name, **fields)) for name, fields in wanted.items()}
        found = Unseen(crabpot, builds)
        crabpot.start("worker")
        crabpot.nudge()
        for build in builds.values():
            crabpot.until_state(build, State.STARTING)
        names = {name: crabpot.read(build).current.runs[0].pod for name, build in builds.items()}

        def ended() -> bool:
            states = {pod["metadata"]["name"]: pod["status"].get("containerStatuses", [{}])[0].get("state", {}) for pod in crabpot.pods()}
            found.messages = {
                name: states[pod]["terminated"].get("message", "") for name, pod in names.items() if "terminated" in states.get(pod, {})
            }
            return len(found.messages) == len(builds)

        until(ended, lambda: f"the pods of {set(builds) - set(found.messages)} have ended", 90)
        assert {crabpot.read(build).state for build in builds.values()} == {State.STARTING}, "nobody watched"
        crabpot.start("watch")
        yield found


@pytest.mark.parametrize("name", EXPECTED)
def test_the_true_reason_is_told_though_nobody_watched(unseen: Unseen, name: str) -> None:
    expected, crabpot = EXPECTED[name], unseen.crabpot
    if name not in unseen.builds:
        pytest.skip(f"{name}: the stand-in fails in another way than Kaniko; real Kaniko only")
    record = crabpot.wait(unseen.builds[name])
    run = record.current.runs[0]
    told = f"{record.message}\n" + "\n".join(run.log_tail)
    assert (record.state, record.reason) == (State.FAILED, expected.reason), crabpot.tell(record.id)
    assert expected.words in told, told
    assert run.exit_code not in (None, 0)
    assert record.attempt == 1, "a user's mistake is not tried again"
    assert run.digest is None
    assert record.digest is None


def test_a_digest_in_the_termination_message_of_a_failure_counts_for_nothing(unseen: Unseen) -> None:
    if not unseen.crabpot.cluster.real:
        pytest.skip("the stand-in has no cache; real Kaniko only")
    assert unseen.messages["cached-layer"].startswith("sha256:"), f"else this proves nothing: {unseen.messages['cached-layer']}"
    assert unseen.crabpot.wait(unseen.builds["cached-layer"]).digest is None


def test_a_refused_push_leaks_no_password(unseen: Unseen) -> None:
    record = unseen.crabpot.wait(unseen.builds["refused-push"])
    assert "not-the-password" not in record.model_dump_json() + unseen.crabpot.log(record.id)


def test_each_failure_is_told_of_once_and_leaves_nothing_behind(unseen: Unseen) -> None:
    crabpot = unseen.crabpot
    for build in unseen.builds.values():
        crabpot.wait(build)
        assert crabpot.event_names(build) == ["build.queued", "build.finished"], crabpot.tell(build)
        finished = crabpot.events(build)[-1]["data"]["customData"]
        assert (finished["outcome"], finished["reason"]) == ("failure", str(crabpot.read(build).reason))
    assert crabpot.slots() == {}
    until(lambda: not crabpot.pods(), "every pod is gone")


def test_a_secret_that_does_not_exist(crabpot: Crabpot) -> None:
    source = crabpot.config_map("no-secret", {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    absent = {"KEY": {"secret": "absent", "key": "key"}}
    record = crabpot.wait(crabpot.submit(crabpot.request("no-secret", source=source, build_args=absent)))
    assert (record.state, record.reason) == (State.FAILED, Reason.CONFIG_ERROR), crabpot.tell(record.id)
    assert '"absent" not found' in str(record.message)


def test_a_secret_that_does_not_exist_and_is_mounted(crabpot: Crabpot) -> None:
    source = crabpot.config_map("no-mount", {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    absent = {"docker_config": {"secret": "absent", "key": "config.json"}}
    record = crabpot.wait(crabpot.submit(crabpot.request("no-mount", source=source, secrets=absent)))
    assert (record.state, record.reason) == (State.FAILED, Reason.CONFIG_ERROR), crabpot.tell(record.id)
    assert '"absent" not found' in str(record.message)


def test_a_build_that_runs_out_of_memory_is_given_twice_as_much(crabpot: Crabpot) -> None:
    if not crabpot.cluster.real:
        pytest.skip("the stand-in's own memory is another; real Kaniko only")
    dockerfile = f"FROM {crabpot.cluster.registry}/base/busybox:1\nRUN dd if=/dev/zero of=/dev/null bs=160M count=1\n"
    source = crabpot.config_map("hungry", {"Dockerfile": dockerfile})
    record = crabpot.succeed(crabpot.submit(crabpot.request("hungry", source=source, resources={"memory": "128Mi"})))
    assert [attempt.runs[0].reason for attempt in record.attempts] == [Reason.OUT_OF_MEMORY, None], crabpot.tell(record.id)
    assert "build.retried" in " ".join(crabpot.event_names(record.id))


def test_a_cancel_while_it_runs(crabpot: Crabpot) -> None:
    """The pod ends, its slot is free, and the build is cancelled, within seconds."""
    source = crabpot.config_map("endless", {"Dockerfile": f"FROM {crabpot.cluster.registry}/base/busybox:1\nRUN echo begun && sleep 600\n"})
    build = crabpot.submit(crabpot.request("endless", source=source))
    crabpot.until_state(build, State.RUNNING)
    until(lambda: "begun" in crabpot.log(build), "its RUN has begun")
    crabpot.cancel(build)
    record = crabpot.wait(build, 15)
    assert (record.state, record.reason) == (State.CANCELLED, Reason.CANCELLED), crabpot.tell(build)
    assert not [slot for slot in crabpot.slots() if slot.startswith(build)]
    until(lambda: crabpot.pod(build) is None, "its pod is gone", 10)
    assert crabpot.events(build)[-1]["data"]["customData"]["outcome"] == "cancel"


def test_a_pod_that_somebody_else_deletes_is_no_success_and_is_tried_again(crabpot: Crabpot) -> None:
    with gate(crabpot.cluster.host) as opens:
        dockerfile = f"FROM {crabpot.cluster.registry}/base/busybox:1\nRUN {opens.wait}\n"
        build = crabpot.submit(crabpot.request("deleted", source=crabpot.config_map("deleted", {"Dockerfile": dockerfile})))
        crabpot.until_state(build, State.RUNNING)
        pod = crabpot.pod(build)
        assert pod
        crabpot.cluster.kubectl(
            "--namespace", crabpot.namespace, "delete", "pod", pod["metadata"]["name"], "--wait=false", "--grace-period=1"
        )
        until(lambda: crabpot.read(build).attempts[0].runs[0].reason, "its end is recorded")
        opens.open()
        record = crabpot.succeed(build)
    assert [attempt.runs[0].reason for attempt in record.attempts] == [Reason.POD_LOST, None], crabpot.tell(build)
    names = [attempt.runs[0].pod for attempt in record.attempts]
    assert names[0] != names[1]
