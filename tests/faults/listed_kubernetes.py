"""An API server that lists a test's objects of every kind in all namespaces, in pages, and has the troubles that the test says."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from ledger.site import ClusterSource
from tests.faults.kubernetes_api import status, write_kubeconfig
from tests.faults.scripted_kubernetes import SCRIPT, Reply, ScriptedKubernetes
from worker.cluster.workloads import Workload


@dataclass
class ListedKubernetes:
    """The objects by kind, and the replies that come before them; a reply of None stands for a well answer."""

    kubeconfig: Path
    objects: dict[Workload, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    troubles: dict[Workload, deque[Reply | None]] = field(default_factory=lambda: defaultdict(deque))
    forever: dict[Workload, Reply] = field(default_factory=dict)
    """What is answered to each question after a kind."""
    asked: list[tuple[Workload, dict[str, str]]] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)
    """The Authorization of each question."""

    def source(self, **more: Any) -> ClusterSource:
        return ClusterSource(kubeconfig=str(self.kubeconfig), **more)

    def add(self, kind: Workload, *objects: dict[str, Any]) -> None:
        self.objects[kind].extend(objects)

    def count(self, kind: Workload) -> int:
        return sum(one is kind for one, _ in self.asked)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = next((kind for kind in Workload if kind.path == request.path), None)
        if kind is None or request.method != "GET":
            return web.json_response(status(404, "NotFound", f"the test knows no {request.method} {request.path}"), status=404)
        self.asked.append((kind, dict(request.query)))
        self.credentials.append(request.headers.get("Authorization"))
        trouble = self.troubles[kind].popleft() if self.troubles[kind] else self.forever.get(kind)
        if trouble is not None:
            return await trouble(request)
        first, size = int(request.query.get("continue", "0")), int(request.query["limit"])
        items = self.objects[kind][first : first + size]
        further = str(first + size) if first + size < len(self.objects[kind]) else ""
        # As the real one does, a list tells its kind, and its items do not.
        return web.json_response({"kind": "SomeList", "metadata": {"resourceVersion": "1", "continue": further}, "items": items})


@asynccontextmanager
async def listed_kubernetes(folder: Path, tls: ssl.SSLContext | None = None) -> AsyncIterator[ListedKubernetes]:
    application = web.Application()
    application[SCRIPT] = ScriptedKubernetes(closing=asyncio.Event())  # who never answers waits for its end
    found = ListedKubernetes(folder / "kubeconfig")
    application.router.add_route("*", "/{path:.*}", found.handle)
    server = TestServer(application, scheme="https" if tls else "http")
    await server.start_server(shutdown_timeout=0.01, ssl=tls)
    write_kubeconfig(found.kubeconfig, str(server.make_url("/")).rstrip("/"))
    try:
        yield found
    finally:
        application[SCRIPT].closing.set()
        await server.close()
