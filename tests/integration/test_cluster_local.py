"""The local cluster: the contract, and what only processes and files can show."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ledger.errors import LaunchRefused, WatchExpired
from tests.contract import (
    GRACE,
    PATIENCE,
    ClusterContract,
    Kind,
    closing,
    ended,
    find,
    first_line,
    is_ended,
    is_gone,
    is_running,
    log_of,
    seen,
    until,
)
from worker.cluster import FolderMount, Launch, Phase, PodName, SecretMount, SecretVariable
from worker.cluster.folder import LaunchFolder
from worker.cluster.local import LocalCluster
from worker.cluster.runner import Runner
from worker.cluster.sessions import members

EXECUTOR = """\
import json, os, signal, subprocess, sys, time
kind, *arguments = sys.argv[1:]
def leave(message):
    with open(os.environ["CRABPOT_TERMINATION_LOG"], "w") as file:
        file.write(message)
if kind == "echo":
    for argument in arguments:
        print(f"[{argument}]", flush=True)
elif kind == "succeed":
    print("working", flush=True)
    leave("sha256:" + "a" * 64)
elif kind == "fail":
    print("boom", file=sys.stderr, flush=True)
    sys.exit(3)
elif kind == "environment":
    print(json.dumps(dict(os.environ)), flush=True)
elif kind == "long-message":
    leave("m" * 5000)
elif kind == "background":
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=False)
    print(child.pid, flush=True)
elif kind == "noise":
    for number in range(int(arguments[0])):
        print(f"line {number}")
    sys.stdout.write("no newline")
elif kind == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave("sha256:" + "b" * 64)
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    child.wait()
"""


def make(kind: str, **changes: Any) -> Launch:
    build = changes.pop("build", str(uuid4()))
    arguments = (kind, *changes.pop("arguments", ()))
    fields = {
        "pod": PodName(f"crabpot-{build}-1-abcdef"),
        "attempt": 1,
        "platform": "linux/amd64",
        "project": "demo",
        "namespace": "any",
        "image": "registry.example.com/executor:1",
        "memory": "2Gi",
        **changes,
    }
    return Launch(build=build, arguments=arguments, **fields)


@pytest.fixture
def executor(tmp_path: Path) -> list[str]:
    program = tmp_path / "executor.py"
    program.write_text(EXECUTOR)
    return [sys.executable, "-S", "-E", str(program)]


@pytest.fixture
def make_launch() -> Any:
    def launch(kind: Kind, **changes: Any) -> Launch:
        return make(kind, **changes)

    return launch


@pytest.fixture
async def cluster(tmp_path: Path, executor: list[str]) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster(tmp_path / "state", executor)
    yield cluster
    for pod in (await cluster.pods()).pods:
        await cluster.delete(pod.name, pod.uid, timedelta(0))
        await cluster.release(pod.name, pod.uid)
    await cluster.close()


@pytest.fixture
async def other(tmp_path: Path, executor: list[str], cluster: LocalCluster) -> AsyncIterator[LocalCluster]:
    """Another process's view of the same state, as near as one process can have it."""
    other = LocalCluster(tmp_path / "state", executor)
    yield other
    await other.close()


class TestContract(ClusterContract):
    pass


def claim_of(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "state" / "pods" / name / "runner.json").read_text())
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def dead(pid: int) -> None:
    """Wait for a process's end."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        await asyncio.to_thread(select.select, [process], [], [], PATIENCE)
        os.close(process)


async def test_one_process_launches_and_another_watches(cluster: LocalCluster, other: LocalCluster) -> None:
    before = await other.pods()
    pod = await cluster.launch(make("succeed"))
    end = (await until(other, pod.name, is_ended, before.version))[-1]
    assert (end.uid, end.exit_code) == (pod.uid, 0)
    before = await other.pods()
    await cluster.delete(pod.name, pod.uid, GRACE)
    await cluster.release(pod.name, pod.uid)
    await until(other, pod.name, is_gone, before.version)


async def test_a_version_of_another_process_is_expired(cluster: LocalCluster, other: LocalCluster) -> None:
    version = (await other.pods()).version
    with pytest.raises(WatchExpired):
        await anext(cluster.watch(version))


async def test_a_launch_outlives_the_process_that_started_it(cluster: LocalCluster, tmp_path: Path, executor: list[str]) -> None:
    before = await cluster.pods()
    script = f"""
