"""/v1/retention/adoptions: learning a registry that was there before crabpot. Workers do it, each as a chore."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import Response

from ledger.adoption import chore_of, read_json, read_times, start
from ledger.errors import InputInvalid, RequestInvalid
from ledger.fields import Frozen, RegistryHost, checked
from ledger.references import parse_target
from ledger.request import problems_of
from ledger.store import Ledger
from producer.api.body import read_capped
from producer.api.chores import started

_BODY_LIMIT = 8 * 1024 * 1024
"""Bytes: times of some hundred thousand tags."""


def _repository(text: str) -> None:
    if "/" not in text:
        raise ValueError("must be a repository with its registry, as registry.example.com/team/app")
    parse_target(text)


class _Asked(Frozen):
    registry: RegistryHost | None = None
    repository: Annotated[str, checked(_repository)] | None = None
    times: Annotated[dict[str, Any], Field(default_factory=dict)]
    """When tags were pushed, as in the file of `crabpot registry adopt --times`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.registry is None) == (self.repository is None):
            raise ValueError("registry: name either registry (all of it) or repository")
        return self

    @property
    def target(self) -> str:
        return parse_target(self.registry or self.repository or "")


_ASKED = TypeAdapter(_Asked)


async def create(request: Request) -> Response:
    """POST /v1/retention/adoptions `{"registry": HOST, "times": {…}}` (or `"repository"`). 409: one is under way, and there are times."""
    ledger: Ledger = request.app.state.ledger
    try:
        given = _ASKED.validate_python(read_json(await read_capped(request, _BODY_LIMIT), "the body"))
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    try:
        times = read_times(given.times, given.target, await ledger.now())
    except InputInvalid as error:
        raise RequestInvalid([replace(problem, path=f"times.{problem.path}") for problem in error.problems]) from None
    new = await start(ledger, given.target, times)
    return started(await ledger.chores.read(chore_of(given.target)), new=new)
