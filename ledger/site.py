"""What the projects file says that is no project's: when registries are kept, and which clusters are asked what they run."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, StringConstraints, model_validator

from ledger.fields import Duration, Frozen, Name, checked
from ledger.quantities import parse_duration


def _cron(text: str) -> None:
    try:
        CronSim(text, datetime(2026, 1, 1))  # noqa: DTZ001 - only parsed
    except CronSimError as error:
        raise ValueError(f"{text!r} must be a cron expression of five fields, as `0 2 * * *` ({error})") from None


def _zone(text: str) -> None:
    try:
        ZoneInfo(text)
    except (ValueError, OSError, KeyError):
        raise ValueError(f"{text!r} must be a time zone, as Europe/Berlin or UTC") from None


Cron = Annotated[str, checked(_cron)]
"""Minute, hour, day of the month, month, day of the week."""
TimeZone = Annotated[str, checked(_zone)]


class SecretSource(Frozen):
    """Where a secret is found by the process that needs it: an environment variable or a file."""

    env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("name either env (a variable) or file")
        return self


class Schedule(Frozen):
    """When something is done again and again."""

    schedule: Cron
    time_zone: TimeZone = "UTC"
    jitter: Duration = "10m"
    """Each registry's turn comes up to this much later, always by the same time: so they do not all begin at once."""

    @property
    def jitter_time(self) -> timedelta:
        return timedelta(seconds=parse_duration(self.jitter))


class ClusterSource(Frozen):
    """A cluster that says which images it runs, by REST with a token of its own."""

    token: SecretSource
    """The bearer token of `PUT /v1/clusters/NAME/images`."""


class Site(Frozen):
    """Settings over all projects and registries."""

    retention: Schedule | None = None
    """When the registries that policies name are planned; what the policies allow is applied then. Unset: only when somebody asks."""
    clusters: dict[Name, ClusterSource] = Field(default_factory=dict)
    """The clusters that run images. Where one of them is silent nothing is deleted automatically."""

    @property
    def site(self) -> Site:
        """This alone, without what a larger file says besides."""
        said: dict[str, Any] = {name: getattr(self, name) for name in Site.model_fields}
        return Site.model_construct(**said)
