"""The Celery tasks' stable names and where they go: what the leader sends and the worker takes. No celery is imported here."""

from __future__ import annotations

from typing import Final

DISPATCH: Final = "crabpot.dispatch"
"""Admit what fits and start it; with a build's id, repeat that build's start first."""
FINISH: Final = "crabpot.finish"
"""Settle a build whose executor has succeeded, or whose pod was lost: confirm, tag, publish."""
CHORE: Final = "crabpot.chore"
"""Go on with a chore, by its name."""
SCHEDULE: Final = "crabpot.schedule"
"""Start the chores whose schedule has come; beat sends it every minute."""

ROUTES: Final = {
    DISPATCH: {"queue": "crabpot.dispatch"},
    FINISH: {"queue": "crabpot.finish"},
    CHORE: {"queue": "crabpot.chore"},
    SCHEDULE: {"queue": "crabpot.chore"},
}
