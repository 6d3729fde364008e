"""/v1/retention and /v1/clusters: stored plans, approving and undoing them, and clusters that report what they run."""

from __future__ import annotations

import json
import os
import secrets
from typing import Annotated

import structlog
from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.errors import Problem, RequestInvalid
from ledger.fields import Frozen, Image, RegistryHost
from ledger.references import ImageReference
from ledger.request import problems_of
from ledger.site import SecretSource
from ledger.store import Ledger
from producer.api.body import read_capped
from producer.api.chores import started

log = structlog.get_logger()
_BODY_LIMIT = 64 * 1024
_REPORT_LIMIT = 8 * 1024 * 1024


class _Approval(Frozen):
    by: Annotated[str, Field(min_length=1, max_length=200)] = "REST"
    despite: tuple[str, ...] = ()


class _Planned(Frozen):
    registry: RegistryHost


class _Report(Frozen):
    images: dict[Image, str]
    """Each image that runs, as `registry/repository@sha256:…` or with a tag -> who runs it."""


_APPROVAL, _PLANNED, _REPORT = TypeAdapter(_Approval), TypeAdapter(_Planned), TypeAdapter(_Report)


async def plans(request: Request) -> Response:
    """GET /v1/retention/plans: newest first."""
    return JSONResponse({"plans": [plan.told() for plan in await _ledger(request).plans.all()]})


async def create(request: Request) -> Response:
    """POST /v1/retention/plans `{"registry": HOST}`: a worker makes a plan; its chore, once done, has said the plan's hash."""
    try:
        given = _PLANNED.validate_json(await read_capped(request, _BODY_LIMIT))
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    ledger, name = _ledger(request), f"plan:{given.registry}"
    new = await ledger.chores.start(name, given.registry)
    return started(await ledger.chores.read(name), new=new)


async def show(request: Request) -> Response:
    """GET /v1/retention/plans/{plan}: with its decisions, and what became of each."""
    ledger = _ledger(request)
    found = await ledger.plans.find(request.path_params["plan"])
    decided = json.loads(await ledger.plans.text(found.sha256))
    return JSONResponse({**found.told(), "decided": decided, "report": await ledger.plans.report(found.sha256)})


async def approve(request: Request) -> Response:
    """POST /v1/retention/plans/{plan}/approve: a worker applies it."""
    try:
        given = _APPROVAL.validate_json(await read_capped(request, _BODY_LIMIT) or b"{}")
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    ledger = _ledger(request)
    (await ledger.site()).require_clusters(given.despite)
    found = await ledger.plans.find(request.path_params["plan"])
    await ledger.plans.approve(found.sha256, given.by, await ledger.now(), given.despite)
    return JSONResponse((await ledger.plans.read(found.sha256)).told(), 202)


async def undo(request: Request) -> Response:
    """POST /v1/retention/plans/{plan}/undo: a worker puts back what the bin still has."""
    ledger = _ledger(request)
    found = await ledger.plans.find(request.path_params["plan"])
    await ledger.plans.undo(found)
    return JSONResponse(found.told(), 202)


async def report_images(request: Request) -> Response:
    """PUT /v1/clusters/{cluster}/images: everything that a cluster runs now. With the cluster's own token, which is good for nothing else."""
    name, ledger = request.path_params["cluster"], _ledger(request)
    cluster = (await ledger.site()).clusters.get(name)
    token = _secret(name, cluster.token) if cluster and cluster.token else None
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if token is None or scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), token):
        # The same to everybody: only who knows the token may learn which clusters there are, and how they are asked.
        detail = (
            f"send the token that the projects file names for the cluster under clusters.{name[:63]}.token; a cluster without one there, "
            "as one that workers ask by its kubeconfig, takes no reports"
        )
        return JSONResponse({"title": "Unauthorized", "status": 401, "detail": detail}, 401, media_type="application/problem+json")
    try:
        told = _REPORT.validate_json(await read_capped(request, _REPORT_LIMIT))
    except ValidationError as error:
        raise RequestInvalid(problems_of(error)) from None
    images = {ImageReference.parse(image): who for image, who in told.images.items()}
    if untold := [str(image) for image in images if not (image.tag or image.digest)]:
        raise RequestInvalid([Problem("images", untold[0][:200], "must have a tag or a digest")])
    marks = {image.mark: who for image, who in images.items()}
    await ledger.usage.store(name, marks, await ledger.now())
    return Response(status_code=204)


def _secret(name: str, source: SecretSource) -> bytes | None:
    try:
        text = os.environ.get(source.env, "") if source.env else (source.file.read_text().strip() if source.file else "")
    except OSError as error:
        log.error("cluster_token_unreadable", cluster=name, error=str(error))
        return None
    return text.encode() or None


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
