"""/v1/registry/pins: images that stay whatever a retention policy says. No registry is asked: what is not there yet is pinned as well."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.errors import NotFound, Problem, RequestInvalid
from ledger.fields import Frozen
from ledger.references import parse_mark
from ledger.request import problems_of
from ledger.store import Ledger
from producer.api.body import read_capped

_BODY_LIMIT = 16 * 1024


class _Given(Frozen):
    reason: Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")]
    by: Annotated[str, Field(min_length=1, max_length=200)] = "REST"


_GIVEN = TypeAdapter(_Given)


async def page(request: Request) -> Response:
    """GET /v1/registry/pins: every pin, by what it pins."""
    return JSONResponse({"pins": [pin.told() for pin in await _ledger(request).shelf.pinned()]})


async def pin(request: Request) -> Response:
    """PUT /v1/registry/pins/{image} `{"reason": …, "by": …}`: keep it. What is pinned already gets this reason."""
    mark = _mark(request)
    try:
        given = _GIVEN.validate_json(await read_capped(request, _BODY_LIMIT))
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    made = await _ledger(request).shelf.pin(mark, given.reason.strip(), image=request.path_params["image"], by=given.by)
    return JSONResponse(made.told())


async def unpin(request: Request) -> Response:
    """DELETE /v1/registry/pins/{image}: let policies decide about it again."""
    mark = _mark(request)
    if not await _ledger(request).shelf.unpin(mark):
        raise NotFound(f"{mark} is not pinned; GET /v1/registry/pins lists what is")
    return Response(status_code=204)


def _mark(request: Request) -> str:
    image = request.path_params["image"]
    try:
        return parse_mark(image)
    except ValueError as error:
        raise RequestInvalid([Problem("image", repr(image)[:120], str(error))]) from None


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
