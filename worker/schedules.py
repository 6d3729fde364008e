"""What is done again and again: which occurrence of each cron expression has come, and the chores that it starts.

Beat only says that a minute has passed. Each occurrence is taken once, in the ledger, in the call that starts its chore: so two beats, or a
message that comes twice, make one; and a beat that was away for a day makes up for the last occurrence only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from cronsim import CronSim

from ledger.collected import CHORES
from ledger.schedule import Schedule
from ledger.site import Site
from worker.place import Place
from worker.retention.policy import Policies

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Planned:
    """A chore that a schedule starts."""

    chore: str
    registry: str
    schedule: Schedule

    @property
    def name(self) -> str:
        """Of the schedule: another expression begins anew."""
        return f"{self.chore} {self.schedule.schedule} {self.schedule.time_zone}"


async def start_due(place: Place) -> None:
    """Start the chores of every schedule whose time has come."""
    now = await place.ledger.now()
    for planned in planned_of(await place.ledger.site(), Policies.of(await place.projects())):
        taken = await place.ledger.chores.occurrence(planned.name, now)
        occurrence = last_occurrence(planned.schedule, taken, now)
        if occurrence is not None:
            after = max(timedelta(0), occurrence + jitter_of(planned) - now)
            if await place.ledger.chores.occur(planned.name, occurrence, planned.chore, planned.registry, after=after):
                log.info("schedule_came", chore=planned.chore, occurrence=occurrence.isoformat(), after=round(after.total_seconds()))


def planned_of(site: Site, policies: Policies) -> Iterator[Planned]:
    """Every chore that has a schedule."""
    if site.retention is not None:
        for registry in policies.registries():
            yield Planned(f"plan:{registry}", registry, site.retention)
    for collected in site.collect:
        if collected.schedule is not None:
            yield Planned(f"{CHORES['run']}:{collected.registry}", collected.registry, collected.schedule)


def last_occurrence(schedule: Schedule, after: datetime, now: datetime) -> datetime | None:
    """The last time that an expression named after one moment and up to another, in UTC; None: none."""
    zone = ZoneInfo(schedule.time_zone)
    # Backwards from just after now: however long nobody looked, it is one step.
    found = next(CronSim(schedule.schedule, (now + timedelta(minutes=1)).replace(second=0, microsecond=0).astimezone(zone), reverse=True))
    at = found.astimezone(UTC)
    return at if after < at <= now else None


def jitter_of(planned: Planned) -> timedelta:
    """How much later than the expression says a chore begins: always the same for one registry."""
    share = int.from_bytes(hashlib.sha256(planned.registry.encode()).digest()[:4]) / 2**32
    return planned.schedule.jitter_time * share
