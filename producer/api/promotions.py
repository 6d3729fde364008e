"""/v1/promotions: promote an image, show a promotion, list them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.promotion import Promotion, PromotionRequest
from ledger.store import Ledger
from producer.api.body import read_capped
from producer.promote import promote

_BODY_LIMIT = 64 * 1024


async def create(request: Request) -> Response:
    """POST /v1/promotions: 201 with the record; 200 with the first promotion where the idempotency key was used before."""
    given = PromotionRequest.parse(await read_capped(request, _BODY_LIMIT))
    promotion, new = await promote(_ledger(request), given, idempotency_key=request.headers.get("idempotency-key"))
    return JSONResponse(_told(promotion), 201 if new else 200, headers={"Location": f"/v1/promotions/{promotion.id}"})


async def show(request: Request) -> Response:
    """GET /v1/promotions/{id}: the record."""
    return JSONResponse(_told(await _ledger(request).promotions.read(request.path_params["promotion"])))


async def page(request: Request) -> Response:
    """GET /v1/promotions: those under way, then the newest that have ended."""
    return JSONResponse({"promotions": [_told(promotion) for promotion in await _ledger(request).promotions.all()]})


def _told(promotion: Promotion) -> dict[str, Any]:
    """The record as JSON, without what is not there."""
    return promotion.model_dump(mode="json", exclude_none=True)


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
