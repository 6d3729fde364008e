"""How long a build may stay in each state: the request's word, else the project's, else ours."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from ledger.build import Build, State
from ledger.quantities import parse_duration
from ledger.request import Deadlines

DEFAULTS = {"queued": "24h", "pending": "10m", "running": "1h", "publishing": "30m"}
"""Where neither request nor project says."""
_FIELD = {State.QUEUED: "queued", State.STARTING: "pending", State.RUNNING: "running", State.PUBLISHING: "publishing"}


def allowance(state: State, request: Deadlines, project: Deadlines) -> timedelta:
    """How long a build may stay in a state that is not final."""
    field = _FIELD[state]
    return timedelta(seconds=parse_duration(getattr(request, field) or getattr(project, field) or DEFAULTS[field]))


def deadline(build: Build, since: datetime, project: Deadlines) -> datetime:
    """When the build has been in its state for too long, if it entered it at `since`."""
    return since + allowance(build.state, build.request.deadlines, project)


def covered(spans: Iterable[tuple[datetime, datetime]], since: datetime) -> timedelta:
    """How much of the time from `since` on spans cover together: where they overlap, none counts twice."""
    total, end_of_last = timedelta(0), since
    for start, end in sorted(spans):
        begin = max(start, end_of_last)
        if end > begin:
            total, end_of_last = total + (end - begin), end
    return total
