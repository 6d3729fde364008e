"""The figures on the cluster that KUBECONFIG names: builds against a bare loop, API requests a build, latency, memory.

Run by `make bench` with the cluster up (`../shared/cluster/cluster up`, then eval its `env`). Ours is the product as shipped: worker and
watcher as processes of their own, a Redis with AOF. The baseline is one asyncio loop that creates the same pods.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import kubernetes_asyncio as kubernetes
import kubernetes_asyncio.config
import kubernetes_asyncio.watch

from bench.figure import Figure, interleaved, spread
from bench.product import counting_api, product, store
from bench.servers import redis_with_aof
from ledger.build import Build, BuildRequest, State
from ledger.settings import Settings
from ledger.store import Ledger
from producer.submit import submit_build_async, wait_for_build_async
from worker.cluster.manifest import SELECTOR, pod_manifest
from worker.kaniko import launch
from worker.registry.client import RegistryClient
from worker.registry.credentials import Anonymous

COUNT, AT_ONCE, PAIRS, SAMPLES = 40, 8, 5, 300
NAMESPACE = "crabpot-bench"
REGISTRY = os.environ.get("CLUSTER_REGISTRY", "")
PROJECTS = f"""
version: 1
limits: {{max_builds: {AT_ONCE}}}
projects:
  bench:
    namespace: {NAMESPACE}
    policy:
      destinations: ["{REGISTRY}/bench/**"]
      config_maps: [trivial]
    registries:
      "{REGISTRY}": {{insecure: true}}
"""


def request(number: int) -> BuildRequest:
    """A trivial build: FROM scratch and one file, from a ConfigMap."""
    return BuildRequest.parse(
        {
            "project": "bench",
            "source": {"kind": "config_map", "config_map": "trivial"},
            "destinations": [f"{REGISTRY}/bench/app:1.0.{number}"],
            "registries": {"insecure": [REGISTRY]},
        }
    )


def measure() -> list[Figure]:
    if not REGISTRY or "KUBECONFIG" not in os.environ:
        print("the figures on the cluster are left out: KUBECONFIG and CLUSTER_REGISTRY name none", file=sys.stderr)
        return []
    _prepare()
    with redis_with_aof() as url, counting_api() as api:
        numbers = iter(range(1_000_000))
        with product(url, PROJECTS, NAMESPACE, api.kubeconfig):
            asyncio.run(ours(url, numbers))
            _settled()
            counted = api.requests()
            asyncio.run(ours(url, numbers))
            _settled()
            requests = (api.requests() - counted) / COUNT
        with product(url, PROJECTS, NAMESPACE, os.environ["KUBECONFIG"]):
            asyncio.run(_bare(numbers))
            ratio, mine, theirs = interleaved(PAIRS, lambda: asyncio.run(ours(url, numbers)), lambda: asyncio.run(_bare(numbers)))
            # Two at once: with more, what is measured is how long two cores that run Kaniko let everybody else wait.
            asyncio.run(store(url, PROJECTS.replace(f"max_builds: {AT_ONCE}", "max_builds: 2")))
            latency = asyncio.run(_latency(url, numbers))
    return [
        Figure("40 builds, 8 at once, wall time", ratio, 1.15, detail=f"{spread(mine)} s against {spread(theirs)} s"),
        Figure("API requests a build", requests, 4.2, "requests"),
        latency,
    ]


def _prepare() -> None:
    kubectl = ["kubectl", "--namespace", NAMESPACE]
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], capture_output=True, check=False)
    subprocess.run(
        [*kubectl, "create", "configmap", "trivial", "--from-literal=Dockerfile=FROM scratch\nCOPY page /page\n", "--from-literal=page=hello"],
        capture_output=True, check=False,
    )  # fmt: skip


def _settled() -> None:
    """Wait until the last pods are deleted: their requests count too."""
    kubectl = ["kubectl", "--namespace", NAMESPACE, "wait", "pods", "--selector", SELECTOR, "--for=delete", "--timeout=60s"]
    subprocess.run(kubectl, capture_output=True, check=True)


async def ours(url: str, numbers: Iterator[int]) -> float:
    """Seconds from the first submit to the last build's success."""
    ledger = Ledger.open(Settings(redis_url=url))
    start = time.perf_counter()
    builds = [await submit_build_async(request(next(numbers)), ledger=ledger) for _ in range(COUNT)]
    ended: list[Build] = await asyncio.gather(*(wait_for_build_async(build.id, ledger=ledger) for build in builds))
    seconds = time.perf_counter() - start
    assert {build.state for build in ended} == {State.SUCCEEDED}, [build.message for build in ended if build.state is not State.SUCCEEDED]
    await ledger.close()
    return seconds


async def _bare(numbers: Iterator[int]) -> float:
    """The same pods by one loop: a semaphore, one watch, each log followed, each pod deleted."""
    await kubernetes.config.load_kube_config(os.environ["KUBECONFIG"])
    async with kubernetes.client.ApiClient() as api, _watched(api) as ended:
        core = kubernetes.client.CoreV1Api(api)
        gate = asyncio.Semaphore(AT_ONCE)
        start = time.perf_counter()
        logs: list[asyncio.Task[Any]] = []
        await asyncio.gather(*(_bare_build(core, gate, next(numbers), ended, logs) for _ in range(COUNT)))
        await asyncio.gather(*logs)
        return time.perf_counter() - start


