"""The Celery tasks: decode, call one step, log. A failed step is not retried by Celery: its build's, or chore's, due time repeats it."""

from __future__ import annotations

from typing import Any

import structlog
from celery.signals import setup_logging, worker_shutdown

from ledger.errors import CrabpotError
from ledger.logging import set_up
from ledger.queue import CHORE, DISPATCH, FINISH, SCHEDULE
from ledger.settings import settings
from worker.admission import dispatch
from worker.app import app
from worker.chores import go_on
from worker.consuming import Consuming
from worker.finish import finish
from worker.kinds import KINDS
from worker.process import process
from worker.schedules import start_due

log = structlog.get_logger()
app.steps["consumer"].add(Consuming)


@setup_logging.connect
def _log_as_we_do(**_: Any) -> None:
    set_up(settings())


@worker_shutdown.connect
def _close(**_: Any) -> None:
    process.close()


@app.task(name=DISPATCH)
def dispatch_task(build: str | None = None) -> None:
    """Admit what fits and start it; with a build, repeat its start first."""
    try:
        process.run(lambda place: dispatch(place, build))
    except* (CrabpotError, TimeoutError) as group:  # starts go on side by side
        for error in group.exceptions:
            _failed("dispatch", error, build)


@app.task(name=FINISH)
def finish_task(build: str) -> None:
    """Settle a build whose executor has ended."""
    try:
        process.run(lambda place: finish(place, build))
    except (CrabpotError, TimeoutError) as error:
        _failed("finish", error, build)


@app.task(name=CHORE)
def chore_task(name: str) -> None:
    """Go on with a chore."""
    try:
        process.run(lambda place: go_on(place, name, KINDS))
    except (CrabpotError, TimeoutError) as error:
        log.warning("chore_failed", chore=name, error=str(error), kind=type(error).__name__)


@app.task(name=SCHEDULE)
def schedule_task() -> None:
    """Start the chores whose schedule has come."""
    try:
        process.run(start_due)
    except (CrabpotError, TimeoutError) as error:
        log.warning("schedule_failed", error=str(error), kind=type(error).__name__)


def _failed(step: str, error: Exception, build: str | None) -> None:
    log.warning("step_failed", step=step, build=build, error=str(error), kind=type(error).__name__)
