"""Sending steps to the workers. A nudge may be lost or doubled: due times repeat it, and steps are idempotent."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from ledger.queue import CHORE, DISPATCH, FINISH

log = structlog.get_logger()
_OF_USE = 60
"""Seconds after which a nudge that no worker has taken is dropped: by then it was repeated, several times."""


class Nudges:
    """One thread that speaks to the broker, so that the watcher's loop never waits for it."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nudges")
        self._pending = False

    def dispatch(self) -> None:
        """Ask for an admission. A burst of asks before the thread comes to it is one message."""
        if not self._pending:
            self._pending = True
            self._thread.submit(self._dispatch)

    def restart(self, build: str) -> None:
        """Ask for a build's start to be repeated."""
        self._thread.submit(self._send, DISPATCH, build)

    def finish(self, build: str) -> None:
        self._thread.submit(self._send, FINISH, build)

    def chore(self, name: str) -> None:
        self._thread.submit(self._send, CHORE, name)

    def _dispatch(self) -> None:
        self._pending = False
        self._send(DISPATCH)

    def _send(self, task: str, *arguments: str) -> None:
        try:
            self._app.send_task(task, args=arguments, retry=False, ignore_result=True, expires=_OF_USE)
        except (OperationalError, OSError) as error:
            log.warning("nudge_failed", task=task, error=str(error))

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
