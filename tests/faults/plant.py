"""A whole crabpot in a test's event loop, on servers that can be made to fail: real Redis, real registry, the pod server.

Its leader is the product's own (`worker.watcher.stand_by`), its workers run the product's steps as they are nudged, its kubelet runs the
pods. Nothing waits for a due time: those that come soon are brought forward.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ledger.build import ATTEMPT_LABEL, Build, State
from ledger.errors import CrabpotError
from ledger.events import EventType
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from producer.submit import submit_build_async
from tests.faults.kubelet import End, Kubelet
from tests.faults.kubernetes_api import Json
from tests.faults.pod_server import PodServer, serve_pods
from tests.faults.proxy import Line, bad_line
from tests.faults.scripted_kubernetes import FAST
from tests.faults.workers import Workers
from tests.integration.registry_server import RegistryServer
from tests.requests import request_fields
from worker.cluster.kubernetes import KubernetesCluster
from worker.liveness import Liveness
from worker.place import Place
from worker.registries import Registries
from worker.watcher import LEASE, stand_by

LIMIT, PROJECT_LIMIT = 3, 2
"""Slots over all and of the project."""
NAMESPACE = "builds"
PACE = replace(FAST, answer=0.5, watch=1.0, room=0.2)
_HURRY = 0.25
"""Seconds between two times that due times are brought forward."""
_SOON = 600_000
"""Milliseconds: due times up to this far away are. Later ones are deadlines."""
_BRING_FORWARD = """
local time = redis.call('TIME')
local now, busy = time[1] * 1000 + math.floor(time[2] / 1000), {}
for at = 5, #KEYS do
  for _, build in ipairs(redis.call('ZRANGE', KEYS[at], 0, -1)) do busy[build] = true end
end
for at = 1, 3 do
  for _, build in ipairs(redis.call('ZRANGEBYSCORE', KEYS[at], now, now + ARGV[1])) do
    if not busy[build] then
      redis.call('ZADD', KEYS[at], now - 1, build)
      if at == 1 then redis.call('HSET', KEYS[4] .. build, 'due', now - 1) end
    end
  end
end
"""
_FORGET = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end"
_numbers = itertools.count(1)


class BriefLedger(Ledger):
    """A leader's ledger that never waits long for events: redis-py may not feel a cancel before such a wait is over."""

    async def events(self, after: str = "$", *, block: float = 1.0, count: int = 500) -> list[tuple[str, bytes]]:
        return await super().events(after, block=min(block, 0.3), count=count)


class Lines(NamedTuple):
    """The ways of a plant's workers and leader."""

    redis: Line
    registry: Line


class Plant:
    """One crabpot with a ledger, a cluster and a repository of its own, so that many can be in one test at once."""

    def __init__(self, settings: Settings, ledger: Ledger, place: Place, pods: PodServer, registry: RegistryServer, host: str) -> None:
        self.settings, self.ledger, self.place, self.pods, self.host = settings, ledger, place, pods, host
        """`ledger` is the test's own way to Redis; `place` and `host` are what workers and leader use, which may be a bad line."""
        self.lines: Lines | None = None
        self.kubelet, self.workers = Kubelet(pods, registry), Workers(place)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The settings of workers and leader, for a process of its own."""
        return {
            "CRABPOT_REDIS_URL": self.settings.redis_url,
            "CRABPOT_PREFIX": self.settings.prefix,
            "CRABPOT_KUBECONFIG": str(self.settings.kubeconfig),
            "CRABPOT_NAMESPACE": self.settings.namespace,
            "CRABPOT_CLUSTER": self.settings.cluster,
            "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", ""),
        }

    def request(self, number: int = 0, **changes: Any) -> dict[str, Any]:
        """A request of a commit of its own, with a tag that does not move and one that does."""
        commit, image = f"{number:040x}", f"{self.host}/{self.settings.prefix}/demo"
        source = {**request_fields()["source"], "commit": commit}
        return request_fields(source=source, destinations=[f"{image}:{commit}", f"{image}:latest"], **changes)

    async def submit(self, number: int = 0, **changes: Any) -> Build:
        return await submit_build_async(self.request(number, **changes), ledger=self.ledger)

    # What goes on by itself

    def start(self, *work: Callable[[], Awaitable[None]]) -> None:
        """Let it go on until the plant is stopped; where nothing is named, a leader, two workers, the kubelet and time."""
        for one in work or (self.lead, self.workers.run, self.workers.run, self.kubelet.run, self.hurry):
            self._tasks.append(asyncio.ensure_future(one()))

    async def stop(self) -> None:
        """As if all processes had been killed. What had failed fails here."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def lead(self) -> None:
        """The leader; one that was killed is not waited for."""
        await self.ledger.connection.command("DEL", self.ledger.connection.keys.lease(LEASE))
        await stand_by(self.place, self.workers.nudges, Liveness(None))  # type: ignore[arg-type]

    async def hurry(self) -> None:
        """Time passes quickly: what is due soon, or delayed, is due now. But work that goes on here is not taken for work that was lost."""
        connection = self.ledger.connection
        keys = connection.keys
        while True:
            with suppress(CrabpotError):
                known = [keys.index(None, state) for state in self.workers.states_at_work]
                names = [keys.due, keys.delayed, keys.unsettled, keys.build(""), *known]
                await connection.command("EVAL", _BRING_FORWARD, len(names), *names, _SOON)
            await asyncio.sleep(_HURRY)

    async def push_late(self, pod: Json) -> End:
        """An executor that is slower than every worker that still tries to start something."""
        await self.workers.starts_nothing.wait()
        return await self.kubelet.push(pod)

    # What a test waits for

    async def told(self) -> list[Json]:
        """Every event so far."""
        return [json.loads(text) for _, text in await self.ledger.events("0-0", count=100_000, block=0.001)]

    async def settles(self, *builds: str, seconds: float = 30.0) -> None:
        """Until all of these builds have ended, and no pod is left."""
        waited, last = set(builds), "0-0"
        async with asyncio.timeout(seconds):
            while waited:
                for last, text in await self.ledger.events(last, block=1.0):
                    event = json.loads(text)
                    if event["type"] == EventType.FINISHED:
                        waited.discard(event["data"]["customData"]["build"])
            await self.is_empty()

    async def is_empty(self) -> None:
        """Until no pod is left."""
        async with aclosing(self.pods.store.moments()) as moments:
            async for _ in moments:
                if not self.pods.store.pods:
                    return

    async def tags_settle(self) -> None:
        """Until no tag is to be looked at once more."""
        async with asyncio.timeout(20):
            while await self.ledger.connection.command("EXISTS", self.ledger.connection.keys.unsettled):
                await asyncio.sleep(0.05)

    async def reaches(self, build: str, *states: State) -> Build:
        """The record of a build once it is in one of the states."""
        async with asyncio.timeout(20), self.ledger.changes(build) as changes:
            async for record in changes:
                if record.state in states:
                    return record
        raise AssertionError(f"{build} ended otherwise")


