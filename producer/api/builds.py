"""/v1/builds: submit, list, show, follow, read logs, cancel, retry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ledger.build import Build, State
from ledger.errors import NotFound
from ledger.request import BuildRequest
from ledger.store import Ledger
from producer.api import following
from producer.api.body import read_capped
from producer.api.queries import LogsQuery, PageQuery, ShowQuery
from producer.cancel import cancel_build
from producer.retry import retry_build
from producer.submit import submit_build_async

REQUEST_LIMIT = 1 << 20
"""Bytes of a build request."""


async def create(request: Request) -> Response:
    """POST /v1/builds: 201 with the record; 200 with the first build where the idempotency key was used before."""
    body = await read_capped(request, REQUEST_LIMIT)
    given = BuildRequest.parse(body)
    key = request.headers.get("idempotency-key")
    build = await submit_build_async(given, idempotency_key=key, ledger=_ledger(request))
    new = build.version == 1 and build.position is not None
    return JSONResponse(told(build), 201 if new else 200, headers={"Location": f"/v1/builds/{build.id}"})


async def page(request: Request) -> Response:
    """GET /v1/builds?project=&state=&cursor=&limit=: newest first."""
    query = PageQuery.of(request)
    cursor = str(query.cursor) if query.cursor else None
    found = await _ledger(request).page(project=query.project, state=query.state, cursor=cursor, limit=query.limit)
    return JSONResponse({"builds": [told(build) for build in found.builds], "cursor": found.cursor})


async def show(request: Request) -> Response:
    """GET /v1/builds/{id}: the record; with ?follow=1 a line of JSON now and after every change, until it has ended or ?timeout= is over.

    A line comes every quarter of a minute at least, so that no proxy takes the answer for dead.
    """
    ledger, build, query = _ledger(request), request.path_params["build"], ShowQuery.of(request)
    record = await ledger.read(build)
    if not query.follow:
        return JSONResponse(told(await explained(ledger, record)))

    async def rows() -> AsyncIterator[str]:
        async for change in following.changes(ledger, build, query.timeout):
            yield json.dumps(told(await explained(ledger, change))) + "\n"

    # A follower that gets no final state asks again.
    return StreamingResponse(following.until_broken(rows(), lambda _: ""), media_type="application/x-ndjson")


async def logs(request: Request) -> Response:
    """GET /v1/builds/{id}/logs?attempt=&follow=1&timestamps=1: the log as text; followed, until the build has ended."""
    ledger, query = _ledger(request), LogsQuery.of(request)
    record = await ledger.read(request.path_params["build"])
    if query.attempt is not None and query.attempt > max(record.attempt, 1):
        raise NotFound(f"build {record.id} has no attempt {query.attempt}; it has {record.attempt}")
    if query.follow:
        lines = following.LogFollower(ledger, record, query.attempt).lines()
    else:
        lines = following.stored(ledger, record, query.attempt or record.attempt)

    async def text() -> AsyncIterator[str]:
        async for batch in lines:
            if batch:
                yield "".join(
                    f"{line.time.isoformat(timespec='milliseconds')} {line.text}\n" if query.timestamps else f"{line.text}\n"
                    for line in batch
                )

    broken_off = following.until_broken(text(), lambda error: f"crabpot: the log breaks off here: {error}\n")
    return StreamingResponse(broken_off, media_type="text/plain; charset=utf-8")


async def cancel(request: Request) -> Response:
    """POST /v1/builds/{id}/cancel: 200 with the record; 409 where it is too late."""
    return JSONResponse(told(await cancel_build(_ledger(request), request.path_params["build"])))


async def retry(request: Request) -> Response:
    """POST /v1/builds/{id}/retry: 201 with a new build of the same request; 409 where the first has not ended."""
    build = await retry_build(_ledger(request), request.path_params["build"])
    return JSONResponse(told(build), 201, headers={"Location": f"/v1/builds/{build.id}"})


async def explained(ledger: Ledger, build: Build) -> Build:
    """A queued build with why it waits, its place, and when it may start and end."""
    waiting = await ledger.waiting(build) if build.state is State.QUEUED else None
    if waiting is None:
        return build
    told = {
        "waits_for": waiting.say(build.not_before),
        "position": waiting.position,
        "estimate": waiting.estimate(datetime.now(UTC), build.not_before),
    }
    return build.model_copy(update=told)


def told(build: Build) -> dict[str, Any]:
    """The record as JSON, without what is not there."""
    return build.model_dump(mode="json", exclude_none=True)


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
