"""A Kubernetes API server that answers exactly as a test says, bytes and cuts included, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.faults.kubernetes_api import kind_of, status, write_kubeconfig
from worker.cluster import Launch, PodName
from worker.cluster.kubernetes import KubernetesCluster
from worker.cluster.manifest import pod_manifest
from worker.cluster.watching import Pace

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]
FAST = Pace(
    connect=10.0, answer=10.0, launch=20.0, room=0.0, watch=20.0, watch_failures=4, log_silence=1.0, first_pause=0.01, longest_pause=0.02
)
"""Only the pauses are short: a slow machine must not change an outcome. Tests of silence shorten what they wait for."""
BUILD = "01a20a76-c61e-7703-9dd2-5db96d858f06"
LAUNCH = Launch(
    pod=PodName(f"crabpot-{BUILD}-1-abcdef"),
    build=BUILD,
    attempt=1,
    platform="linux/amd64",
    project="demo",
    namespace="one",
    image="k:1",
    arguments=("--x",),
)


@dataclass
class Seen:
    """A request as it came in."""

    kind: str
    namespace: str
    query: dict[str, str]
    body: Any
    content_type: str


@dataclass
class ScriptedKubernetes:
    """Replies by kind of request (`kubernetes_api.KINDS`), the last one again and again."""

    replies: dict[str, deque[Reply]] = field(default_factory=lambda: defaultdict(deque))
    seen: list[Seen] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def on(self, kind: str, *replies: Reply) -> None:
        self.replies[kind].extend(replies)

    def count(self, kind: str) -> int:
        return sum(seen.kind == kind for seen in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = kind_of(request.method, request.path, watch="watch" in request.query)
        body = await request.json() if request.can_read_body else None
        parts = request.path.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else ""
        self.seen.append(Seen(kind, namespace, dict(request.query), body, request.content_type))
        replies = self.replies[kind]
        if not replies:
            return web.json_response({"kind": "Status", "code": 500, "message": f"the test expects no {kind}"}, status=500)
        return await (replies.popleft() if len(replies) > 1 else replies[0])(request)


SCRIPT = web.AppKey("script", ScriptedKubernetes)


@asynccontextmanager
async def serve(folder: Path, *namespaces: str, pace: Pace = FAST) -> AsyncIterator[tuple[ScriptedKubernetes, KubernetesCluster]]:
    """The server, and a cluster that speaks to it."""
    script = ScriptedKubernetes()
    application = web.Application()
    application[SCRIPT] = script
    application.router.add_route("*", "/{path:.*}", script.handle)
    server = TestServer(application)
    await server.start_server(shutdown_timeout=0.01)
    kubeconfig = write_kubeconfig(folder / "kubeconfig", str(server.make_url("/")).rstrip("/"))
    cluster = KubernetesCluster(namespaces or ("one",), kubeconfig=kubeconfig, pace=pace)
    try:
        yield script, cluster
    finally:
        script.closing.set()
        await cluster.close()
        await server.close()


def answer(status: int, body: Any, **headers: str) -> Reply:
    async def reply(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return reply


def no(code: int, reason: str = "", message: str = "", **headers: str) -> Reply:
    """A Status, as Kubernetes says no."""
    return answer(code, status(code, reason, message), **headers)


def page(status: int) -> Reply:
    """A proxy's page."""

    async def reply(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="<html>\n<h1>Bad Gateway</h1>\n</html>\n", content_type="text/html")

    return reply


async def cut(request: web.Request) -> web.StreamResponse:
    """The line goes dead before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silence(request: web.Request) -> web.StreamResponse:
    """No answer, ever."""
    script = request.app[SCRIPT]
    await script.closing.wait()
    return web.Response()


def stream(*chunks: bytes, end: str = "end") -> Reply:
    """An answer in pieces that then ends, is cut, or hangs."""

    async def reply(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if end == "cut":
            assert request.transport is not None
            request.transport.close()
        elif end == "hang":
            await silence(request)
        return response

    return reply


def pod_json(*, version: int = 1, launch: Launch = LAUNCH, uid: str = "uid-1", **status: Any) -> dict[str, Any]:
    made = pod_manifest(launch)
    made["metadata"] |= {"uid": uid, "resourceVersion": str(version), "creationTimestamp": "2026-11-23T12:00:00Z"}
    return {**made, "status": {"phase": "Pending", **status}}


def event(kind: str, body: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


def pods_json(version: int, *pods: dict[str, Any], further: str = "") -> Reply:
    return answer(200, {"kind": "PodList", "metadata": {"resourceVersion": str(version), "continue": further}, "items": list(pods)})
