"""How fast pods follow each other on the crowd's nodes, where no build takes the processor: a burst of admissions, and one slot from build to build.

Ours is the product as shipped, with one worker. The baseline is one asyncio loop that creates the same pods. Both are timed by a bare
watch of the benchmark's own.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import Any
from uuid import uuid4

import kubernetes_asyncio as kubernetes
import kubernetes_asyncio.config
import kubernetes_asyncio.watch

from bench.figure import Figure, interleaved, spread
from bench.product import product
from bench.servers import redis_with_aof
from ledger.build import Build, BuildRequest
from ledger.limits import Scope
from ledger.settings import Settings
from ledger.store import Ledger
from producer.submit import submit_build_async, wait_for_build_async
from worker.cluster.manifest import pod_manifest
from worker.kaniko import launch
from worker.place import STARTS_AT_ONCE

BURST, CHAIN, PAIRS = 300, 40, 3
NAMESPACE = "crabpot-bench"
PROJECTS = f"""
version: 1
limits: {{max_builds: {BURST}}}
projects:
  bench:
    namespace: {NAMESPACE}
    policy: {{destinations: ["registry.example.com/bench/**"], host_paths: [/tmp], config_maps: [none], node_labels: [crowd], tolerations: [crowd]}}
"""
_NUMBERS = count(1)


def measure() -> list[Figure]:
    if "KUBECONFIG" not in os.environ:
        print("the figures on the crowd are left out: KUBECONFIG names no cluster", file=sys.stderr)
        return []
    nodes = subprocess.run(["kubectl", "get", "nodes", "-l", "crowd=true", "-o", "name"], capture_output=True, text=True, check=True)
    if not nodes.stdout.strip():
        print("the figures on the crowd are left out: no crowd's nodes; `../shared/cluster/cluster crowd 10` adds some", file=sys.stderr)
        return []
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], capture_output=True, check=False)
    with redis_with_aof() as url, product(url, PROJECTS, NAMESPACE, os.environ["KUBECONFIG"]):
        ratio, mine, theirs = interleaved(PAIRS, lambda: asyncio.run(_burst(url)), lambda: asyncio.run(_bare_burst()))
        burst = Figure(
            f"pods created a second, {BURST} admissions, one worker, {STARTS_AT_ONCE} in flight", ratio, 0.6, more_is_better=True,
            detail=f"{spread(mine)} against {spread(theirs)} a second",
        )  # fmt: skip
        gaps, bare = [], []
        for _ in range(PAIRS):
            bare += asyncio.run(_bare_chain())
            gaps += asyncio.run(_chain(url))
    extra = (statistics.median(gaps) - statistics.median(bare)) * 1000
    detail = f"{spread([gap * 1000 for gap in gaps])} against {spread([gap * 1000 for gap in bare])} ms, {len(gaps)} samples"
    return [burst, Figure("container ended -> next pod created, p50, above the bare loop", extra, 40, "ms", detail=detail)]


def _request(runs: str) -> BuildRequest:
    number = next(_NUMBERS)
    return BuildRequest.parse(
        {
            "project": "bench",
            "source": {"kind": "config_map", "config_map": "none"},
            "destinations": [f"registry.example.com/bench/crowd:1.0.{number}"],
            "push": False,
            "tar": {"host_path": "/tmp"},
            "placement": {"node_selector": {"crowd": "true"}, "tolerations": [{"key": "crowd", "operator": "Exists"}]},
            "identity": {"annotations": {"crowd/run": runs}},
        }
    )


async def _burst(url: str) -> float:
    """Pods created a second: from the moment that a full queue is let go until the last pod is there. They end later."""
    ledger = Ledger.open(Settings(redis_url=url))
    await ledger.limits.set(Scope("all"), BURST)
    await ledger.limits.pause(Scope("all"))
    builds = [await submit_build_async(_request("25s"), ledger=ledger) for _ in range(BURST)]
    async with _watched("crabpot.dev/build") as seen:
        start = time.perf_counter()
        await ledger.limits.resume(Scope("all"))
        await seen.until_created(BURST)
        rate = BURST / (max(seen.created.values()) - start)
    await asyncio.gather(*(wait_for_build_async(build.id, ledger=ledger) for build in builds))
    await ledger.close()
    return rate


async def _bare_burst() -> float:
    bodies = [_bare_body("25s") for _ in range(BURST)]
    gate = asyncio.Semaphore(STARTS_AT_ONCE)
    async with _watched("app=bare") as seen:

        async def create(body: dict[str, Any]) -> None:
            async with gate:
                await seen.core.create_namespaced_pod(NAMESPACE, body)

        start = time.perf_counter()
        await asyncio.gather(*(create(body) for body in bodies))
        await seen.until_created(BURST)
        rate = BURST / (max(seen.created.values()) - start)
        await seen.core.delete_collection_namespaced_pod(NAMESPACE, label_selector="app=bare", grace_period_seconds=0)
    return rate


async def _chain(url: str) -> list[float]:
    """Seconds between a container's end and the next pod's creation, one build at a time."""
    ledger = Ledger.open(Settings(redis_url=url))
    await ledger.limits.set(Scope("all"), 1)
    async with _watched("crabpot.dev/build") as seen:
        builds = [await submit_build_async(_request("300ms"), ledger=ledger) for _ in range(CHAIN)]
        await asyncio.gather(*(wait_for_build_async(build.id, ledger=ledger) for build in builds))
    await ledger.close()
    return seen.gaps()


async def _bare_chain() -> list[float]:
    async with _watched("app=bare") as seen:
        for _ in range(CHAIN):
            body = _bare_body("300ms")
            await seen.core.create_namespaced_pod(NAMESPACE, body)
            await seen.until_ended(body["metadata"]["name"])
        await seen.core.delete_collection_namespaced_pod(NAMESPACE, label_selector="app=bare", grace_period_seconds=0)
    return seen.gaps()


def _bare_body(runs: str) -> dict[str, Any]:
    """The pod that ours would be, but nobody's."""
    now = datetime.now(UTC)
    build = Build(id=str(uuid4()), request=_request(runs), attempt=1, created=now, updated=now)
    said = launch(build, "linux/amd64", namespace=NAMESPACE, executor_image=os.environ["CLUSTER_KANIKO_IMAGE"], memory="2Gi")
    body = pod_manifest(said)
    body["metadata"].pop("finalizers", None)
    body["metadata"]["labels"] = {"app": "bare"}
    return body


