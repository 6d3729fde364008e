"""What the cluster itself tells of pods, by a watch of the soak's own that no fault reaches: how many lived at once, and how often each was made.

The crowd's nodes leave a deleted pod's container running for as long as the pod has a finalizer. A kubelet ends it, so this does.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from worker.cluster.manifest import BUILD


@dataclass
class Witness:
    """One namespace's pods."""

    live: dict[str, str] = field(default_factory=dict)
    """Pods whose container has not ended -> their build."""
    there: set[str] = field(default_factory=set)
    uids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    ran: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Pod -> the uids whose container ran to its end. One that was deleted at sight did not: a process that slept in the middle of a request
    may make one for an attempt that is over."""
    most: int = 0
    to_end: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """Pods of the crowd that were deleted while they ran."""

    def take(self, kind: str, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        build = pod["metadata"]["labels"][BUILD]
        self.uids[name].add(uid)
        states = [status["state"] for status in pod["status"].get("containerStatuses", ())]
        ended = any("terminated" in state for state in states) or pod["status"].get("phase") in ("Succeeded", "Failed")
        if any(state.get("terminated", {}).get("startedAt") for state in states) and not pod["metadata"].get("deletionTimestamp"):
            self.ran[name].add(uid)
        if kind == "DELETED":
            self.there.discard(name)
            self.live.pop(name, None)
            return
        self.there.add(name)
        if pod["metadata"].get("deletionTimestamp") and states and not ended and pod["spec"].get("nodeName", "").startswith("crowd-"):
            self.to_end.put_nowait(name)
        if ended or (pod["metadata"].get("deletionTimestamp") and not states):
            self.live.pop(name, None)
        else:
            self.live[name] = build
        self.most = max(self.most, len(self.live))


@asynccontextmanager
async def watched(kubeconfig: str, namespace: str) -> AsyncIterator[Witness]:
    """A witness for the length of the block."""
    config = yaml.safe_load(Path(kubeconfig).read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    witness = Witness()
    async with aiohttp.ClientSession(cluster["server"], connector=aiohttp.TCPConnector(ssl=context), read_bufsize=2**22) as session:
        path = f"/api/v1/namespaces/{namespace}/pods"
        tasks = [asyncio.create_task(_watch(session, path, witness)), asyncio.create_task(_end(session, path, witness))]
        try:
            yield witness
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(session: aiohttp.ClientSession, path: str, witness: Witness) -> None:
    """For ever: the administrator's own line to the API server is a good one."""
    while True:
        async with session.get(path) as answer:
            listed = await answer.json()
        for pod in listed["items"]:
            witness.take("ADDED", pod)
        gone = witness.there - {pod["metadata"]["name"] for pod in listed["items"]}
        for name in gone:
            witness.there.discard(name)
            witness.live.pop(name, None)
        query = {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"], "timeoutSeconds": "300"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=330)
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(path, params=query, timeout=timeout) as answer:
                async for line in answer.content:
                    change = json.loads(line)
                    if change["type"] == "ERROR":
                        break
                    witness.take(change["type"], change["object"])


async def _end(session: aiohttp.ClientSession, path: str, witness: Witness) -> None:
    """Do what a kubelet does to a deleted pod, for ever: its container ends by SIGTERM."""
    while True:
        name = await witness.to_end.get()
        async with session.get(f"{path}/{name}") as answer:
            pod = await answer.json()
        if answer.status != 200:
            continue
        statuses = pod["status"].get("containerStatuses", [])
        for status in statuses:
            running = status["state"].pop("running", None)
            if running:
                started = running["startedAt"]
                status["state"]["terminated"] = {"exitCode": 143, "reason": "Error", "startedAt": started, "finishedAt": _now()}
                status["ready"] = status["started"] = False
        patch = {"status": {"phase": "Failed", "containerStatuses": statuses}}
        headers = {"Content-Type": "application/merge-patch+json"}
        async with session.patch(f"{path}/{name}/status", data=json.dumps(patch), headers=headers) as answer:
            assert answer.status in (200, 404, 409), await answer.text()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