import asyncio, os, signal
from pathlib import Path
from tests.integration.test_cluster_local import make
from worker.cluster.local import LocalCluster
async def main():
    await LocalCluster(Path({str(tmp_path / "state")!r}), {executor!r}).launch(make("stubborn", build="one"))
    os.killpg(os.getpgid(0), signal.SIGKILL)
asyncio.run(main())
"""
    launcher = await asyncio.create_subprocess_exec(sys.executable, "-c", script, process_group=0)
    assert await launcher.wait() == -signal.SIGKILL
    pod = (await until(cluster, make("stubborn", build="one").pod, is_running, before.version))[-1]
    assert lives(int(await first_line(cluster, pod.name)))


async def test_a_killed_runner_is_an_end_that_is_no_success(cluster: LocalCluster, tmp_path: Path) -> None:
    """And what it ran is killed too, before anybody hears of the end."""
    pod = await cluster.launch(make("stubborn"))
    child = int(await first_line(cluster, pod.name))
    before = await cluster.pods()
    os.kill(claim_of(tmp_path, pod.name)["pid"], signal.SIGKILL)
    end = (await until(cluster, pod.name, is_ended, before.version))[-1]
    assert (end.reason, end.exit_code, end.message, end.disrupted) == ("RunnerLost", None, None, True)
    assert not lives(child)
    assert find(await cluster.pods(), pod.name) == end, "the end is recorded once"
    await cluster.delete(pod.name, pod.uid, GRACE)
    await cluster.release(pod.name, pod.uid)
    await until(cluster, pod.name, is_gone, before.version)


async def test_a_runner_that_died_while_nobody_watched(cluster: LocalCluster, other: LocalCluster, tmp_path: Path) -> None:
    pod = await cluster.launch(make("sleep"))
    child = int(await first_line(cluster, pod.name))
    await cluster.close()
    runner = claim_of(tmp_path, pod.name)["pid"]
    os.kill(runner, signal.SIGKILL)
    await dead(runner)
    end = find(await other.pods(), pod.name)
    assert end
    assert (end.phase, end.reason) == (Phase.ENDED, "RunnerLost")
    await dead(child)
    assert not lives(child)


async def test_a_reused_process_id_is_not_taken_for_the_runner(cluster: LocalCluster, tmp_path: Path) -> None:
    """As after a restart of the machine: the claim names a process that lives, and is another's."""
    pod = await cluster.launch(make("sleep"))
    innocent = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    os.kill(claim_of(tmp_path, pod.name)["pid"], signal.SIGKILL)
    await ended(cluster, pod.name)
    folder = tmp_path / "state" / "pods" / pod.name
    (folder / "end.json").unlink()
    (folder / "runner.json").write_text(json.dumps({**claim_of(tmp_path, pod.name), "pid": innocent.pid}))
    await cluster.delete(pod.name, pod.uid, timedelta(0))
    assert (await ended(cluster, pod.name)).reason == "RunnerLost"
    assert innocent.returncode is None
    assert lives(innocent.pid)
    innocent.kill()
    await innocent.wait()


async def test_a_log_ends_when_the_runner_is_killed(cluster: LocalCluster, tmp_path: Path) -> None:
    pod = await cluster.launch(make("sleep"))
    async with asyncio.timeout(PATIENCE), closing(cluster.logs(pod.name)) as lines:
        await anext(lines)
        os.kill(claim_of(tmp_path, pod.name)["pid"], signal.SIGKILL)
        assert [line async for line in lines] == []


