"""Where a worker's or watcher's steps work: the ledger, the cluster and the registries, opened once per process and event loop."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

from ledger.build import Build
from ledger.fitness import require_fit
from ledger.projects import ProjectSettings
from ledger.quantities import parse_duration
from ledger.settings import Settings
from ledger.store import Ledger
from worker.cluster import Cluster
from worker.registries import Registries
from worker.registry.pace import PATIENT
from worker.registry.wire import Timeouts
from worker.retention.flights import Flights
from worker.retention.inquiries import Inquiries
from worker.retries import memory_for

STARTS_AT_ONCE = 32
"""Pods that a process creates at once: enough to hide the API server's latency, few enough not to be throttled."""
_PROJECTS_TTL = 5.0
"""Seconds that a copy of the projects is used: how soon a changed projects file is felt by the steps."""


@dataclass
class _Copy:
    projects: dict[str, ProjectSettings]
    until: float = 0.0


@dataclass
class Turn:
    """Whose turn it is to admit builds, among a process's steps."""

    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(STARTS_AT_ONCE))
    taken: bool = False
    asked_again: bool = False
    """Another step wanted to admit meanwhile: what it was told of may have come after the last look."""


class Place:
    """The clients of one event loop."""

    def __init__(self, settings: Settings, ledger: Ledger, cluster: Cluster, registries: Registries) -> None:
        self.settings, self.ledger, self.cluster, self.registries = settings, ledger, cluster, registries
        self.long_work = Registries(cluster, settings, patience=PATIENT, timeouts=Timeouts(), budgets=registries.budgets)
        """For chores, which are not repeated for each question that a registry does not answer; a list of very many tags takes its time."""
        self.inquiries = Inquiries()
        """What the clusters run that retention must spare; not only the one that builds."""
        self.flights = Flights()
        self._copy = _Copy({})
        self.turn = Turn()

    async def project(self, name: str) -> ProjectSettings:
        """A project as the ledger has it now, or moments ago; one that was taken out of the file has no settings of its own left."""
        return (await self.projects()).get(name, ProjectSettings())

    async def projects(self) -> Mapping[str, ProjectSettings]:
        """All projects, now or moments ago; the cluster looks for pods in the namespaces of all."""
        if monotonic() > self._copy.until:
            self._copy = _Copy(await self.ledger.projects(), monotonic() + _PROJECTS_TTL)
            self.cluster.cover(namespaces_of(self.settings, self._copy.projects))
        return self._copy.projects

    async def memory_of(self, build: Build) -> str | None:
        """The memory of the build's current attempt, or of its next: twice as much after each that ran out of it."""
        project = await self.project(build.project)
        given = build.request.resources.memory or project.resources.memory or self.settings.memory
        return memory_for(build, given, project.policy.max_memory)

    @property
    def start_timeout(self) -> float:
        """Seconds after which a `starting` build without a pod is started again."""
        return parse_duration(self.settings.start_timeout)

    async def close(self) -> None:
        await self.cluster.close()
        await self.registries.close()
        await self.long_work.close()
        await self.ledger.close()


async def open_place(settings: Settings) -> Place:
    """Open everything. LedgerUnfit where Redis would lose builds; LedgerUnavailable, ClusterDenied."""
    ledger = Ledger.open(settings)
    if not settings.allow_unsafe_redis:
        await require_fit(ledger.connection)
    cluster = open_cluster(settings, namespaces_of(settings, await ledger.projects()), await ledger.identity())
    return Place(settings, ledger, cluster, Registries(cluster, settings))


def namespaces_of(settings: Settings, projects: Mapping[str, ProjectSettings]) -> list[str]:
    """Every namespace that pods of ours may be in."""
    return sorted({settings.namespace, *(project.namespace for project in projects.values() if project.namespace)})


def open_cluster(settings: Settings, namespaces: list[str], ledger: str) -> Cluster:
    """The cluster that the settings name, for the pods of a ledger (its identity)."""
    if settings.cluster == "local":
        from worker.cluster.local import LocalCluster

        return LocalCluster(settings.state / "launches", shlex.split(settings.executor))
    from worker.cluster.kubernetes import KubernetesCluster

    return KubernetesCluster(namespaces, ledger=ledger, kubeconfig=settings.kubeconfig, context=settings.context)
