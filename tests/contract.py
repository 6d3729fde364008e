"""What every implementation of `worker.cluster.Cluster` keeps. Not collected by itself: a test module subclasses `ClusterContract`
and gives it two fixtures:

`cluster`      the cluster, opened on the test's event loop and closed after it
`make_launch`  a function (kind, **changes) -> Launch; each call names another build unless `changes` say otherwise. What it runs:
    succeed    prints a line, leaves a message `sha256:` and 64 digits, exits 0
    fail       prints a line with the word `boom`, leaves no message, exits 3
    sleep      prints a line, then runs for a minute at least, and ends when it is told to (SIGTERM)
    echo       prints each of its arguments (changes: `arguments`) as `[argument]` and a newline, exits 0
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar, cast
from uuid import uuid4

import pytest

from ledger.errors import PodConflict, WatchExpired
from worker.cluster import Cluster, Launch, Phase, Pod, PodName, Snapshot

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds until a test gives up; none waits for a time to pass."""
GRACE = timedelta(seconds=1)
Kind = Literal["succeed", "fail", "sleep", "echo"]
ODD_ARGUMENTS = (
    "--build-arg=GREETING=hello big  world",
    "--quotes='single' \"double\" `back`",
    "$(HOME) $HOME ${HOME} $$ $$(HOME) $",
    "--lines=one\ntwo\n\nfour",
    "--odd=\\n * ? [a-z] ~ # ; & | < > ! %s {}",
    "--ünïcode=ж✓",
    "",
)


