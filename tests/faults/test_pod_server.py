"""The pod server keeps the contract that the real clusters keep, and goes wrong exactly as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from ledger.errors import ClusterUnavailable, NoRoom, WatchExpired
from tests.contract import ClusterContract
from tests.faults.pod_server import PodServer, serve_pods, serve_pods_in_thread
from tests.faults.pod_store import Change
from tests.faults.scripted_kubernetes import FAST, LAUNCH
from tests.faults.troubles import (
    cut,
    cut_after,
    delayed,
    doubled,
    expired_after,
    late,
    mute_after,
    page,
    refusal,
    seeded,
    silence,
    swapped,
    unheard,
)
from worker.cluster import Launch, Phase, PodName
from worker.cluster.kubernetes import KubernetesCluster

GRACE = timedelta(seconds=1)
DIGEST = "sha256:" + "e" * 64


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PodServer]:
    async with serve_pods(tmp_path) as server:
        yield server


@asynccontextmanager
async def opened(server: PodServer, **pace: float) -> AsyncIterator[KubernetesCluster]:
    cluster = KubernetesCluster(("one",), kubeconfig=server.kubeconfig, pace=replace(FAST, **pace))
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def cluster(server: PodServer) -> AsyncIterator[KubernetesCluster]:
    async with opened(server) as cluster:
        yield cluster


@pytest.fixture
def make_launch():
    def make(kind: str, **changes) -> Launch:
        build = changes.pop("build", None) or str(uuid4())
        return replace(LAUNCH, **{"build": build, "pod": PodName(f"crabpot-{build}-1"), "image": kind, **changes})

    return make


class TestContract(ClusterContract):
    """As against the real cluster (tests/e2e) and the local one."""

    @pytest.fixture(autouse=True)
    def _programs(self, server: PodServer) -> None:
        node = server.node

        def run(change: Change) -> None:
            name, container = change.pod["metadata"]["name"], change.pod["spec"]["containers"][0]
            if change.kind != "ADDED":
                return
            node.run(name)
            match container["image"]:
                case "succeed":
                    node.say(name, "well")
                    node.end(name, message=DIGEST)
                case "fail":
                    node.say(name, "boom")
                    node.end(name, 3)
                case "sleep":
                    node.say(name, "sleeps")
                case "echo":
                    printed = "\n".join(f"[{argument.replace('$$', '$')}]" for argument in container["args"])
                    node.say(name, *printed.split("\n"))
                    node.end(name, message=DIGEST)

        server.store.listeners.append(run)


async def told(cluster: KubernetesCluster, number: int) -> list[Phase]:
    found = []
    async with asyncio.timeout(10), aclosing(cluster.watch("one=1000")) as pods:
        async for pod in pods:
            found.append(pod.phase)
            if len(found) == number:
                break
    return found


async def test_a_list_comes_in_pages_of_one_moment(server, cluster, make_launch):
    server.largest_page = 2
    launches = [make_launch("x") for _ in range(5)]
    for launch in launches:
        await cluster.launch(launch)
    assert [pod.name for pod in (await cluster.pods()).pods] == [launch.pod for launch in launches]
    assert server.troubles.seen["list"] == 3
    page_of_two, _, go_on = server.store.list("one", limit=2)
    await cluster.launch(make_launch("x"))
    assert len(page_of_two) + len(server.store.list("one", go_on=go_on)[0]) == 5


async def test_what_was_compacted_has_to_be_listed_again(server, cluster, make_launch):
    version = (await cluster.pods()).version
    await cluster.launch(make_launch("x"))
    server.store.compact()
    with pytest.raises(WatchExpired):
        await anext(cluster.watch(version))
    server.largest_page = 1
    await cluster.launch(make_launch("x"))
    _, _, go_on = server.store.list("one", limit=1)
    server.store.compact()
    with pytest.raises(Exception, match="too old"):
        server.store.list("one", go_on=go_on)


async def test_a_watch_that_ends_in_time_leaves_a_bookmark(server, cluster, make_launch):
    await cluster.launch(make_launch("x"))
    async with opened(server, watch=0.5) as short, aclosing(short.watch("one=1000")) as pods:
        await anext(pods)
        going_on = asyncio.create_task(anext(pods))
        while server.troubles.seen["watch"] < 2:
            await asyncio.sleep(0.01)
        server.store.compact()  # the second watch began after it
        await cluster.launch(make_launch("x"))
        assert (await going_on).phase is Phase.PENDING


async def test_a_quota_is_used_by_what_lives(server, cluster, make_launch):
    server.store.quota = 1
    first = await cluster.launch(make_launch("x"))
    with pytest.raises(NoRoom):
        await cluster.launch(make_launch("x"))
    server.node.end(first.name)
    await cluster.launch(make_launch("x"))
    assert (server.store.most[""], len(server.store.created)) == (1, 2)


async def test_why_a_pod_does_not_start(server, cluster, make_launch):
    pod = await cluster.launch(make_launch("x"))
    assert await cluster.explain(pod.name, pod.uid) is None
    server.node.warn(pod.name, "FailedMount", 'secret "push" not found')
    assert await cluster.explain(pod.name, pod.uid) == ("FailedMount", 'secret "push" not found')
    server.node.find_no_room(pod.name)
    server.node.wait(pod.name, "ImagePullBackOff", "no such image")
    assert [pod.reason for pod in (await cluster.pods()).pods] == ["Unschedulable"]
    await cluster.delete(pod.name, pod.uid, GRACE)
    (end,) = (await cluster.pods()).pods
    assert (end.phase, end.reason, end.held) == (Phase.ENDED, "ContainerStatusUnknown", True)


@pytest.mark.parametrize("way", ["evict", "vanish"])
async def test_a_pod_goes_otherwise_than_by_us(server, cluster, make_launch, way):
    pod = await cluster.launch(make_launch("x"))
    server.node.run(pod.name)
    getattr(server.node, way)(pod.name)
    if way == "evict":
        (end,) = (await cluster.pods()).pods
        assert (end.phase, end.exit_code, end.reason, end.disrupted, end.held) == (Phase.ENDED, 137, "EvictionByEvictionAPI", True, True)
    else:
        assert not (await cluster.pods()).pods
        assert await told(cluster, 3) == [Phase.PENDING, Phase.RUNNING, Phase.GONE]


async def test_a_silent_node_obeys_no_deletion(server, cluster, make_launch):
    pod = await cluster.launch(make_launch("x"))
    server.node.run(pod.name)
    server.node.silent = True
    await cluster.delete(pod.name, pod.uid, GRACE)
    await cluster.release(pod.name, pod.uid)
    (kept,) = (await cluster.pods()).pods
    assert (kept.phase, kept.deleting, kept.held) == (Phase.RUNNING, True, False)
    server.node.end(pod.name)
    assert not server.store.pods


@pytest.mark.parametrize(
    "trouble",
    [cut, page(502), refusal(500), refusal(429, Retry_After="0"), refusal(409, "Conflict", "the object has been modified")],
    ids=["cut", "page", "500", "429", "409"],
)
@pytest.mark.parametrize("heard", [True, False], ids=["undone", "done"])
async def test_a_create_in_trouble_is_one_pod(server, cluster, make_launch, trouble, heard):
    server.troubles.next("create", trouble if heard else unheard(trouble))
    launch = make_launch("x")
    pod = await cluster.launch(launch)
    assert server.store.created == {launch.pod: [pod.uid]}
    assert server.troubles.met["create"] == 1
    assert server.troubles.seen["create"] == 2


@pytest.mark.parametrize("trouble", [silence, unheard(silence)], ids=["undone", "done"])
async def test_a_create_that_is_not_answered_is_one_pod(server, make_launch, trouble):
    server.troubles.next("create", trouble)
    async with opened(server, answer=0.5) as impatient:
        pod = await impatient.launch(launch := make_launch("x"))
    assert server.store.created == {launch.pod: [pod.uid]}
    assert server.troubles.met["create"] == 1
    assert server.troubles.seen["create"] >= 2  # a slow machine's second answer may come too late as well


async def test_troubles_of_a_stream(server, cluster, make_launch):
    node, pod = server.node, await cluster.launch(make_launch("x"))
    node.run(pod.name)
    node.end(pod.name)
    plain = [Phase.PENDING, Phase.RUNNING, Phase.ENDED, Phase.ENDED]
    for trouble, wanted in (
        (doubled, [phase for phase in plain for _ in range(2)]),
        (swapped, [Phase.RUNNING, Phase.PENDING, Phase.ENDED, Phase.ENDED]),
        (delayed(0.02), plain),
        (cut_after(2), plain),  # the rest comes by a second watch
    ):
        server.troubles.next("watch", trouble)
        assert await told(cluster, len(wanted)) == wanted
    assert server.troubles.seen["watch"] == 5
    server.troubles.next("watch", expired_after(2), mute_after(1))
    with pytest.raises(WatchExpired):
        await told(cluster, 3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await told(cluster, 2)


async def test_several_troubles_of_one_request(server, cluster, make_launch):
    pod = await cluster.launch(make_launch("x"))
    server.node.run(pod.name)
    server.troubles.at("watch", 1, late(0.01), doubled, cut_after(3))
    server.troubles.at("watch", 2, refusal(410, "Expired"))
    with pytest.raises(WatchExpired):
        await told(cluster, 4)
    assert server.troubles.met["watch"] == 2


async def test_seeded_troubles_are_the_same_again():
    rule = seeded(7, 0.3, {"create": [cut, silence], "list": []})
    found = [bool(rule("create", number)) for number in range(1000)]
    assert found == [bool(rule("create", number)) for number in range(1000)]
    assert 200 < sum(found) < 400
    assert not rule("list", 1)
    assert not rule("watch", 1)


async def test_open_streams_are_cut(server, cluster, make_launch):
    pod = await cluster.launch(make_launch("x"))
    server.node.run(pod.name)
    server.node.say(pod.name, "one")
    async with aclosing(cluster.logs(pod.name)) as lines:
        await anext(lines)
        server.cut_streams()
        with pytest.raises(ClusterUnavailable):
            await anext(lines)


def test_it_serves_other_loops_from_a_thread(tmp_path, make_launch):
    async def use(server: PodServer) -> Phase:
        async with opened(server) as cluster:
            pod = await cluster.launch(make_launch("x"))
            async with aclosing(cluster.watch((await cluster.pods()).version)) as pods:
                waiting = asyncio.create_task(anext(pods))
                await asyncio.to_thread(server.node.run, pod.name)
                return (await waiting).phase

    with serve_pods_in_thread(tmp_path) as server:
        assert asyncio.run(use(server)) is Phase.RUNNING
