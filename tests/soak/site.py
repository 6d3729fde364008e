"""The crabpot that is soaked: installed by its chart, each process with a token of its own account, and every line of theirs through our hands."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.conftest import RedisServer
from tests.e2e.harness import POLICY, Crabpot, crabpot_on
from tests.e2e.harness_cluster import Cluster
from tests.faults.proxy import Line, bad_line

AT_ONCE = 40
"""Slots over all; a project may have 20."""
PROCESSES = ("worker-1", "worker-2", "worker-3", "watch-1", "watch-2", "beat-1", "beat-2")


class Site:
    """Processes by name, a Redis that may be killed, and the lines to Redis, the API server and the registry."""

    def __init__(self, crabpot: Crabpot, redis: RedisServer, lines: dict[str, Line]) -> None:
        self.crabpot, self._redis = crabpot, redis
        self.lines = list(lines.values())
        self.registry = ""
        """The registry as everybody but the soak itself reaches it."""
        self._paused: set[str] = set()

    def running(self, kind: str) -> list[str]:
        return sorted(name for name in self.crabpot.processes if name.startswith(kind))

    async def start(self, *names: str) -> None:
        for name in names:
            await asyncio.to_thread(self.crabpot.start, name)

    async def kill(self, name: str) -> None:
        await asyncio.to_thread(self.crabpot.kill, name)

    def pause(self, name: str) -> None:
        os.kill(self.crabpot.processes[name].pid, signal.SIGSTOP)
        self._paused.add(name)

    def resume(self, name: str) -> None:
        self._paused.discard(name)
        os.kill(self.crabpot.processes[name].pid, signal.SIGCONT)

    async def kill_redis(self) -> None:
        await asyncio.to_thread(self._redis.kill)

    async def start_redis(self) -> None:
        await asyncio.to_thread(self._redis.start)

    async def nudge(self) -> None:
        try:
            await asyncio.to_thread(self.crabpot.nudge)
        except (AssertionError, TimeoutError):
            pass  # the broker is away

    async def kubectl(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            "kubectl", "--kubeconfig", self.crabpot.cluster.kubeconfig, "--namespace", self.crabpot.namespace, *arguments,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await process.wait()

    async def ask_where(self) -> None:
        """Let the watchers say in their logs where they wait."""
        for name in self.running("watch"):
            os.kill(self.crabpot.processes[name].pid, signal.SIGUSR1)
        await asyncio.sleep(2)

    async def heal(self) -> None:
        """Everything is well again: what was stopped goes on, what ended is started, and the lines are good ones."""
        for name in list(self._paused):
            self.resume(name)
        for line in self.lines:
            await line.heal()
            line.cut()  # who sits on a silent connection would have to notice first
        if self._redis.process is None or self._redis.process.poll() is not None:
            await self.start_redis()
        for name in PROCESSES:
            if name not in self.crabpot.processes or not self.crabpot.processes[name].alive:
                await self.start(name)


@asynccontextmanager
async def opened(cluster: Cluster, folder: Path) -> AsyncIterator[Site]:
    """A site with its processes started; all of it goes at the end."""
    redis = RedisServer(folder, durable=True)
    await asyncio.to_thread(redis.start)
    api, registry = urlsplit(_server(cluster.kubeconfig)), urlsplit(f"//{cluster.registry}")
    async with AsyncExitStack() as stack:
        stack.callback(redis.stop)
        lines = {
            "redis": await stack.enter_async_context(bad_line(redis.port)),
            "api": await stack.enter_async_context(bad_line(api.port or 443, api.hostname or "")),
            "registry": await stack.enter_async_context(bad_line(registry.port or 80, registry.hostname or "", listen=cluster.host)),
        }
        host = f"{cluster.host}:{lines['registry'].port}"
        projects = {
            "limits": {"max_builds": AT_ONCE},
            "projects": {
                name: {"policy": POLICY, "registries": {host: {"insecure": True}}, "max_builds": AT_ONCE // 2, "weight": weight}
                for name, weight in (("one", 1), ("two", 1), ("three", 2), ("real", 4))
            },
        }
        crabpot = await stack.enter_async_context(_in_thread(cluster, redis.url, folder, projects))
        crabpot.process_redis_url = f"redis://127.0.0.1:{lines['redis'].port}/0"
        for account in ("worker", "watch"):
            path = crabpot.kubeconfig(account)
            path.write_text(path.read_text().replace(_server(cluster.kubeconfig), f"https://127.0.0.1:{lines['api'].port}"))
        site = Site(crabpot, redis, lines)
        site.registry = host
        await asyncio.to_thread(crabpot.store_projects)
        await site.start(*PROCESSES)
        yield site


@asynccontextmanager
async def _in_thread(cluster: Cluster, redis_url: str, folder: Path, projects: dict[str, object]) -> AsyncIterator[Crabpot]:
    manager = crabpot_on(cluster, redis_url, folder, "soak", projects)
    crabpot = await asyncio.to_thread(manager.__enter__)
    try:
        yield crabpot
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def _server(kubeconfig: str) -> str:
    import yaml

    server: str = yaml.safe_load(Path(kubeconfig).read_text())["clusters"][0]["cluster"]["server"]
    return server
