"""/v1/collections: collections of garbage, started here and done by workers."""

from __future__ import annotations

from typing import Literal

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.collected import CHORES, told_of
from ledger.errors import RequestInvalid
from ledger.fields import Frozen, RegistryHost
from ledger.request import problems_of
from ledger.store import Ledger
from producer.api.body import read_capped

_BODY_LIMIT = 1024


class _Given(Frozen):
    registry: RegistryHost
    kind: Literal["plan", "run"] = "run"


_GIVEN = TypeAdapter(_Given)


async def page(request: Request) -> Response:
    """GET /v1/collections: those under way first, then those that have ended, newest first."""
    found = await _ledger(request).chores.all(*CHORES.values())
    return JSONResponse({"collections": [told_of(chore) for chore in found]})


async def create(request: Request) -> Response:
    """POST /v1/collections `{"registry": HOST, "kind": "plan"}`: 202 with the run; 200 where one is under way already."""
    try:
        given = _GIVEN.validate_json(await read_capped(request, _BODY_LIMIT))
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    ledger = _ledger(request)
    registry = (await ledger.site()).collected(given.registry).registry
    name = f"{CHORES[given.kind]}:{registry}"
    started = await ledger.chores.start(name, registry)
    return JSONResponse(told_of(await ledger.chores.read(name)), 202 if started else 200)


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
