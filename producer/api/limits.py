"""/v1/limits and /v1/pauses: what holds admission back, and changing it."""

from __future__ import annotations

from typing import Any

from pydantic import StrictInt, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.errors import RequestInvalid
from ledger.fields import Frozen
from ledger.limits import Limit, Limits, Scope
from ledger.request import problems_of
from producer.api.body import read_capped

_BODY_LIMIT = 1024


class _Given(Frozen):
    limit: StrictInt


_GIVEN = TypeAdapter(_Given)


async def show(request: Request) -> Response:
    """GET /v1/limits: every scope that is limited or paused, and every project and class; and the registries that are held."""
    return await _answer(request)


async def set_limit(request: Request) -> Response:
    """PUT /v1/limits/{scope} `{"limit": 5}`: limit a scope by hand."""
    try:
        given = _GIVEN.validate_json(await read_capped(request, _BODY_LIMIT))
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    await _limits(request).set(_scope(request), given.limit)
    return await _answer(request)


async def give_back(request: Request) -> Response:
    """DELETE /v1/limits/{scope}: let the projects file's limit hold again."""
    await _limits(request).give_back(_scope(request))
    return await _answer(request)


async def pause(request: Request) -> Response:
    """PUT /v1/pauses/{scope}: admit nothing of it."""
    await _limits(request).pause(_scope(request))
    return await _answer(request)


async def resume(request: Request) -> Response:
    """DELETE /v1/pauses/{scope}: go on admitting."""
    await _limits(request).resume(_scope(request))
    return await _answer(request)


async def _answer(request: Request) -> Response:
    holds = await request.app.state.ledger.holds.all()
    told = [{"registry": hold.registry, "since": hold.since.isoformat(), "until": hold.until.isoformat(), "by": hold.by} for hold in holds]
    return JSONResponse({"limits": [_told(limit) for limit in await _limits(request).all()], "holds": told})


def _told(limit: Limit) -> dict[str, Any]:
    paused = limit.paused.isoformat() if limit.paused else None
    return {
        "scope": str(limit.scope),
        "limit": limit.limit,
        "file": limit.filed,
        "by_hand": limit.by_hand,
        "taken": limit.taken,
        "paused": paused,
    }


def _scope(request: Request) -> Scope:
    return Scope.parse(request.path_params["scope"])


def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.ledger.limits
    return limits
