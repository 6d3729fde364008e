"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.errors import LedgerUnavailable
from ledger.fitness import require_fit
from ledger.settings import Settings
from ledger.store import Ledger

_READY_SECONDS = 3.0
"""A probe that hangs says nothing; Redis answers in under a millisecond."""
_PROCESS = CollectorRegistry()
REQUESTS = Histogram("crabpot_http_request_seconds", "How long requests took", ["method", "route", "status"], registry=_PROCESS)


async def alive(_: Request) -> Response:
    """The process answers."""
    return JSONResponse({"alive": True})


async def ready(request: Request) -> Response:
    """Redis answers and is fit to hold the ledger; else 503 and why."""
    ledger: Ledger = request.app.state.ledger
    settings: Settings = request.app.state.settings
    try:
        async with asyncio.timeout(_READY_SECONDS):
            if settings.allow_unsafe_redis:
                await ledger.connection.command("PING")
            else:
                await require_fit(ledger.connection)
    except TimeoutError:
        raise LedgerUnavailable(f"Redis has not answered for {_READY_SECONDS:g} s") from None
    return JSONResponse({"ready": True})


async def metrics(request: Request) -> Response:
    """Prometheus' text: the ledger as it is now, and this process's requests."""
    ledger: Ledger = request.app.state.ledger
    registry = CollectorRegistry()
    builds = Gauge("crabpot_builds", "Builds in the ledger by state", ["state"], registry=registry)
    for state, count in (await ledger.count()).items():
        builds.labels(str(state)).set(count)
    Gauge("crabpot_slots_taken", "Slots that are taken", registry=registry).set(len(await ledger.slots()))
    late = await ledger.next_due()
    Gauge("crabpot_due_late_seconds", "How late the leader is with the most overdue build", registry=registry).set(max(0.0, -(late or 0.0)))
    Gauge("crabpot_leader", "Whether a watcher leads", registry=registry).set(await ledger.leases.holder("watch") is not None)
    return Response(generate_latest(registry) + generate_latest(_PROCESS), media_type=CONTENT_TYPE_LATEST)
