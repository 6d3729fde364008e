"""Memory of watcher and worker above idle: real pods with followed logs, then a thousand builds in flight on the crowd's nodes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from bench.figure import Figure
from bench.product import product
from bench.servers import redis_with_aof
from ledger.build import BuildRequest, State
from ledger.settings import Settings
from ledger.store import Ledger
from producer.submit import submit_build_async

CROWD, FOLLOWED = 1000, 40
NAMESPACE = "crabpot-bench"
REGISTRY = os.environ.get("CLUSTER_REGISTRY", "")
PROJECTS = f"""
version: 1
limits: {{max_builds: {CROWD + FOLLOWED}}}
projects:
  bench:
    namespace: {NAMESPACE}
    policy: {{destinations: ["{REGISTRY}/bench/**"], config_maps: [talking], node_labels: [crowd], tolerations: [crowd], insecure_registries: ["{REGISTRY}"]}}
    registries: {{"{REGISTRY}": {{insecure: true}}}}
"""
_DOCKERFILE = f"FROM {REGISTRY}/base/busybox:1\nRUN i=0; while [ $i -lt 1800 ]; do echo line $i; i=$((i+1)); sleep 0.1; done\n"


def measure() -> list[Figure]:
    if not REGISTRY or "KUBECONFIG" not in os.environ:
        print("the memory figures are left out: KUBECONFIG and CLUSTER_REGISTRY name no cluster", file=sys.stderr)
        return []
    crowd_nodes = subprocess.run(["kubectl", "get", "nodes", "-l", "crowd=true", "-o", "name"], capture_output=True, text=True, check=True)
    if not crowd_nodes.stdout.strip():
        print("the memory figures are left out: no crowd's nodes; `../shared/cluster/cluster crowd 10` adds some", file=sys.stderr)
        return []
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], capture_output=True, check=False)
    subprocess.run(["kubectl", "--namespace", NAMESPACE, "delete", "configmap", "talking"], capture_output=True, check=False)
    config = ["kubectl", "--namespace", NAMESPACE, "create", "configmap", "talking", f"--from-literal=Dockerfile={_DOCKERFILE}"]
    subprocess.run(config, capture_output=True, check=False)
    with redis_with_aof() as url, product(url, PROJECTS, NAMESPACE, os.environ["KUBECONFIG"]) as processes:
        asyncio.run(_after(url, processes, [_request(0)]))
        asyncio.run(_none_runs(url))
        idle = asyncio.run(_after(url, processes, []))
        followed = asyncio.run(_after(url, processes, [_request(number) for number in range(1, FOLLOWED + 1)]))
        asyncio.run(_none_runs(url))
        asyncio.run(_after(url, processes, [_crowd(number) for number in range(CROWD)]))
        crowd = asyncio.run(_after(url, processes, []))
    _clear()
    return [
        Figure(
            f"memory above idle with {CROWD} builds in flight",
            (sum(crowd) - sum(idle)) / 2**20,
            64,
            "MiB",
            detail=f"worker {_growth(idle, crowd, 0)}, watcher {_growth(idle, crowd, 1)}",
        ),
        Figure(
            "memory a followed pod",
            (followed[1] - idle[1]) / 2**20 / FOLLOWED,
            0.5,
            "MiB",
            detail=f"{FOLLOWED} real pods; watcher {_growth(idle, followed, 1)}",
        ),
    ]


async def _after(url: str, processes: tuple[int, int], requests: list[BuildRequest]) -> tuple[int, ...]:
    """Submit, wait until all of them run, let things settle; each process's memory then."""
    ledger = Ledger.open(Settings(redis_url=url))
    before = (await ledger.count())[State.RUNNING]
    for wanted in requests:
        await submit_build_async(wanted, ledger=ledger)
    async with asyncio.timeout(300):
        while (await ledger.count())[State.RUNNING] < before + len(requests):
            await asyncio.sleep(0.5)
    await asyncio.sleep(5)
    await ledger.close()
    return tuple(_memory(process) for process in processes)


async def _none_runs(url: str) -> None:
    ledger = Ledger.open(Settings(redis_url=url))
    async with asyncio.timeout(300):
        while (await ledger.count())[State.RUNNING]:
            await asyncio.sleep(0.5)
    await ledger.close()


def _growth(before: tuple[int, ...], after: tuple[int, ...], process: int) -> str:
    return f"{before[process] / 2**20:.0f} to {after[process] / 2**20:.0f} MiB"


def _memory(process: int) -> int:
    """Bytes resident and not shared (PSS)."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) * 1024


def _request(number: int) -> BuildRequest:
    return BuildRequest.parse(
        {
            "project": "bench",
            "source": {"kind": "config_map", "config_map": "talking"},
            "destinations": [f"{REGISTRY}/bench/talking:1.0.{number}"],
            "registries": {"insecure": [REGISTRY]},
            "resources": {"memory": "200Mi"},
            "deadlines": {"running": "20s"} if number == 0 else {},
        }
    )


def _crowd(number: int) -> BuildRequest:
    return BuildRequest.parse(
        {
            "project": "bench",
            "source": {"kind": "config_map", "config_map": "talking"},
            "destinations": [f"{REGISTRY}/bench/crowd:1.0.{number}"],
            "placement": {"node_selector": {"crowd": "true"}, "tolerations": [{"key": "crowd", "operator": "Exists"}]},
            "identity": {"annotations": {"crowd/run": "24h"}},
        }
    )


def _clear() -> None:
    """The crowd's pods run for ever and hold our finalizer: take both away."""
    kubectl = ["kubectl", "--namespace", NAMESPACE]
    pods = json.loads(subprocess.run([*kubectl, "get", "pods", "--output", "json"], capture_output=True, check=True).stdout)
    for pod in pods["items"]:
        pod["metadata"] = {name: pod["metadata"][name] for name in ("name", "namespace", "uid", "labels", "annotations")}
    # One process for all: a thousand kubectls take four minutes.
    subprocess.run([*kubectl, "replace", "--filename", "-"], input=json.dumps(pods).encode(), capture_output=True, check=False)
    subprocess.run([*kubectl, "delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false"], capture_output=True, check=False)


if __name__ == "__main__":
    for figure in measure():
        print(figure.say())