async def _bare_build(
    core: Any, gate: asyncio.Semaphore, number: int, ended: dict[str, asyncio.Event], logs: list[asyncio.Task[Any]]
) -> None:
    now = datetime.now(UTC)
    build = Build(id=str(uuid4()), request=request(number), attempt=1, created=now, updated=now)
    said = launch(build, "linux/amd64", namespace=NAMESPACE, executor_image=os.environ["CLUSTER_KANIKO_IMAGE"], memory="2Gi")
    body = pod_manifest(said)
    body["metadata"].pop("finalizers", None)
    body["metadata"]["labels"] = {"app": "bare"}  # not ours: the watcher would clear them away as orphans
    async with gate:
        ended[said.pod], running = asyncio.Event(), asyncio.Event()
        ended[f"{said.pod}/runs"] = running
        await core.create_namespaced_pod(NAMESPACE, body)
        await running.wait()
        log = asyncio.create_task(_follow(core, said.pod))
        await ended[said.pod].wait()
    await log
    await core.delete_namespaced_pod(said.pod, NAMESPACE)
    logs.append(log)


async def _follow(core: Any, pod: str) -> None:
    response = await core.read_namespaced_pod_log(pod, NAMESPACE, follow=True, timestamps=True, _preload_content=False)
    async for _ in response.content:
        pass


@asynccontextmanager
async def _watched(api: Any) -> AsyncIterator[dict[str, asyncio.Event]]:
    """Events by pod name, set when its container has terminated (and `name/runs` when it runs or has ended)."""
    events: dict[str, asyncio.Event] = {}
    core = kubernetes.client.CoreV1Api(api)
    version = (await core.list_namespaced_pod(NAMESPACE)).metadata.resource_version

    async def watch() -> None:
        async for change in kubernetes.watch.Watch().stream(
            core.list_namespaced_pod, NAMESPACE, resource_version=version, timeout_seconds=300
        ):
            pod = change["raw_object"]
            name = pod["metadata"]["name"]
            for status in pod.get("status", {}).get("containerStatuses", []):
                if ("running" in status["state"] or "terminated" in status["state"]) and f"{name}/runs" in events:
                    events[f"{name}/runs"].set()
                if "terminated" in status["state"] and name in events:
                    events[name].set()

    task = asyncio.create_task(watch())
    yield events
    task.cancel()


async def _latency(url: str, numbers: Iterator[int]) -> Figure:
    """p95 of: the bare watch sees a container ended -> its build's `finished` event is in the stream, less the registry's part.

    The registry's part is measured at the same moments: when a container ends, the next pod starts, and everybody is slower.
    """
    ledger = Ledger.open(Settings(redis_url=url))
    first = await wait_for_build_async((await submit_build_async(request(next(numbers)), ledger=ledger)).id, ledger=ledger)
    image = first.request.images[0].with_digest(first.digest or "")
    seen, told = dict[str, float](), dict[str, float]()
    took: list[float] = []
    await kubernetes.config.load_kube_config(os.environ["KUBECONFIG"])
    async with (
        kubernetes.client.ApiClient() as api,
        aclosing(RegistryClient(Anonymous(), insecure=frozenset({REGISTRY}))) as registry,
        asyncio.timeout(1800),
        asyncio.TaskGroup() as group,
    ):
        core = kubernetes.client.CoreV1Api(api)
        version = (await core.list_namespaced_pod(NAMESPACE)).metadata.resource_version

        async def confirm() -> None:
            start = time.perf_counter()
            await registry.image_size(image)
            took.append(time.perf_counter() - start)

        async def watch() -> None:
            async for change in kubernetes.watch.Watch().stream(
                core.list_namespaced_pod, NAMESPACE, resource_version=version, timeout_seconds=3000
            ):
                pod = change["raw_object"]
                build = pod["metadata"]["labels"].get("crabpot.dev/build")
                ended = any("terminated" in status["state"] for status in pod.get("status", {}).get("containerStatuses", []))
                if build and ended and build not in seen:
                    seen[build] = time.perf_counter()
                    group.create_task(confirm())

        watching = group.create_task(watch())
        last = await ledger.last_event()
        builds = [await submit_build_async(request(next(numbers)), ledger=ledger) for _ in range(SAMPLES)]
        while len(told) < SAMPLES:
            for entry, text in await ledger.events(last):
                last = entry
                if b'"type":"dev.cdevents.build.finished' in text:
                    told[json.loads(text)["data"]["customData"]["build"]] = time.perf_counter()
        watching.cancel()
    await ledger.close()
    delays = sorted(told[build.id] - seen[build.id] for build in builds if build.id in seen)
    asked = statistics.median(took)
    p95, p50 = delays[int(len(delays) * 0.95)] - asked, statistics.median(delays) - asked
    detail = f"p50 {p50 * 1000:.0f} ms; the registry's confirmation at the same moments, median {asked * 1000:.0f} ms, taken off; {len(delays)} samples"
    return Figure("container ended -> finished event, p95", p95 * 1000, 150, "ms", detail=detail)


if __name__ == "__main__":
    for figure in measure():
        print(figure.say())
