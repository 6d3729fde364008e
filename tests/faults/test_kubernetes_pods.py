"""Logs, releases, deletions and Secrets through a bad line: one request each, a late one without harm, and no line twice."""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from ledger.errors import ClusterDenied, ClusterError, ClusterUnavailable, NotFound
from tests.faults.scripted_kubernetes import FAST, LAUNCH, Reply, answer, cut, no, page, pod_json, pods_json, serve, silence, stream
from worker.cluster import PodName

ABSENT = no(404, "NotFound", 'pods "x" not found')
OTHER_LIFE = no(
    409, "Conflict", "Operation cannot be fulfilled on pods: Precondition failed: UID in precondition: uid-1, UID in object meta: uid-2"
)
GRACE = timedelta(seconds=3)


def line(second: float, text: str) -> bytes:
    whole, part = divmod(second, 1)
    return f"2026-11-23T12:00:{int(whole):02}.{int(part * 1e9):09}Z {text}\n".encode()


async def test_release_and_delete_are_one_request_each_and_name_the_life(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("release", answer(200, pod_json()))
        server.on("delete", answer(200, pod_json()))
        await cluster.release(LAUNCH.pod, "uid-1")
        await cluster.delete(LAUNCH.pod, "uid-1", GRACE)
        release, delete = server.seen
        assert release.body == {"metadata": {"uid": "uid-1", "$deleteFromPrimitiveList/finalizers": ["crabpot.dev/record-end"]}}
        assert release.content_type == "application/strategic-merge-patch+json"
        assert delete.body == {"gracePeriodSeconds": 3, "preconditions": {"uid": "uid-1"}}


async def test_no_grace_is_never_by_force(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("delete", answer(200, pod_json()))
        await cluster.delete(LAUNCH.pod, "uid-1", timedelta(0))
        assert server.seen[0].body["gracePeriodSeconds"] == 1


@pytest.mark.parametrize("reply", [ABSENT, OTHER_LIFE], ids=["gone", "another life"])
async def test_what_is_done_already_is_no_error(tmp_path: Path, reply: Reply) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("release", reply)
        server.on("delete", reply)
        await cluster.release(LAUNCH.pod, "uid-1")
        await cluster.delete(LAUNCH.pod, "uid-1", GRACE)
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (silence, ClusterUnavailable),
        (cut, ClusterUnavailable),
        (page(404), ClusterUnavailable),
        (no(503, "ServiceUnavailable"), ClusterUnavailable),
        (no(409, "Conflict", "the object has been modified"), ClusterUnavailable),
        (no(403, "Forbidden", "cannot patch"), ClusterDenied),
    ],
    ids=["silence", "cut", "404 page", "503", "409", "403"],
)
async def test_what_is_not_done_is_an_error(tmp_path: Path, reply: Reply, error: type[ClusterError]) -> None:
    async with serve(tmp_path, pace=replace(FAST, answer=0.5) if reply is silence else FAST) as (server, cluster):
        server.on("release", reply)
        server.on("delete", reply)
        with pytest.raises(error):
            await cluster.release(LAUNCH.pod, "uid-1")
        with pytest.raises(error):
            await cluster.delete(LAUNCH.pod, "uid-1", GRACE)


async def test_a_pod_is_looked_for_in_all_namespaces_until_it_was_seen(tmp_path: Path) -> None:
    async with serve(tmp_path, "one", "two") as (server, cluster):
        server.on("delete", ABSENT, answer(200, pod_json()))
        await cluster.delete(LAUNCH.pod, "uid-1", GRACE)
        assert [seen.namespace for seen in server.seen] == ["one", "two"]
        server.seen.clear()
        server.on("list", pods_json(1), pods_json(1, pod_json()))
        await cluster.pods()
        await cluster.delete(LAUNCH.pod, "uid-1", GRACE)
        assert [seen.namespace for seen in server.seen if seen.kind == "delete"] == ["two"]


