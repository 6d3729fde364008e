"""One watch out of many broken ones: nothing missed, nothing told twice, no hot loop, and a clear word when it cannot go on."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from ledger.errors import ClusterDenied, ClusterError, ClusterUnavailable, WatchExpired
from tests.faults.scripted_kubernetes import FAST, LAUNCH, Reply, bookmark, event, no, page, pod_json, pods_json, serve, silence, stream
from tests.integration.registry_server import Certificate
from worker.cluster import Phase, PodName
from worker.cluster.kubernetes import KubernetesCluster

RUNNING = {"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": "2026-11-23T12:00:01Z"}}}]}


async def first(cluster: KubernetesCluster, number: int, since: str = "one=1") -> list[tuple[str, Phase]]:
    found = []
    async with aclosing(cluster.watch(since)) as pods:
        async for pod in pods:
            found.append((pod.uid, pod.phase))
            if len(found) == number:
                break
    return found


async def test_a_list_comes_in_pages(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("list", pods_json(7, pod_json(uid="a"), further="next"), pods_json(7, pod_json(uid="b")))
        snapshot = await cluster.pods()
        assert ([pod.uid for pod in snapshot.pods], snapshot.version) == (["a", "b"], "one=7")
        assert [seen.query.get("continue") for seen in server.seen] == [None, "next"]
        assert server.seen[0].query | {"limit": "100", "labelSelector": "app.kubernetes.io/managed-by=crabpot"} == server.seen[0].query


async def test_a_page_that_expired_is_to_be_listed_again(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("list", pods_json(7, further="next"), no(410, "Expired", "The provided continue parameter is too old"))
        with pytest.raises(ClusterUnavailable):
            await cluster.pods()


async def test_events_become_pods_and_the_deleted_are_gone(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        chunk = event("ADDED", pod_json(version=2)) + event("MODIFIED", pod_json(version=3, **RUNNING))
        server.on("watch", stream(chunk[:50], chunk[50:], event("DELETED", pod_json(version=4, **RUNNING)), end="hang"))
        assert await first(cluster, 3) == [("uid-1", Phase.PENDING), ("uid-1", Phase.RUNNING), ("uid-1", Phase.GONE)]
        query = server.seen[0].query
        assert (query["resourceVersion"], query["allowWatchBookmarks"]) == ("1", "true")
        assert 15 <= int(query["timeoutSeconds"]) <= 25  # not all watches at once


@pytest.mark.parametrize("end", ["end", "cut"])
async def test_a_broken_watch_goes_on_from_the_last_version(tmp_path: Path, end: str) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on(
            "watch",
            stream(
                event("ADDED", pod_json(version=2, uid="a")), bookmark(5), event("ADDED", pod_json(version=9, uid="lost"))[:40], end=end
            ),
            stream(event("ADDED", pod_json(version=9, uid="b")), end="hang"),
        )
        assert [uid for uid, _ in await first(cluster, 2)] == ["a", "b"]
        assert [seen.query["resourceVersion"] for seen in server.seen] == ["1", "5"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (no(410, "Expired", "too old resource version"), WatchExpired),
        (stream(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})), WatchExpired),
        (no(403, "Forbidden", 'User "u" cannot watch resource "pods"'), ClusterDenied),
    ],
    ids=["410", "410 event", "403"],
)
async def test_what_ends_a_watch_at_once(tmp_path: Path, reply: Reply, error: type[ClusterError]) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("watch", reply)
        with pytest.raises(error):
            await first(cluster, 1)
        assert server.count("watch") == 1


@pytest.mark.parametrize(
    "reply",
    [
        stream(),
        page(200),
        page(502),
        no(500, "InternalError"),
        no(429, "TooManyRequests"),
        stream(b'{"type": "ADDED"}\n'),
        stream(b"[1]\n"),
        stream(b'{"type": "ADDED", "object": {}}\n'),
        stream(event("ERROR", {"kind": "Status", "code": 500, "message": "etcd"})),
        stream(end="cut"),
    ],
    ids=["empty", "page as events", "502 page", "500", "429", "half", "list", "bare", "error event", "cut"],
)
async def test_what_goes_on_failing_is_given_up_without_a_hot_loop(tmp_path: Path, reply: Reply) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("watch", reply)
        with pytest.raises(ClusterUnavailable):
            await first(cluster, 1)
        assert FAST.watch_failures <= server.count("watch") < 2 * FAST.watch_failures


async def test_trouble_that_passes_is_survived(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("watch", page(502), stream(), stream(end="cut"), stream(event("ADDED", pod_json(version=2)), end="hang"))
        assert await first(cluster, 1) == [("uid-1", Phase.PENDING)]


async def test_a_dead_line_is_noticed(tmp_path: Path) -> None:
    async with serve(tmp_path, pace=replace(FAST, watch=0.1, answer=0.5)) as (server, cluster):
        server.on("watch", silence, stream(event("ADDED", pod_json(version=2)), end="hang"))
        async with asyncio.timeout(20):
            assert await first(cluster, 1) == [("uid-1", Phase.PENDING)]


async def test_a_long_watch_that_the_server_ends_is_opened_again_without_pause_or_end(tmp_path: Path) -> None:
    versions = count(2)

    async def lasting(request):
        await asyncio.sleep(0.06)  # the time that the server keeps a watch open
        return await stream(event("ADDED", pod_json(version=next(versions))))(request)

    async with serve(tmp_path, pace=replace(FAST, watch=0.1, first_pause=30.0)) as (server, cluster):
        server.on("watch", lasting)
        async with asyncio.timeout(20):
            assert len(await first(cluster, 8)) == 8


async def test_namespaces_are_merged_and_strangers_are_left_out(tmp_path: Path) -> None:
    other = replace(LAUNCH, pod=PodName("other"), namespace="two")
    stranger = pod_json(version=3)
    del stranger["metadata"]["labels"]["crabpot.dev/build"]
    async with serve(tmp_path, "one", "two") as (server, cluster):

        async def by_namespace(request):
            made = [event("ADDED", stranger), event("ADDED", pod_json(version=4, uid="a"))]
            if "/two/" in request.path:
                made = [event("ADDED", pod_json(version=5, uid="b", launch=other))]
            return await stream(*made, end="hang")(request)

        server.on("list", pods_json(1, stranger), pods_json(2, pod_json(uid="b", launch=other)))
        server.on("watch", by_namespace)
        listed = await cluster.pods()
        version = listed.version
        assert [pod.uid for pod in listed.pods] == ["b"]
        assert {uid for uid, _ in await first(cluster, 2, version)} == {"a", "b"}
        assert {seen.namespace: seen.query["resourceVersion"] for seen in server.seen if seen.kind == "watch"} == {"one": "1", "two": "2"}
        with pytest.raises(WatchExpired):
            await first(cluster, 1, "one=1")


async def test_a_project_that_is_added_is_watched_without_a_restart(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("list", pods_json(1), pods_json(1), pods_json(2))
        server.on("watch", stream(event("ADDED", pod_json(version=2)), end="hang"))
        async with aclosing(cluster.watch((await cluster.pods()).version)) as pods:
            await anext(pods)
            cluster.cover(["one"])
            cluster.cover(["one", "two"])
            with pytest.raises(WatchExpired):
                await anext(pods)
        assert (await cluster.pods()).version == "one=1,two=2"


async def test_closing_a_watch_lets_go_of_its_connections(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("watch", stream(event("ADDED", pod_json(version=2)), end="hang"))
        await first(cluster, 1)
        assert not [task for task in asyncio.all_tasks() if "_pump" in repr(task)]


def test_a_server_that_never_says_goodbye_keeps_no_connection_open(tmp_path: Path) -> None:
    """TLS ends politely, by both sides' word. A loop that ended before the other's left sockets behind: a ResourceWarning, so a failure."""
    certificate = Certificate.make(tmp_path)
    told, done = event("ADDED", pod_json(version=2)), threading.Event()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(told), told)

    def answer_once(listener: socket.socket) -> None:
        with certificate.context().wrap_socket(listener, server_side=True) as tls, tls.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(head)
            done.wait(30)

    async def watch_once(port: int) -> None:
        (tmp_path / "kubeconfig").write_text(
            json.dumps(
                {
                    "current-context": "x",
                    "clusters": [
                        {"name": "x", "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(certificate.path)}}
                    ],
                    "users": [{"name": "x", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                }
            )
        )
        cluster = KubernetesCluster(("one",), kubeconfig=tmp_path / "kubeconfig", pace=FAST)
        assert len(await first(cluster, 1)) == 1
        await cluster.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # before the thread wraps the listener, which takes its socket away
        server = threading.Thread(target=answer_once, args=(listener,))
        server.start()
        try:
            asyncio.run(watch_once(port))
            gc.collect()
        finally:
            done.set()
            server.join()
