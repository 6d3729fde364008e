"""Which registries' garbage is collected, and how each is reached beside its API: `collect` in the projects file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ledger.access import RegistryAccess
from ledger.chores import Chore
from ledger.fields import AbsolutePath, Duration, Frozen, Name, RegistryHost
from ledger.quantities import parse_duration
from ledger.schedule import Schedule

CHORES: Final = {"run": "collect", "plan": "weigh", "mend": "mend"}
"""What can be done for a registry's garbage -> the kind of chore that does it."""
Workload = Annotated[str, StringConstraints(pattern=r"^(deployment|statefulset)/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class Collected(Frozen):
    """A registry, and what of its collection does not depend on where it runs."""

    registry: RegistryHost
    aliases: tuple[RegistryHost, ...] = ()
    """Other names by which images call it: builds that write to these wait as well, and what is used by them stays."""
    schedule: Schedule | None = None
    """When; unset: only when somebody asks."""
    drain: Duration = "15m"
    """How long running builds that write to it are waited for; then the run gives up until the next."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.registry, *self.aliases)

    @property
    def drain_time(self) -> timedelta:
        return timedelta(seconds=parse_duration(self.drain))


class CollectedHere(Collected):
    """One whose processes crabpot can reach, to make it read-only and to sweep."""

    access: RegistryAccess = RegistryAccess()
    """A credential that lists, reads and pushes in all its repositories. A `secret` is one in CRABPOT_NAMESPACE."""
    config: AbsolutePath = "/etc/docker/registry/config.yml"
    """The registry's configuration file, where its processes find it."""


class CollectedInKubernetes(CollectedHere):
    """A Deployment or StatefulSet with a claim."""

    kind: Literal["kubernetes"]
    namespace: Name
    workload: Workload
    """`deployment/NAME` or `statefulset/NAME`."""
    claim: Name
    """The PersistentVolumeClaim that holds its blobs; for a claim template of a stateful set, the claim that it makes."""
    how: Literal["job", "exec"] = "job"
    """Where the sweep runs: in a Job of its own on the same claim, or in the registry's container, as `kubectl exec` does."""
    program: Annotated[str, StringConstraints(pattern=r"^[^\s\x00]{1,200}$")] = "registry"
    """The program in the registry's image."""
    container: Name | None = None
    """The registry's container, where its pod has several."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    """Where each pod listens; the worker must reach the pods' addresses. With TLS unless `access.insecure`."""

    @property
    def unsafe(self) -> str | None:
        """Why its sweep could begin in a registry that is read-write by then. The pods of a stateful set have names that come again, so what a
        worker that slept wants executed would be in the next pod.
        """
        if self.how == "exec" and self.workload.startswith("statefulset/"):
            return "`how: exec` cannot be safe in a statefulset, whose pods have names that come again; say `how: job`"
        return None


class CollectedOnThisMachine(CollectedHere):
    """A process of this machine that something starts again whenever it ends (deploy/demo/registry does)."""

    kind: Literal["local"]
    program: Annotated[str, StringConstraints(pattern=r"^[^\s\x00]{1,200}$")] = "docker-registry"
    process: Path
    """The file with the process's number."""
    marker: Path
    """While this file is there, the process is started read-only."""


class CollectsItself(Collected):
    """Harbor, zot and hosted registries collect their own garbage; said here, `crabpot gc` says so too."""

    kind: Literal["own"]

    @model_validator(mode="after")
    def _bare(self) -> Self:
        if self.schedule:
            raise ValueError("a registry that collects its own garbage has its schedule there, and takes none here")
        return self


def told_of(chore: Chore) -> dict[str, Any]:
    """A run as commands and REST tell of it: JSON."""
    return {
        "name": chore.name,
        "registry": chore.registry,
        "state": chore.state.value,
        "said": chore.said,
        "updated": chore.updated.isoformat(),
        "run": chore.progress.get("state"),
    }


def next_of(one: Collected, now: datetime) -> dict[str, Any] | None:
    """When a registry's schedule comes next, as commands tell of it: JSON, its times with their offsets. None: it has none, or that never comes."""
    if one.schedule is None or (at := one.schedule.next_after(now)) is None:
        return None
    return {"registry": one.registry, "at": at.astimezone(UTC).isoformat(), "there": at.isoformat(), **one.schedule.model_dump(mode="json")}


AnyCollected = Annotated[CollectedInKubernetes | CollectedOnThisMachine | CollectsItself, Field(discriminator="kind")]
