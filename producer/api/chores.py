"""/v1/chores: how work on registries stands that was started here and is done by workers."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.chores import Chore
from ledger.store import Ledger


async def show(request: Request) -> Response:
    """GET /v1/chores/{chore}: its state, and what it said last. 404 where there is none, or it ended 30 days ago."""
    return JSONResponse(told_of(await _ledger(request).chores.read(request.path_params["chore"])))


def started(chore: Chore, *, new: bool) -> Response:
    """A chore that was asked for, and where to look for its end: 202; 200 where it was under way already."""
    return JSONResponse(told_of(chore), 202 if new else 200, headers={"Location": f"/v1/chores/{chore.name}"})


def told_of(chore: Chore) -> dict[str, Any]:
    """A chore as REST tells of it: JSON."""
    return {
        "chore": chore.name,
        "registry": chore.registry,
        "state": chore.state.value,
        "said": chore.said,
        "created": chore.created.isoformat(),
        "updated": chore.updated.isoformat(),
    }


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