@asynccontextmanager
async def plant(
    settings: Settings, registry: RegistryServer, folder: Path, *, redis_url: str | None = None, registry_host: str | None = None
) -> AsyncIterator[Plant]:
    """A plant whose processes do not run yet; workers and leader may have another way to Redis and to the registry."""
    folder, host = folder / f"plant-{next(_numbers)}", registry_host or registry.host
    folder.mkdir()
    async with serve_pods(folder) as pods:
        changes = {"prefix": folder.name, "cluster": "kubernetes", "kubeconfig": pods.kubeconfig, "namespace": NAMESPACE}
        ours = settings.model_copy(update=changes)
        theirs = ours.model_copy(update={"redis_url": redis_url or ours.redis_url})
        ledger = Ledger.open(ours)
        await ledger.store_projects(
            parse_projects(f"""
version: 1
limits: {{max_builds: {LIMIT}}}
projects:
  demo:
    repository: https://git.example.com/team/demo.git
    max_builds: {PROJECT_LIMIT}
    rules: [{{ref: refs/heads/main, image: "{host}/{folder.name}/demo", tags: ["{{sha}}", latest]}}]
    registries: {{"{host}": {{insecure: true}}}}
""")
        )
        cluster = KubernetesCluster([NAMESPACE], ledger=await ledger.identity(), kubeconfig=pods.kubeconfig, pace=PACE)
        place = Place(theirs, BriefLedger.open(theirs), cluster, Registries(cluster, theirs))
        made = Plant(theirs, ledger, place, pods, registry, host)
        try:
            yield made
        finally:
            await made.stop()
            await place.close()
            await ledger.connection.command("EVAL", _FORGET, 0, f"{{{folder.name}}}:*")  # what is looked at as a whole stays small
            await ledger.close()


@asynccontextmanager
async def plant_on_lines(settings: Settings, registry: RegistryServer, folder: Path) -> AsyncIterator[Plant]:
    """A plant whose workers and leader speak over lines that a test can make bad."""
    async with bad_line(_port(settings.redis_url)) as redis, bad_line(_port(registry.host)) as images:
        redis_url, host = f"redis://127.0.0.1:{redis.port}/0", f"127.0.0.1:{images.port}"
        async with plant(settings, registry, folder, redis_url=redis_url, registry_host=host) as made:
            made.lines = Lines(redis, images)
            yield made


def _port(address: str) -> int:
    return int(address.rpartition(":")[2].partition("/")[0])


def label_of(build: Build) -> dict[str, str]:
    """What marks an image as the current attempt's."""
    return {ATTEMPT_LABEL: f"{build.id}.{build.attempt}"}
