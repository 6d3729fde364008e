"""A Kubernetes API server for pods that remembers: over HTTP, for this process and others, with every trouble that a test asks for.

    async with serve_pods(tmp_path) as server:
        cluster = KubernetesCluster(["builds"], kubeconfig=server.kubeconfig, pace=FAST)
        server.troubles.next("create", unheard(silence))
        server.node.run(name)

`serve_pods_in_thread` is the same for a test without an event loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from tests.faults.kubernetes_api import Json, kind_of, status, write_kubeconfig
from tests.faults.node import Node
from tests.faults.pod_store import PodStore, Refused, has_ended, matches
from tests.faults.troubles import CHANGES, CLOSING, Cut, Lines, Troubles

PATCH = "application/strategic-merge-patch+json"


class PodServer:
    """The API over a store, and what goes wrong on the way to it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.store = PodStore()
        self.node = Node(self.store)
        self.troubles = Troubles()
        self.largest_page = 500
        self._streams: set[asyncio.Transport] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def cut_streams(self) -> None:
        """All watches and followed logs that are open are cut. From any thread."""
        assert self._loop
        for transport in tuple(self._streams):
            self._loop.call_soon_threadsafe(transport.abort)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = kind_of(request.method, request.path, watch="watch" in request.query)
        return await self.troubles.around(kind, self._answer)(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._serve(request)
        except Refused as refused:
            return web.json_response(status(refused.code, refused.reason, refused.message), status=refused.code)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        kind = kind_of(request.method, request.path, watch="watch" in request.query)
        body = await request.json() if request.can_read_body else {}
        _, _, _, _, namespace, *rest = [*request.path.split("/"), "", ""]
        name, query = rest[1], request.query
        match kind:
            case "create":
                return web.json_response(self.store.create(namespace, body), status=201)
            case "read":
                return web.json_response(self.store.read(name, namespace))
            case "list":
                limit = min(int(query.get("limit", self.largest_page)), self.largest_page)
                pods, version, go_on = self.store.list(
                    namespace, query.get("labelSelector", ""), limit=limit, go_on=query.get("continue", "")
                )
                return web.json_response({"kind": "PodList", "metadata": {"resourceVersion": version, "continue": go_on}, "items": pods})
            case "watch":
                return await self._stream(request, self._watch(namespace, query))
            case "release":
                if request.content_type != PATCH:
                    raise Refused(415, "UnsupportedMediaType", f"only {PATCH} is known here")
                return web.json_response(self.store.patch(namespace, name, body))
            case "delete":
                return web.json_response(self.store.delete(namespace, name, body))
            case "log":
                return await self._log(request, self.store.read(name, namespace))
            case "events":
                uid = dict(term.split("=", 1) for term in query.get("fieldSelector", "").split(",") if term).get("involvedObject.uid")
                found = [event for event in self.store.events if uid in (None, event["involvedObject"]["uid"])]
                return web.json_response({"kind": "EventList", "items": found})
            case "review":
                return web.json_response({"status": {"allowed": True}}, status=201)
        raise Refused(404, "NotFound", f"there is no {request.path} here")

    def _watch(self, namespace: str, query: Mapping[str, str]) -> Lines:
        """Judges the version before anything is streamed, so that an expired one is refused by the status."""
        since = query.get("resourceVersion", "0")
        if not since.isdigit():
            raise Refused(400, "BadRequest", f"Invalid value: {since!r}")
        self.store.since(int(since))
        seconds, bookmarks = float(query.get("timeoutSeconds", 1800)), "allowWatchBookmarks" in query
        return self._events(namespace, query.get("labelSelector", ""), int(since), seconds, bookmarks)

    async def _events(self, namespace: str, selector: str, since: int, seconds: float, bookmarks: bool) -> Lines:
        version = since
        try:
            async with asyncio.timeout(seconds), aclosing(self.store.changes(since)) as changes:
                async for change in changes:
                    version = change.version
                    if matches(change.pod, namespace, selector):
                        yield _line(change.kind, change.pod)
        except TimeoutError:
            if bookmarks:  # the last word of a watch, so that the next one goes on from here
                yield _line("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})

    async def _log(self, request: web.Request, pod: Json) -> web.StreamResponse:
        containers = pod["status"].get("containerStatuses")
        if not containers or "waiting" in containers[0]["state"]:
            raise Refused(400, "BadRequest", f'container "executor" in pod "{pod["metadata"]["name"]}" is waiting to start')
        since = request.query.get("sinceTime")
        begin = datetime.fromisoformat(since) if since else datetime.min.replace(tzinfo=UTC)
        return await self._stream(request, self._lines(pod, begin, follow=request.query.get("follow") == "true"))

    async def _lines(self, pod: Json, begin: datetime, *, follow: bool) -> Lines:
        name, uid, told = pod["metadata"]["name"], pod["metadata"]["uid"], 0
        async with aclosing(self.store.moments()) as moments:
            async for _ in moments:
                now = next((one for one in self.store.pods if one["metadata"]["uid"] == uid), None)
                lines = self.store.log(uid)
                while told < len(lines):
                    time, text = lines[told]
                    told += 1
                    if time >= begin:
                        yield f"{time:%Y-%m-%dT%H:%M:%S.%f}000Z {text}\n".encode()
                if now is None or has_ended(now) or not follow:
                    return
        raise AssertionError(f"{name} is followed without end")

    async def _stream(self, request: web.Request, lines: Lines) -> web.StreamResponse:
        for change in request.get(CHANGES, ()):
            lines = change(lines)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        transport = request.transport
        assert transport is not None
        self._streams.add(transport)
        try:
            async with aclosing(lines):
                await response.prepare(request)
                async for line in lines:
                    await response.write(line)
        except Cut:
            transport.close()  # what was written goes out, the end of the stream does not
        except ConnectionError:
            pass
        finally:
            self._streams.discard(transport)
        return response


def _line(kind: str, found: Json) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


@asynccontextmanager
async def serve_pods(folder: Path) -> AsyncIterator[PodServer]:
    """A server on this event loop; its kubeconfig is in the folder."""
    server = PodServer(folder / "kubeconfig")
    server._loop = asyncio.get_running_loop()
    application = web.Application()
    application[CLOSING] = asyncio.Event()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    write_kubeconfig(server.kubeconfig, f"http://127.0.0.1:{port}")
    try:
        yield server
    finally:
        application[CLOSING].set()
        await runner.cleanup()


@contextmanager
def serve_pods_in_thread(folder: Path) -> Iterator[PodServer]:
    """The same on a loop of its own, for tests without one."""
    started, served = threading.Event(), list[PodServer]()
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serve_pods(folder) as server:
            served.append(server)
            started.set()
            await done.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=run, name="pod server")
    thread.start()
    started.wait()
    try:
        yield served[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
