"""Promoting an image: the request is checked against the target's project, and taken in. The copying is the workers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.policy import check_promotion
from ledger.promotion import Promotion, PromotionRequest
from ledger.store import Ledger


async def promote(
    ledger: Ledger, given: PromotionRequest | Mapping[str, Any], *, idempotency_key: str | None = None
) -> tuple[Promotion, bool]:
    """Take a promotion in: its record, and whether it is new (with an `idempotency_key`, a repeat gives the first).

    RequestInvalid names each bad field; PolicyDenied what the project does not allow; NotFound an unknown project; Conflict a key that
    was used for something else; LedgerUnavailable: try again.
    """
    request = given if isinstance(given, PromotionRequest) else PromotionRequest.parse(given)
    project = await ledger.project(request.project)
    check_promotion(request, project.allowed)
    return await ledger.promotions.accept(request, idempotency_key)
