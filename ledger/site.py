"""What the projects file says that is no project's: when registries are kept, and which clusters are asked what they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ledger.collected import AnyCollected, CollectedInKubernetes
from ledger.errors import InputInvalid, NotFound, Problem
from ledger.fields import AbsolutePath, Frozen, Name
from ledger.schedule import Schedule

_REVISIONS = 11
"""The present one, and the ten old ones besides that Kubernetes keeps of a deployment unless its `revisionHistoryLimit` says otherwise."""


class SecretSource(Frozen):
    """Where a secret is found by the process that needs it: an environment variable or a file."""

    env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("name either env (a variable) or file")
        return self


class ClusterSource(Frozen):
    """How it is known which images a cluster runs: it reports them by REST (`token`), or workers ask its API server (`kubeconfig`, `in_cluster`)."""

    token: SecretSource | None = None
    """The bearer token of `PUT /v1/clusters/NAME/images`."""
    kubeconfig: AbsolutePath | None = None
    """A file of the workers' machines, or of their pods, that leads to the cluster; its account needs what deploy/running gives."""
    context: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    """The kubeconfig's context, if not its current one."""
    in_cluster: Literal[True] | None = None
    """The cluster that the workers run in, by their own service account (`running.enabled` of the chart gives it the rights)."""
    revisions: Annotated[int, Field(ge=1, le=1000)] = _REVISIONS
    """How many replica sets of each deployment count, the newest first: as far back as a rollout can be undone without losing its image."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("token", "kubeconfig", "in_cluster") if getattr(self, name) is not None]
        if len(ways) != 1:
            told = f"not {' and '.join(ways)}" if ways else "none is there"
            raise ValueError(
                "name exactly one of token (the cluster reports by REST), kubeconfig (a file by which workers ask it) and in_cluster: true "
                f"(the cluster that workers run in); {told}"
            )
        if self.context is not None and self.kubeconfig is None:
            raise ValueError("context is one of a kubeconfig, so it goes with that only")
        if self.token is not None and self.revisions != _REVISIONS:
            raise ValueError("revisions is for a cluster that workers ask; one that reports says itself what counts")
        return self

    @property
    def reports(self) -> bool:
        """Whether the cluster itself says what it runs; else workers ask."""
        return self.token is not None


class Site(Frozen):
    """Settings over all projects and registries."""

    retention: Schedule | None = None
    """When the registries that policies name are planned; what the policies allow is applied then. Unset: only when somebody asks."""
    collect: tuple[AnyCollected, ...] = ()
    """Registries whose garbage is collected."""
    clusters: dict[Name, ClusterSource] = Field(default_factory=dict)
    """The clusters that run images. Where one of them is silent nothing is deleted automatically, but where no cluster uses a policy's images."""

    @model_validator(mode="after")
    def _one_collection_each(self) -> Self:
        names = [name for one in self.collect for name in (one.registry, *one.aliases)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"collect: the registry {name} is named twice")
        return self

    @model_validator(mode="after")
    def _safe_sweeps(self) -> Self:
        # Here and not in the entry: a run that began by such settings still has to be ended by them.
        for one in self.collect:
            if isinstance(one, CollectedInKubernetes) and (why := one.unsafe):
                raise ValueError(f"collect: {one.registry}: {why}")
        return self

    def require_clusters(self, names: Sequence[str]) -> None:
        """InputInvalid: the projects file does not name one of these clusters, whose silence somebody takes on himself (`despite`)."""
        known = f"the projects file names no such cluster; it names {', '.join(sorted(self.clusters)) or 'none'}"
        if problems := [Problem("despite", repr(name[:63]), known) for name in names if name not in self.clusters]:
            raise InputInvalid(problems)

    def collected(self, registry: str) -> AnyCollected:
        """What is said of a registry's collection. NotFound: nothing."""
        for one in self.collect:
            if registry in (one.registry, *one.aliases):
                return one
        known = ", ".join(one.registry for one in self.collect) or "none"
        raise NotFound(
            f"the projects file says nothing of collecting {registry}; name it under `collect` (there: {known}), with `kind: own` where it is"
            " Harbor, zot or hosted: these collect their own garbage"
        )

    @property
    def site(self) -> Site:
        """This alone, without what a larger file says besides."""
        said: dict[str, Any] = {name: getattr(self, name) for name in Site.model_fields}
        return Site.model_construct(**said)
