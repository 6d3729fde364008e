"""How workers get into a registry: where the credential is found, and how the registry is spoken to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ledger.fields import Frozen, Name


class RegistryAccess(Frozen):
    """How workers read and tag in a registry."""

    docker_config: Path | None = None
    """A docker config.json on the worker's disk; its credential helpers are used too."""
    secret: Name | None = None
    """Or a Secret with `.dockerconfigjson` in the project's namespace, labelled crabpot.dev/readable=true."""
    insecure: bool = False
    """Plain HTTP."""
    certificate: Path | None = None
    """A CA certificate (PEM) on the worker's disk."""
    requests_at_once: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many requests a worker process may have under way there; of several projects' limits the strictest counts."""
    requests_per_second: Annotated[float, Field(gt=0, le=10000)] | None = None
    """How many it may send a second. A registry that answers 429 is left alone as long as it asks, whatever stands here."""

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if self.docker_config and self.secret:
            raise ValueError("name docker_config or secret, not both")
        return self
