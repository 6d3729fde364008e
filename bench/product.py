"""The product as shipped, started for a benchmark: worker and watcher as processes of their own; and a count of what they ask the API."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger

_COUNTER = """
import sys
from aiohttp import ClientSession, ClientTimeout, web
target, port, counted = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "a", buffering=1)

async def forward(request):
    if "watch" not in request.query and not (request.method == "GET" and request.path.endswith("/pods")):
        print(request.method, request.path, file=counted)
    body = await request.read()
    headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "content-length")}
    async with request.app["session"].request(request.method, target + request.raw_path, data=body, headers=headers) as answer:
        told = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers.get("Content-Type", "application/json")})
        await told.prepare(request)
        async for chunk in answer.content.iter_any():
            await told.write(chunk)
        return told

async def start(app):
    app["session"] = ClientSession(timeout=ClientTimeout(total=None))
    yield
    await app["session"].close()

app = web.Application(client_max_size=1 << 24)
app.cleanup_ctx.append(start)
app.router.add_route("*", "/{path:.*}", forward)
web.run_app(app, host="127.0.0.1", port=port, print=None)
"""


@dataclass(frozen=True)
class Api:
    """A way to the API server that counts every request but lists and watches."""

    kubeconfig: str
    log: Path

    def requests(self) -> int:
        return len(self.log.read_text().splitlines())


@contextmanager
def counting_api() -> Iterator[Api]:
    """`kubectl proxy`, and a counter in front of it."""
    with tempfile.TemporaryDirectory() as folder:
        inner, outer = _port(), _port()
        log, config = Path(folder) / "requests", Path(folder) / "kubeconfig"
        log.touch()
        cluster = f'{{name: c, cluster: {{server: "http://127.0.0.1:{outer}"}}}}'
        config.write_text(
            f"apiVersion: v1\nkind: Config\nclusters: [{cluster}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        )
        proxy = subprocess.Popen(["kubectl", "proxy", f"--port={inner}"], stdout=subprocess.DEVNULL)
        counter = subprocess.Popen([sys.executable, "-c", _COUNTER, f"http://127.0.0.1:{inner}", str(outer), str(log)])
        try:
            _await_port(inner)
            _await_port(outer)
            yield Api(str(config), log)
        finally:
            for process in (counter, proxy):
                process.terminate()
                process.wait(10)


@contextmanager
def product(url: str, projects: str, namespace: str, kubeconfig: str) -> Iterator[tuple[int, int]]:
    """A worker and a watcher; their process ids."""
    environment = os.environ | {
        "CRABPOT_REDIS_URL": url,
        "CRABPOT_NAMESPACE": namespace,
        "CRABPOT_KUBECONFIG": kubeconfig,
        "CRABPOT_EXECUTOR_IMAGE": os.environ["CLUSTER_KANIKO_IMAGE"],
        "CRABPOT_LOG_LEVEL": "warning",
        "MALLOC_ARENA_MAX": "2",  # as in our image
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    asyncio.run(store(url, projects))
    python = Path(sys.executable).parent
    celery = [python / "celery", "--app", "worker.app", "worker", "--without-mingle", "--without-gossip", "--loglevel", "warning"]
    worker = subprocess.Popen(celery, env=environment, stdout=subprocess.DEVNULL)
    watcher = subprocess.Popen([python / "crabpot", "watch"], env=environment)
    try:
        asyncio.run(_leads(url))
        yield worker.pid, watcher.pid
        for process in (worker, watcher):
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended by itself, with {process.returncode}: its figures are none")
    finally:
        for process in (worker, watcher):
            process.terminate()
            process.wait(60)


async def store(url: str, projects: str) -> None:
    ledger = Ledger.open(Settings(redis_url=url))
    await ledger.store_projects(parse_projects(projects))
    await ledger.close()


async def _leads(url: str) -> None:
    ledger = Ledger.open(Settings(redis_url=url))
    while await ledger.leases.holder("watch") is None:
        await asyncio.sleep(0.05)
    await ledger.close()


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _await_port(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens at {port}")
