"""Whether this Celery worker takes messages: what its liveness is made of. The only place that looks into kombu's Redis channel.

A consumer that waits for a message asks Redis anew about every second. One that has not asked for long either hangs, as Celery's have
after reconnects (celery#8030, #8091), or has all its threads busy, which is well as long as no step is stuck.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import structlog
from celery import bootsteps
from celery.worker import state

from ledger.settings import settings
from worker.liveness import Liveness
from worker.process import STEP_SECONDS, process

log = structlog.get_logger()
_LOOK = 5.0
_PATIENCE = 45.0


class Consuming(bootsteps.StartStopStep):
    """Starts with each connection to the broker, ends with it; between two connections the worker tries to connect, and that is well."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    liveness: Liveness | None = None

    def start(self, c: Any) -> None:
        """The consumer is connected and waits for messages: from now on it must prove it."""
        if Consuming.liveness is None and settings().alive_file:
            Consuming.liveness = Liveness(settings().alive_file, steps=STEP_SECONDS + 60.0)
        if Consuming.liveness and c.hub:
            Consuming.liveness.expect("messages", _PATIENCE)
            c.hub.call_repeatedly(_LOOK, self._look, c)

    def stop(self, c: Any) -> None:  # noqa: ARG002
        if Consuming.liveness:
            Consuming.liveness.forget("messages")

    def _look(self, c: Any) -> None:
        """Called by the consumer's own loop: that it turns is half of the proof."""
        liveness = Consuming.liveness
        if liveness is None or c.task_consumer is None:
            return
        asked = getattr(c.task_consumer.channel, "_brpop_sent_at", None)
        busy = len(state.reserved_requests) >= c.pool.num_processes
        if busy or (asked is not None and monotonic() - asked < _PATIENCE):
            liveness.round("messages")
        if process.oldest_step() < STEP_SECONDS:
            liveness.round("steps")
