"""What the cluster itself tells of pods, by a watch of the soak's own that no fault reaches: how many lived at once, and how often each was made."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
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
    """Pod -> the uids whose container ran."""
    most: int = 0
    doubles: list[str] = field(default_factory=list)
    """Builds that two pods of were alive at one moment."""

    def take(self, kind: str, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        build = pod["metadata"]["labels"][BUILD]
        self.uids[name].add(uid)
        states = [status["state"] for status in pod["status"].get("containerStatuses", ())]
        if any("running" in state or state.get("terminated", {}).get("startedAt") for state in states):
            self.ran[name].add(uid)
        ended = any("terminated" in state for state in states) or pod["status"].get("phase") in ("Succeeded", "Failed")
        if kind == "DELETED":
            self.there.discard(name)
            self.live.pop(name, None)
            return
        self.there.add(name)
        if ended or (pod["metadata"].get("deletionTimestamp") and not states):
            self.live.pop(name, None)
        else:
            if build in self.live.values() and name not in self.live:
                self.doubles.append(build)
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
        task = asyncio.create_task(_watch(session, f"/api/v1/namespaces/{namespace}/pods", witness))
        try:
            yield witness
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


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