async def test_a_launch_whose_starter_was_killed_is_started_by_the_next(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(name: str) -> None:
        raise KeyboardInterrupt

    launch = make("succeed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cluster, "_start", killed)
        await cluster.launch(launch)
    assert (await seen(cluster, launch.pod, lambda _: True)).phase is Phase.PENDING
    first = find(await cluster.pods(), launch.pod)
    assert first
    assert (await cluster.launch(launch)).uid == first.uid
    assert (await ended(cluster, launch.pod)).exit_code == 0


async def test_a_launch_that_never_started_ends_by_its_deletion(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(name: str) -> None:
        raise KeyboardInterrupt

    launch = make("succeed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cluster, "_start", killed)
        await cluster.launch(launch)
    pod = await seen(cluster, launch.pod, lambda _: True)
    await cluster.delete(pod.name, pod.uid, GRACE)
    end = await ended(cluster, pod.name)
    assert (end.exit_code, end.reason, end.started) == (None, "Deleted", None)
    assert (await cluster.launch(launch)).phase is Phase.ENDED, "and is not started by a late launch"


async def test_a_launch_that_is_deleted_between_its_claim_and_its_start_executes_nothing(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[int] = []

    async def claimed(name: str) -> None:
        with LaunchFolder.open(tmp_path / "state" / "pods" / name) as folder:
            claim = folder.claim()
            assert claim is not None
            claims.append(claim)

    launch = make("succeed")
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_start", claimed)
        running = await cluster.launch(launch)
    assert running.phase is Phase.RUNNING
    told, tell = os.pipe()
    try:
        with LaunchFolder.open(tmp_path / "state" / "pods" / launch.pod) as folder:
            folder.ask_end(GRACE)
            folder.end(Runner(folder, told).run())
        end = await ended(cluster, launch.pod)
        assert (end.exit_code, end.reason, end.message) == (None, "Deleted", None)
        assert await log_of(cluster, launch.pod) == ""
    finally:
        for descriptor in (told, tell, *claims):
            os.close(descriptor)


async def test_a_process_that_ignores_its_end_is_killed_after_the_grace(cluster: LocalCluster) -> None:
    pod = await cluster.launch(make("stubborn"))
    child = int(await first_line(cluster, pod.name))
    await cluster.delete(pod.name, pod.uid, timedelta(seconds=300))
    await cluster.delete(pod.name, pod.uid, timedelta(milliseconds=50))
    end = await ended(cluster, pod.name)
    assert (end.exit_code, end.reason) == (137, "Error")
    assert not lives(child)


async def test_what_an_executor_leaves_behind_is_killed(cluster: LocalCluster) -> None:
    pod = await cluster.launch(make("background"))
    end = await ended(cluster, pod.name)
    assert end.exit_code == 0
    assert not lives(int(await first_line(cluster, pod.name)))


async def test_a_launch_that_runs_for_too_long_is_killed(cluster: LocalCluster) -> None:
    pod = await cluster.launch(make("sleep", run_deadline=timedelta(seconds=0.2)))
    end = await ended(cluster, pod.name)
    assert (end.exit_code, end.reason) == (137, "DeadlineExceeded")


async def test_a_runner_that_is_told_to_stop_by_the_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    pod = await cluster.launch(make("sleep"))
    await first_line(cluster, pod.name)
    os.kill(claim_of(tmp_path, pod.name)["pid"], signal.SIGTERM)
    end = await ended(cluster, pod.name)
    assert (end.exit_code, end.reason, end.disrupted) == (143, "Terminated", True)


async def test_a_killed_executor(cluster: LocalCluster) -> None:
    assert (await ended(cluster, (await cluster.launch(make("kill"))).name)).exit_code == 137


async def test_an_executor_that_is_not_there(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "state", ["no-such-program-at-all"])
    end = await ended(cluster, (await cluster.launch(make("succeed"))).name)
    assert (end.exit_code, end.reason) == (128, "StartError")
    assert "no-such-program-at-all" in (end.detail or "")
    await cluster.close()


async def test_a_message_is_cut(cluster: LocalCluster) -> None:
    end = await ended(cluster, (await cluster.launch(make("long-message"))).name)
    assert end.message == "m" * 4096


async def test_a_long_log_arrives_whole_with_rising_times(cluster: LocalCluster) -> None:
    pod = await cluster.launch(make("noise", arguments=("5000",)))
    async with asyncio.timeout(PATIENCE):
        lines = [line async for line in cluster.logs(pod.name)]
    assert [line.text for line in lines] == [*(f"line {number}" for number in range(5000)), "no newline"]
    assert all(before.time < after.time for before, after in pairwise(lines))


async def test_an_executor_sees_its_environment_and_none_of_ours(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRABPOT_API_TOKEN", "ours")
    source = tmp_path / "source"
    source.mkdir()
    launch = make(
        "environment",
        environment={"GREETING": "hello $(HOME) $$ world\n", "CRABPOT_LAUNCH": "not this"},
        folders=(
            FolderMount(path="/kaniko/source", host_path=str(source)),
            FolderMount(path="/kaniko/output", host_path=str(tmp_path / "made" / "output"), writable=True),
        ),
    )
    pod = await cluster.launch(launch)
    await ended(cluster, pod.name)
    environment = json.loads(await log_of(cluster, pod.name))
    assert environment["GREETING"] == "hello $(HOME) $$ world\n"
    assert environment["CRABPOT_LAUNCH"] == pod.uid
    assert json.loads(environment["CRABPOT_FOLDERS"]) == {
        "/kaniko/source": str(source),
        "/kaniko/output": str(tmp_path / "made" / "output"),
    }
    assert (tmp_path / "made" / "output").is_dir()
    assert "ours" not in environment.values()


async def test_a_folder_is_for_its_owner_alone(cluster: LocalCluster, tmp_path: Path) -> None:
    pod = await cluster.launch(make("succeed"))
    assert (tmp_path / "state" / "pods" / pod.name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"folders": (FolderMount(path="/kaniko/source", claim="data"),)}, "the claim data"),
        ({"folders": (FolderMount(path="/kaniko/source", config_map="files"),)}, "the ConfigMap files"),
        ({"folders": (FolderMount(path="/kaniko/source", host_path="/no/such/folder"),)}, "/no/such/folder"),
        ({"secret_mounts": (SecretMount(secret="login", key="k", path="/x"),)}, "the Secret login"),
        ({"secret_variables": (SecretVariable(name="N", secret="value", key="k"),)}, "the Secret value"),
        ({"node_selector": {"disk": "ssd"}}, "a node selector"),
        ({"node_name": "node1"}, "a node name"),
        ({"tolerations": ({"key": "x"},)}, "tolerations"),
        ({"affinity": {"nodeAffinity": {}}}, "affinity"),
        ({"runtime_class": "gvisor"}, "a runtime class"),
        ({"priority_class": "high"}, "a priority class"),
        ({"service_account": "builder"}, "a service account"),
        ({"image_pull_secrets": ("pull",)}, "image pull secrets"),
    ],
)
async def test_what_a_machine_cannot_do_is_refused_by_name(cluster: LocalCluster, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(LaunchRefused, match=named):
        await cluster.launch(make("succeed", **changes))
    assert (await cluster.pods()).pods == ()


async def test_all_that_is_refused_is_named_at_once(cluster: LocalCluster) -> None:
    with pytest.raises(LaunchRefused, match="a node name, a runtime class"):
        await cluster.launch(make("succeed", node_name="node1", runtime_class="gvisor"))


async def test_labels_and_optional_secrets_are_no_trouble(cluster: LocalCluster) -> None:
    optional = SecretVariable(name="N", secret="value", key="k", optional=True)
    pod = await cluster.launch(make("succeed", labels={"team": "a"}, annotations={"note": "b"}, secret_variables=(optional,)))
    assert (await ended(cluster, pod.name)).exit_code == 0


async def test_nothing_is_left_once_all_is_gone(cluster: LocalCluster, tmp_path: Path) -> None:
    pods = [await cluster.launch(make("succeed")) for _ in range(3)]
    runners = [claim_of(tmp_path, pod.name)["pid"] for pod in pods]
    before = await cluster.pods()
    for pod in pods:
        await cluster.delete(pod.name, pod.uid, GRACE)
        await cluster.release(pod.name, pod.uid)
    for pod in pods:
        await until(cluster, pod.name, is_gone, before.version)
    for runner in runners:
        await dead(runner)
        assert not [pid for pid in members(runner) if lives(pid)]
    assert list((tmp_path / "state" / "pods").iterdir()) == []
    assert [path.name for path in (tmp_path / "state" / "staging").iterdir()] == ["lock"]


async def test_many_at_once(cluster: LocalCluster, other: LocalCluster) -> None:
    """Two launchers race for each of some names; each name runs once."""
    launches = [make("succeed") for _ in range(6)]
    before = await other.pods()
    pods = await asyncio.gather(*(where.launch(launch) for launch in launches for where in (cluster, other)))
    assert len({pod.uid for pod in pods}) == len(launches)
    for launch in launches:
        assert (await until(other, launch.pod, is_ended, before.version))[-1].exit_code == 0


async def test_launch_is_equal_whatever_it_would_run(cluster: LocalCluster) -> None:
    launch = make("sleep")
    first = await cluster.launch(launch)
    assert (await cluster.launch(replace(launch, arguments=("fail",)))).uid == first.uid
