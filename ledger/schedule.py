"""When something is done again and again: a cron expression, in a time zone, with a jitter."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ledger.fields import Duration, Frozen, checked
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


class Schedule(Frozen):
    """When something is done again and again."""

    schedule: Cron
    time_zone: TimeZone = "UTC"
    jitter: Duration = "10m"
    """Each registry's turn comes up to this much later, always by the same time: so they do not all begin at once."""

    def next_after(self, now: datetime) -> datetime | None:
        """The next time that the expression names after a moment, by the clock of its zone, and without the jitter; None: never."""
        return next(CronSim(self.schedule, now.astimezone(ZoneInfo(self.time_zone))), None)

    @property
    def jitter_time(self) -> timedelta:
        return timedelta(seconds=parse_duration(self.jitter))
