"""What the projects file says that is no project's: when registries are kept, and which clusters are asked what they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from ledger.collected import AnyCollected
from ledger.errors import NotFound
from ledger.fields import Frozen, Name
from ledger.schedule import Schedule


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
    """A cluster that says which images it runs, by REST with a token of its own."""

    token: SecretSource
    """The bearer token of `PUT /v1/clusters/NAME/images`."""


class Site(Frozen):
    """Settings over all projects and registries."""

    retention: Schedule | None = None
    """When the registries that policies name are planned; what the policies allow is applied then. Unset: only when somebody asks."""
    collect: tuple[AnyCollected, ...] = ()
    """Registries whose garbage is collected."""
    clusters: dict[Name, ClusterSource] = Field(default_factory=dict)
    """The clusters that run images. Where one of them is silent nothing is deleted automatically."""

    @model_validator(mode="after")
    def _one_collection_each(self) -> Self:
        names = [name for one in self.collect for name in (one.registry, *one.aliases)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"collect: the registry {name} is named twice")
        return self

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
