"""The application: routes, and what goes around every request (who may, how errors are told, how long it took).

Served by `crabpot serve`, and by every CLI command on a private Unix socket where no server is named: one code path.
"""

from __future__ import annotations

import secrets
import time
from http import HTTPStatus

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.errors import (
    Conflict,
    CrabpotError,
    InputInvalid,
    LedgerFull,
    LedgerUnavailable,
    LedgerUnfit,
    NotFound,
    PolicyDenied,
    QueueFull,
)
from ledger.settings import Settings
from ledger.store import Ledger
from producer.api import adoptions, builds, chores, collections, health, hooks, limits, pins, promotions, retention

log = structlog.get_logger()
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "crabpot"})
_OPEN = ("/webhooks/", "/healthz", "/readyz", "/v1/clusters/")
"""What asks for proof of its own, or needs none."""
_RETRY_AFTER = "5"


def create_app(ledger: Ledger, settings: Settings, *, anyone: bool = False) -> Starlette:
    """The application on a ledger. `anyone`: whoever reaches the socket may do everything (a private Unix socket)."""
    app = Starlette(
        routes=[
            Route("/v1/builds", builds.create, methods=["POST"]),
            Route("/v1/builds", builds.page, methods=["GET"]),
            Route("/v1/builds/{build}", builds.show, methods=["GET"]),
            Route("/v1/builds/{build}/logs", builds.logs, methods=["GET"]),
            Route("/v1/builds/{build}/cancel", builds.cancel, methods=["POST"]),
            Route("/v1/builds/{build}/retry", builds.retry, methods=["POST"]),
            Route("/v1/promotions", promotions.create, methods=["POST"]),
            Route("/v1/promotions", promotions.page, methods=["GET"]),
            Route("/v1/promotions/{promotion}", promotions.show, methods=["GET"]),
            Route("/v1/limits", limits.show, methods=["GET"]),
            Route("/v1/limits/{scope:path}", limits.set_limit, methods=["PUT"]),
            Route("/v1/limits/{scope:path}", limits.give_back, methods=["DELETE"]),
            Route("/v1/pauses/{scope:path}", limits.pause, methods=["PUT"]),
            Route("/v1/pauses/{scope:path}", limits.resume, methods=["DELETE"]),
            Route("/v1/collections", collections.page, methods=["GET"]),
            Route("/v1/collections", collections.create, methods=["POST"]),
            Route("/v1/chores/{chore:path}", chores.show, methods=["GET"]),
            Route("/v1/retention/plans", retention.plans, methods=["GET"]),
            Route("/v1/retention/plans", retention.create, methods=["POST"]),
            Route("/v1/retention/plans/{plan}", retention.show, methods=["GET"]),
            Route("/v1/retention/plans/{plan}/approve", retention.approve, methods=["POST"]),
            Route("/v1/retention/plans/{plan}/undo", retention.undo, methods=["POST"]),
            Route("/v1/retention/adoptions", adoptions.create, methods=["POST"]),
            Route("/v1/registry/pins", pins.page, methods=["GET"]),
            Route("/v1/registry/pins/{image:path}", pins.pin, methods=["PUT"]),
            Route("/v1/registry/pins/{image:path}", pins.unpin, methods=["DELETE"]),
            Route("/v1/clusters/{cluster}/images", retention.report_images, methods=["PUT"]),
            Route("/webhooks/github", hooks.github, methods=["POST"]),
            Route("/healthz", health.alive, methods=["GET"]),
            Route("/readyz", health.ready, methods=["GET"]),
            Route("/metrics", health.metrics, methods=["GET"]),
        ],
        exception_handlers={CrabpotError: _told, HTTPException: _refused, Exception: _broken},
    )
    app.state.ledger, app.state.settings = ledger, settings
    app.add_middleware(_Gate, settings=settings, anyone=anyone)
    return app


def problem(status: int, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: object) -> JSONResponse:
    """An error as application/problem+json (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


async def _told(_: Request, error: Exception) -> Response:
    """Our own errors, each with what to do next."""
    assert isinstance(error, CrabpotError)
    later = {"Retry-After": str(round(error.retry_after)) if error.retry_after else _RETRY_AFTER}
    kind = type(error).__name__
    match error:
        case InputInvalid():
            status = 403 if isinstance(error, PolicyDenied) else 400
            found = [{"path": item.path, "given": item.given, "allowed": item.allowed} for item in error.problems]
            return problem(status, kind, str(error), problems=found)
        case NotFound():
            return problem(404, kind, str(error))
        case Conflict():
            return problem(409, kind, str(error))
        case QueueFull():
            return problem(429, kind, str(error), headers=later)
        case LedgerUnavailable() | LedgerFull() | LedgerUnfit():
            return problem(503, kind, str(error), headers=later)
    log.error("request_failed", error=str(error), kind=kind)
    return problem(500, kind, str(error))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail if error.status_code not in (404, 405) else f"{request.method} {request.url.path} is not part of the API"
    return problem(error.status_code, HTTPStatus(error.status_code).phrase, detail)


async def _broken(request: Request, error: Exception) -> Response:
    """What nobody foresaw: told as a fault of ours, with its trace in the log."""
    log.error("request_broken", method=request.method, path=request.url.path, exc_info=error)
    return problem(500, "Internal Server Error", "crabpot has a fault here; the server's log tells which (event request_broken)")


class _Gate:
    """Who may: off loopback, or where a token is set, its bearer; on loopback whoever names this host, so that no web page can
    reach the API by a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, settings: Settings, *, anyone: bool) -> None:
        self._app, self._token, self._anyone = app, settings.api_token, anyone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, start, status = Request(scope), time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(request)
            await (refusal or self._app)(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            health.REQUESTS.labels(scope["method"], route, str(status)).observe(seconds)
            log.debug("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))

    def _refusal(self, request: Request) -> Response | None:
        if self._anyone or request.url.path.startswith(_OPEN):
            return None
        if self._token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._token.encode()):
                return None
            return problem(
                401,
                "Unauthorized",
                "send the token of CRABPOT_API_TOKEN as `Authorization: Bearer …`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name in _LOOPBACK:
            return None
        return problem(
            403, "Forbidden", "without a token this server answers to loopback names only; set CRABPOT_API_TOKEN to reach it by another"
        )
