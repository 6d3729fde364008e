"""What the address of a request may ask for, checked as strictly as its body."""

from __future__ import annotations

from typing import Annotated, Self
from uuid import UUID

from pydantic import Field, ValidationError
from starlette.requests import Request

from ledger.build import State
from ledger.errors import RequestInvalid
from ledger.fields import Frozen
from ledger.request import problems_of


class _Query(Frozen):
    @classmethod
    def of(cls, request: Request) -> Self:
        """The query of a request. RequestInvalid names each bad part, what was given and what is allowed."""
        try:
            return cls.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise RequestInvalid(problems_of(error)) from None


class PageQuery(_Query):
    """GET /v1/builds."""

    project: str | None = None
    state: State | None = None
    cursor: UUID | None = None
    """As the page before gave it."""
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class ShowQuery(_Query):
    """GET /v1/builds/{id}."""

    follow: bool = False
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Seconds after which following ends although the build has not."""


class LogsQuery(_Query):
    """GET /v1/builds/{id}/logs."""

    attempt: Annotated[int, Field(ge=1)] | None = None
    follow: bool = False
    timestamps: bool = False