async def test_a_log_has_times_and_no_remarks_of_the_kubelet(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        text = line(1, "one") + line(2.5, "two ü")
        server.on("log", stream(text[:40], text[40:-4], text[-4:], b"unable to retrieve container logs for containerd://x"))
        found = [(entry.time, entry.text) async for entry in cluster.logs(LAUNCH.pod)]
        assert found == [
            (datetime(2026, 11, 23, 12, 0, 1, tzinfo=UTC), "one"),
            (datetime(2026, 11, 23, 12, 0, 2, 500000, tzinfo=UTC), "two ü"),
        ]
        assert server.seen[0].query == {"container": "executor", "follow": "true", "timestamps": "true"}


@pytest.mark.parametrize("reply", [ABSENT, no(400, "BadRequest", 'container "executor" in pod "x" is waiting to start: ContainerCreating')])
async def test_where_there_is_no_log_it_ends_at_once(tmp_path: Path, reply: Reply) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("log", reply)
        assert [entry async for entry in cluster.logs(LAUNCH.pod)] == []


@pytest.mark.parametrize(
    "reply",
    [no(500, "InternalError", "dial tcp 10.0.0.1:10250: connect: no route to host"), page(502), cut, stream(line(1, "a"), end="cut")],
)
async def test_a_broken_log_says_so(tmp_path: Path, reply: Reply) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("log", reply)
        with pytest.raises(ClusterUnavailable):
            [entry async for entry in cluster.logs(LAUNCH.pod)]


async def test_after_a_long_silence_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        again = line(1.25, "a") + line(1.5, "b") + line(1.5, "b2")
        server.on("log", stream(again, end="hang"), stream(again + line(1.5, "b3") + line(2, "c")))
        assert [entry.text async for entry in cluster.logs(LAUNCH.pod)] == ["a", "b", "b2", "b3", "c"]
        assert [seen.query.get("sinceTime") for seen in server.seen] == [None, "2026-11-23T12:00:01Z"]


async def test_since_is_inclusive_to_the_microsecond(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("log", stream(line(1.25, "a") + line(1.5, "b") + line(1.75, "c") + line(1.6, "clock set back")))
        since = datetime(2026, 11, 23, 12, 0, 1, 500000, tzinfo=UTC)
        assert [entry.text async for entry in cluster.logs(LAUNCH.pod, since=since)] == ["b", "c", "clock set back"]


async def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("log", stream(line(1, "x" * 200_000)[:-1], b"y" * 200_000, b"\n", line(2, "after")))
        found = [entry.text async for entry in cluster.logs(LAUNCH.pod)]
        assert [len(text) for text in found] == [64 * 1024 - 31, 5]


async def test_of_progress_the_last_state_is_kept(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("log", stream(line(1, "objects: 4%\robjects: 100%\robjects: 100%, done.\r")))
        assert [entry.text async for entry in cluster.logs(LAUNCH.pod)] == ["objects: 100%, done."]


async def test_every_running_pod_can_be_followed_and_the_rest_goes_on(tmp_path: Path) -> None:
    """More logs than any default of a pool: one that waited for another's end would come too late for its own."""
    async with serve(tmp_path) as (server, cluster), AsyncExitStack() as followed:
        server.on("log", stream(line(1, "a"), end="hang"))
        server.on("create", answer(201, pod_json()))
        for _ in range(120):
            lines = await followed.enter_async_context(aclosing(cluster.logs(LAUNCH.pod)))
            assert (await anext(lines)).text == "a"
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"


@pytest.mark.parametrize("patience", [10.0, 0.2], ids=["while it is silent", "for some time"])
async def test_a_silent_node_holds_up_its_own_logs_only(tmp_path: Path, patience: float) -> None:
    """A dead node's logs all at once would be a hundred hanging requests, and another node's would wait behind them."""
    names = [PodName(f"crabpot-{number}") for number in range(10)]
    bodies = [pod_json(launch=replace(LAUNCH, pod=name), uid=f"uid-{name}") for name in names]
    for name, body in zip(names, bodies, strict=True):
        body["spec"]["nodeName"] = "sound" if name == names[-1] else "dead"
    async with serve(tmp_path, pace=replace(FAST, answer=patience, log_silence=30.0)) as (server, cluster):
        server.on("list", pods_json(1, *bodies))
        await cluster.pods()
        asked, speaks = asyncio.Event(), stream(line(1, "a"), end="hang")

        async def reply(request: web.Request) -> web.StreamResponse:
            if server.count("log") == len(names):
                asked.set()
            return await (speaks if f"/{names[-1]}/" in request.path else silence)(request)

        server.on("log", reply)
        async with asyncio.TaskGroup() as group:
            hanging = [group.create_task(anext(cluster.logs(name))) for name in names[:-1]]  # type: ignore[arg-type]
            while server.count("log") < 4:
                await asyncio.sleep(0.01)
            async with aclosing(cluster.logs(names[-1])) as lines:
                assert (await anext(lines)).text == "a"
            if patience < 1:
                await asked.wait()
            assert server.count("log") == (5 if patience > 1 else 10)
            for task in hanging:
                task.cancel()


async def test_the_newest_warning_explains_a_pod(tmp_path: Path) -> None:
    events = [
        {"reason": "FailedScheduling", "message": "old", "eventTime": "2026-11-23T12:00:00.000001Z"},
        {"reason": "FailedMount", "message": 'secret "push" not found', "lastTimestamp": "2026-11-23T12:00:05Z"},
    ]
    async with serve(tmp_path) as (server, cluster):
        server.on("events", answer(200, {"items": events}), answer(200, {"items": []}), no(403, "Forbidden"))
        assert await cluster.explain(LAUNCH.pod, "uid-1") == ("FailedMount", 'secret "push" not found')
        assert server.seen[0].query == {"fieldSelector": "involvedObject.uid=uid-1,type=Warning"}
        assert await cluster.explain(LAUNCH.pod, "uid-1") is None
        assert await cluster.explain(LAUNCH.pod, "uid-1") is None


async def test_only_secrets_labelled_for_us_are_read(tmp_path: Path) -> None:
    data = {"a": base64.b64encode(b"\x00value").decode()}
    async with serve(tmp_path) as (server, cluster):
        server.on(
            "secret",
            answer(200, {"metadata": {"labels": {"crabpot.dev/readable": "true"}}, "data": data}),
            answer(200, {"metadata": {"labels": {"crabpot.dev/readable": "no"}}, "data": data}),
            answer(200, {"metadata": {}, "data": data}),
            no(404, "NotFound", 'secrets "s" not found'),
            no(403, "Forbidden", 'User "u" cannot get resource "secrets"'),
        )
        assert await cluster.read_secret("one", "s") == {"a": b"\x00value"}
        for _ in range(2):
            with pytest.raises(ClusterDenied, match=r"kubectl -n one label secret s crabpot\.dev/readable=true"):
                await cluster.read_secret("one", "s")
        with pytest.raises(NotFound):
            await cluster.read_secret("one", "s")
        with pytest.raises(ClusterDenied):
            await cluster.read_secret("one", "s")


async def test_missing_rights_are_named(tmp_path: Path) -> None:
    async def review(request):
        wanted = (await request.json())["spec"]["resourceAttributes"]
        assert wanted["namespace"] == "one"
        denied = wanted["verb"] == "watch" or wanted.get("subresource") == "log"
        return await answer(201, {"status": {"allowed": not denied}})(request)

    async with serve(tmp_path) as (server, cluster):
        server.on("review", review)
        assert await cluster.check_rights("one") == ["watch pods", "get pods/log"]