def closing(iterator: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """The protocol promises an iterator only; all of ours are generators, which are closed when a test has seen enough."""
    return aclosing(cast("AsyncGenerator[T, None]", iterator))


class MakeLaunch(Protocol):
    def __call__(self, kind: Kind, **changes: Any) -> Launch: ...


def is_ended(pod: Pod) -> bool:
    return pod.phase is Phase.ENDED


def is_running(pod: Pod) -> bool:
    return pod.phase is Phase.RUNNING


def is_gone(pod: Pod) -> bool:
    return pod.phase is Phase.GONE


async def until(cluster: Cluster, name: PodName, wanted: Callable[[Pod], bool], since: str) -> list[Pod]:
    """What the watch told of a pod, up to the first that was waited for."""
    told = []
    async with asyncio.timeout(PATIENCE), closing(cluster.watch(since)) as pods:
        async for pod in pods:
            if pod.name == name:
                told.append(pod)
                if wanted(pod):
                    return told
    raise AssertionError("a watch never ends by itself")


async def seen(cluster: Cluster, name: PodName, wanted: Callable[[Pod], bool]) -> Pod:
    """The pod once it is as it was waited for, by list and watch."""
    snapshot = await cluster.pods()
    for pod in snapshot.pods:
        if pod.name == name and wanted(pod):
            return pod
    return (await until(cluster, name, wanted, snapshot.version))[-1]


async def ended(cluster: Cluster, name: PodName) -> Pod:
    return await seen(cluster, name, is_ended)


async def log_of(cluster: Cluster, name: PodName) -> str:
    async with asyncio.timeout(PATIENCE):
        return "".join([line.text + "\n" async for line in cluster.logs(name)])


async def first_line(cluster: Cluster, name: PodName) -> str:
    """What the program of a running pod writes first: before, it may not have executed anything."""
    async with asyncio.timeout(PATIENCE), closing(cluster.logs(name)) as lines:
        return (await anext(lines)).text


def find(snapshot: Snapshot, name: PodName) -> Pod | None:
    return next((pod for pod in snapshot.pods if pod.name == name), None)


class ClusterContract:
    """Test methods for a `cluster` and a `make_launch`."""

    @pytest.fixture
    async def run(self, cluster: Cluster, make_launch: MakeLaunch) -> AsyncIterator[Callable[..., Any]]:
        """Launch, and leave nothing behind."""
        pods: dict[str, Pod] = {}

        async def launch(kind: Kind | Launch, **changes: Any) -> Pod:
            pod = await cluster.launch(kind if isinstance(kind, Launch) else make_launch(kind, **changes))
            pods[pod.uid] = pod
            return pod

        yield launch
        for pod in pods.values():
            await cluster.delete(pod.name, pod.uid, GRACE)
            await cluster.release(pod.name, pod.uid)
        left = await cluster.pods()
        for pod in left.pods:
            if pod.uid in pods:
                await until(cluster, pod.name, is_gone, left.version)

    async def test_a_launch_runs_to_its_end(self, cluster: Cluster, run: Any, make_launch: MakeLaunch) -> None:
        before = await cluster.pods()
        launch = make_launch("succeed")
        pod = await run(launch)
        assert (pod.name, pod.build, pod.attempt, pod.platform) == (launch.pod, launch.build, launch.attempt, launch.platform)
        assert pod.uid
        assert pod.held
        assert not pod.deleting
        told = await until(cluster, pod.name, is_ended, before.version)
        order = [Phase.PENDING, Phase.RUNNING, Phase.ENDED]
        assert [order.index(seen.phase) for seen in told] == sorted(order.index(seen.phase) for seen in told)
        last = told[-1]
        assert (last.exit_code, last.reason, last.disrupted, last.held) == (0, "Completed", False, True)
        assert last.message
        assert last.message.startswith("sha256:")
        assert len(last.message) == 7 + 64
        assert last.node
        assert last.created
        assert last.started
        assert last.ended
        assert last.created - timedelta(seconds=1) <= last.started <= last.ended
        assert abs(datetime.now(UTC) - last.ended) < timedelta(minutes=2)
        assert find(await cluster.pods(), pod.name) == last

    async def test_a_running_launch_is_seen_running(self, cluster: Cluster, run: Any) -> None:
        pod = await run("sleep")
        running = await seen(cluster, pod.name, is_running)
        assert running.started
        assert running.exit_code is None
        assert running.ended is None

    async def test_a_second_equal_launch_is_the_first(self, cluster: Cluster, run: Any, make_launch: MakeLaunch) -> None:
        launch = make_launch("sleep")
        first, second = await asyncio.gather(run(launch), run(launch))
        assert first.uid == second.uid
        again = await run(launch)
        assert again.uid == first.uid
        assert [pod.uid for pod in (await cluster.pods()).pods if pod.name == launch.pod] == [first.uid]

    async def test_an_ended_launch_is_not_run_again(self, cluster: Cluster, run: Any, make_launch: MakeLaunch) -> None:
        launch = make_launch("succeed")
        first = await run(launch)
        end = await ended(cluster, first.name)
        assert (await run(launch)).uid == first.uid
        assert find(await cluster.pods(), launch.pod) == end

    async def test_a_name_that_another_attempt_has_is_a_conflict(self, cluster: Cluster, run: Any, make_launch: MakeLaunch) -> None:
        first = await run("sleep")
        for other in ({"build": str(uuid4())}, {"build": first.build, "attempt": first.attempt + 1}):
            with pytest.raises(PodConflict):
                await cluster.launch(make_launch("sleep", pod=first.name, **other))
        found = find(await cluster.pods(), first.name)
        assert found
        assert found.uid == first.uid

    async def test_a_failure_tells_its_exit_code_and_log(self, cluster: Cluster, run: Any) -> None:
        pod = await run("fail")
        end = await ended(cluster, pod.name)
        assert (end.exit_code, end.reason) == (3, "Error")
        assert "boom" in (end.message or ""), "where the executor leaves no message, the log's end stands in"
        assert "boom" in await log_of(cluster, pod.name)

    async def test_arguments_arrive_unchanged(self, cluster: Cluster, run: Any) -> None:
        pod = await run("echo", arguments=ODD_ARGUMENTS)
        await ended(cluster, pod.name)
        assert await log_of(cluster, pod.name) == "".join(f"[{argument}]\n" for argument in ODD_ARGUMENTS)

    async def test_a_log_is_followed_to_its_end(self, cluster: Cluster, run: Any) -> None:
        pod = await run("sleep")
        await seen(cluster, pod.name, is_running)
        async with asyncio.timeout(PATIENCE), closing(cluster.logs(pod.name)) as lines:
            first = await anext(lines)
            assert abs(datetime.now(UTC) - first.time) < timedelta(minutes=2)
            await cluster.delete(pod.name, pod.uid, GRACE)
            rest = [line async for line in lines]
        assert all(line.time >= first.time for line in rest)

    async def test_a_log_is_read_on_from_a_time(self, cluster: Cluster, run: Any) -> None:
        pod = await run("echo", arguments=("one", "two", "three", "four"))
        await ended(cluster, pod.name)
        whole = [line async for line in cluster.logs(pod.name)]
        assert [line.text for line in whole] == ["[one]", "[two]", "[three]", "[four]"]
        middle = whole[2].time
        assert [line async for line in cluster.logs(pod.name, since=middle)] == [line for line in whole if line.time >= middle]
        assert [line async for line in cluster.logs(pod.name, since=whole[-1].time + timedelta(seconds=2))] == []

    async def test_there_is_no_log_of_no_pod(self, cluster: Cluster, make_launch: MakeLaunch) -> None:
        assert await log_of(cluster, make_launch("succeed").pod) == ""

    async def test_an_ended_pod_stays_until_it_is_released_and_deleted(self, cluster: Cluster, run: Any) -> None:
        pod = await run("succeed")
        await ended(cluster, pod.name)
        await cluster.delete(pod.name, pod.uid, GRACE)
        kept = await seen(cluster, pod.name, lambda pod: pod.deleting)
        assert (kept.phase, kept.held, kept.exit_code) == (Phase.ENDED, True, 0)
        before = await cluster.pods()
        await cluster.release(pod.name, pod.uid)
        gone = (await until(cluster, pod.name, is_gone, before.version))[-1]
        assert gone.uid == pod.uid
        assert find(await cluster.pods(), pod.name) is None

    async def test_a_released_pod_goes_when_it_is_deleted(self, cluster: Cluster, run: Any) -> None:
        pod = await run("succeed")
        await ended(cluster, pod.name)
        await cluster.release(pod.name, pod.uid)
        assert (await seen(cluster, pod.name, lambda pod: not pod.held)).phase is Phase.ENDED
        before = await cluster.pods()
        await cluster.delete(pod.name, pod.uid, GRACE)
        await until(cluster, pod.name, is_gone, before.version)

    async def test_a_running_pod_is_ended_by_its_deletion(self, cluster: Cluster, run: Any) -> None:
        pod = await run("sleep")
        await seen(cluster, pod.name, is_running)
        await first_line(cluster, pod.name)
        before = await cluster.pods()
        await cluster.delete(pod.name, pod.uid, GRACE)
        end = (await until(cluster, pod.name, is_ended, before.version))[-1]
        assert end.exit_code, "it was killed, which is never a success"
        assert end.deleting
        assert end.held, "its end is not recorded yet"
        await cluster.release(pod.name, pod.uid)
        await until(cluster, pod.name, is_gone, before.version)

    async def test_another_uid_has_no_effect(self, cluster: Cluster, run: Any) -> None:
        pod, other = await run("sleep"), str(uuid4())
        running = await seen(cluster, pod.name, is_running)
        await cluster.delete(pod.name, other, GRACE)
        await cluster.release(pod.name, other)
        assert find(await cluster.pods(), pod.name) == running

    async def test_no_pod_is_no_error(self, cluster: Cluster, make_launch: MakeLaunch) -> None:
        name = make_launch("succeed").pod
        await cluster.delete(name, str(uuid4()), GRACE)
        await cluster.release(name, str(uuid4()))

    async def test_a_watch_tells_what_happened_since_its_version(self, cluster: Cluster, run: Any) -> None:
        goes = await run("succeed")
        await ended(cluster, goes.name)
        before = await cluster.pods()
        comes = await run("succeed")
        await ended(cluster, comes.name)
        await cluster.delete(goes.name, goes.uid, GRACE)
        await cluster.release(goes.name, goes.uid)
        assert (await until(cluster, comes.name, is_ended, before.version))[-1].exit_code == 0
        assert (await until(cluster, goes.name, is_gone, before.version))[-1].uid == goes.uid

    async def test_a_name_can_be_used_again_once_it_is_free(self, cluster: Cluster, run: Any, make_launch: MakeLaunch) -> None:
        launch = make_launch("succeed")
        first = await run(launch)
        before = await cluster.pods()
        await ended(cluster, first.name)
        await cluster.delete(first.name, first.uid, GRACE)
        await cluster.release(first.name, first.uid)
        await until(cluster, first.name, is_gone, before.version)
        second = await run(launch)
        assert second.uid != first.uid
        await cluster.delete(first.name, first.uid, GRACE)  # late, and of another life
        assert (await ended(cluster, second.name)).deleting is False

    async def test_an_unknown_version_is_expired(self, cluster: Cluster) -> None:
        with pytest.raises(WatchExpired):
            async with asyncio.timeout(PATIENCE), closing(cluster.watch("no such version")) as pods:
                await anext(pods)