class _Seen:
    """When the watch told of each pod that it is there, and that its container has ended."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.created: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self._changed = asyncio.Condition()

    async def take(self, pod: dict[str, Any]) -> None:
        name, now = pod["metadata"]["name"], time.perf_counter()
        self.created.setdefault(name, now)
        if any("terminated" in status["state"] for status in pod.get("status", {}).get("containerStatuses", [])):
            self.ended.setdefault(name, now)
        async with self._changed:
            self._changed.notify_all()

    async def until_created(self, number: int) -> None:
        async with asyncio.timeout(120), self._changed:
            await self._changed.wait_for(lambda: len(self.created) >= number)

    async def until_ended(self, name: str) -> None:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: name in self.ended)

    def gaps(self) -> list[float]:
        """From each pod's end to the next pod's creation."""
        names = sorted(self.created, key=lambda name: self.created[name])
        return [self.created[after] - self.ended[before] for before, after in pairwise(names)]


@asynccontextmanager
async def _watched(selector: str) -> AsyncIterator[_Seen]:
    """A bare watch of the pods that come from now on."""
    await kubernetes.config.load_kube_config(os.environ["KUBECONFIG"])
    async with kubernetes.client.ApiClient() as api:
        seen = _Seen(kubernetes.client.CoreV1Api(api))
        listed = await seen.core.list_namespaced_pod(NAMESPACE, label_selector=selector)
        old = {pod.metadata.name for pod in listed.items}

        async def watch() -> None:
            async for change in kubernetes.watch.Watch().stream(
                seen.core.list_namespaced_pod, NAMESPACE, label_selector=selector, resource_version=listed.metadata.resource_version,
                timeout_seconds=300,
            ):  # fmt: skip
                if change["raw_object"]["metadata"]["name"] not in old:
                    await seen.take(change["raw_object"])

        task = asyncio.create_task(watch())
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    for figure in measure():
        print(figure.say())
