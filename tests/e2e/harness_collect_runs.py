"""Runs of a collection on the cluster: what is in the registry before and after, workers in processes of their own, and the steps driven by a test."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from ledger.chores import Chore, ChoreState
from ledger.projects import Projects, parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from tests.collect_runs import Around, drive, to_its_end
from tests.conftest import PROJECTS
from tests.e2e.harness_cluster import until
from tests.e2e.harness_collect import DeployedRegistry
from tests.faults.forks import Child, Forks, Injection
from tests.faults.points import Point, Side
from tests.integration.registry_server import OCI_MANIFEST, digest_of
from tests.scripted_cluster import ScriptedCluster
from worker.cluster.connection import Api
from worker.cluster.watching import Pace
from worker.collect.kubernetes import KubernetesSite
from worker.collect.workload import READ_ONLY
from worker.place import Place
from worker.registries import Registries
from worker.registry.credentials import DockerConfigFile


class Content:
    """What is in the registry: what must stay, and what goes."""

    def __init__(self, registry: DeployedRegistry, mark: str) -> None:
        self.registry, self.mark = registry, mark
        push = registry.server.push_image
        layers = (b"base", mark.encode())
        self.kept = [(f"team/{mark}", push(f"team/{mark}", "v1", layers=layers)), ("team/tool", push("team/tool", "v1", layers=(b"base",)))]
        gone = push(f"team/{mark}", "v2", layers=(b"base", mark.encode() * 5000))
        with registry.server.http() as http:
            http.delete(f"team/{mark}/manifests/{digest_of(gone)}").raise_for_status()
        self.garbage = digest_of(mark.encode() * 5000)
        assert self.garbage in registry.blobs()

    def check(self) -> None:
        """The registry is read-write and as it was deployed, and what was pushed can be read."""
        until(self.registry.server.serves, "the registry serves")
        self.registry.server.push_image("team/after", self.mark, layers=(b"after",))
        self.is_readable()
        workload = self.registry.workload()
        assert READ_ONLY not in json.dumps(workload["spec"])
        left = {**(workload["metadata"].get("annotations") or {}), **workload["spec"]["template"]["metadata"]["labels"]}
        assert not [key for key in left if key.startswith("crabpot.dev/") and "last-applied" not in key]
        assert "crabpot.dev" not in json.dumps(workload["spec"]["template"])

    def nothing_is_lost(self) -> None:
        """In the middle of a run: every image can be read, unless the registry is just being restarted."""
        with suppress(httpx.TransportError):
            self.is_readable()

    def is_readable(self) -> None:
        """Every image that was pushed and stays, byte for byte."""
        with self.registry.server.http() as http:
            for repository, raw in self.kept:
                assert http.get(f"{repository}/manifests/{digest_of(raw)}", headers={"Accept": OCI_MANIFEST}).content == raw
                for part in (json.loads(raw)["config"], *json.loads(raw)["layers"]):
                    assert digest_of(http.get(f"{repository}/blobs/{part['digest']}").content) == part["digest"]


async def collect(ledger: Ledger, registry: DeployedRegistry, kubeconfig: Path, how: str, around: Around = lambda _: None, **named):
    settings = registry.settings(how)
    api = Api(kubeconfig, None, Pace())
    try:
        site = KubernetesSite(settings, api)
        return await drive(ledger, settings, site, DockerConfigFile(registry.docker_config), around, seconds=240, pause=0.3, **named)
    finally:
        await api.close()


@dataclass
class Run:
    """A run as a chore, and the workers that come to it."""

    place: Place
    chore: str

    async def start(self, forks: Forks, injection: Injection | None, *, bits: int | None = None) -> Child:
        """A worker in a process of its own, which goes on to the run's end or for so many bits."""
        settings = self.place.settings
        environment = {
            "CRABPOT_REDIS_URL": settings.redis_url,
            "CRABPOT_PREFIX": settings.prefix,
            "CRABPOT_STATE": str(settings.state),
            "CRABPOT_CLUSTER": settings.cluster,
            "CRABPOT_KUBECONFIG": str(settings.kubeconfig),
            "PATH": os.environ["PATH"],
        }
        return await forks.start("collect", environment, {"name": self.chore, "bits": bits}, injection)

    async def claim_ends(self) -> None:
        """As if a claim's time had passed: whoever was killed or sleeps is no longer waited for."""
        await self.place.ledger.connection.command("HDEL", self.place.ledger.connection.keys.chore(self.chore), "held")

    async def goes_on(self) -> None:
        await self.claim_ends()
        async with asyncio.timeout(120):
            await to_its_end(self.place, self.chore)

    async def killed_at(self, forks: Forks, ahead: Counter[Point], after_each: Callable[[], None]) -> int:
        """To its end, by workers that are killed at each of these points as often as it says, which is counted down there, and after each write
        of each step. How many were.
        """
        kills, writes = 0, Counter[str]()
        async with asyncio.timeout(240):
            while (chore := await self.place.ledger.chores.read(self.chore)).state is ChoreState.WAITING:
                step = _step(chore)
                writes[step] += 1
                points = {*+ahead, Point("ledger.chore_write", Side.AFTER, writes[step])}
                child = await self.start(forks, (points, "kill"), bits=1)
                if await child.ended() < 0:
                    kills += 1
                    if (last := child.passed[-1]) in ahead:
                        ahead[last] -= 1
                        writes[step] -= 1
                    after_each()
                    await self.claim_ends()
                else:
                    assert child.code == 0, child.failure
        return kills


def _step(chore: Chore) -> str:
    return str((chore.progress.get("state") or {}).get("step"))


@asynccontextmanager
async def running(given: Settings, ledger: Ledger, registry: DeployedRegistry, kubeconfig: Path, how: str) -> AsyncIterator[Run]:
    """A run that nobody has come to yet."""
    settings = registry.settings(how)
    await ledger.store_projects(Projects.model_validate({**dict(parse_projects(PROJECTS)), "collect": (settings,)}))
    own = given.model_copy(update={"cluster": "local", "kubeconfig": kubeconfig, "state": kubeconfig.parent / "state"})
    cluster = ScriptedCluster()
    place = Place(own, ledger, cluster, Registries(cluster, own))
    try:
        assert await ledger.chores.start(f"collect:{settings.registry}", settings.registry)
        yield Run(place, f"collect:{settings.registry}")
    finally:
        await place.registries.close()
        await place.long_work.close()


def no_sweep_is_left(registry: DeployedRegistry) -> None:
    until(lambda: not (registry.cluster.get(registry.namespace, "jobs") or {}).get("items"), "no sweep is left")
