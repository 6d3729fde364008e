"""/v1/builds: submit, list, show, follow, read logs, cancel."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ledger.build import Build, State
from ledger.errors import NotFound
from ledger.logbook import Line
from ledger.request import BuildRequest
from ledger.store import Ledger
from producer.api.body import read_capped
from producer.api.queries import LogsQuery, PageQuery, ShowQuery
from producer.cancel import cancel_build
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

    async def changes() -> AsyncIterator[str]:
        async with ledger.changes(build, query.timeout) as records:
            async for change in records:
                yield json.dumps(told(await explained(ledger, change))) + "\n"

    return StreamingResponse(changes(), media_type="application/x-ndjson")


async def logs(request: Request) -> Response:
    """GET /v1/builds/{id}/logs?attempt=&follow=1&timestamps=1: the log as text; followed, until the build has ended."""
    ledger, query = _ledger(request), LogsQuery.of(request)
    record = await ledger.read(request.path_params["build"])
    if query.attempt is not None and query.attempt > max(record.attempt, 1):
        raise NotFound(f"build {record.id} has no attempt {query.attempt}; it has {record.attempt}")
    lines = _followed(ledger, record, query.attempt) if query.follow else _stored(ledger, record, query.attempt or record.attempt)

    async def text() -> AsyncIterator[str]:
        async for batch in lines:
            if batch:
                yield "".join(
                    f"{line.time.isoformat(timespec='milliseconds')} {line.text}\n" if query.timestamps else f"{line.text}\n"
                    for line in batch
                )

    return StreamingResponse(text(), media_type="text/plain; charset=utf-8")


async def cancel(request: Request) -> Response:
    """POST /v1/builds/{id}/cancel: 200 with the record; 409 where it is too late."""
    return JSONResponse(told(await cancel_build(_ledger(request), request.path_params["build"])))


async def explained(ledger: Ledger, build: Build) -> Build:
    """A queued build with why it waits and its place."""
    if build.state is not State.QUEUED:
        return build
    waiting = await ledger.waiting(build)
    return build.model_copy(update={"waits_for": waiting.say(build.not_before), "position": waiting.position})


def told(build: Build) -> dict[str, Any]:
    """The record as JSON, without what is not there."""
    return build.model_dump(mode="json", exclude_none=True)


async def _stored(ledger: Ledger, build: Build, attempt: int) -> AsyncIterator[list[Line]]:
    place = "0-0"
    while True:
        lines, place, complete = await ledger.logs.read(build.id, attempt, place)
        yield lines
        if complete or not lines:
            return


async def _followed(ledger: Ledger, build: Build, only: int | None) -> AsyncIterator[list[Line]]:
    """The attempts' logs one after another as they come: a build that is tried again goes on being followed."""
    attempt, place = only or max(build.attempt, 1), "0-0"
    while True:
        lines, place, complete = await ledger.logs.read(build.id, attempt, place, block=1.0)
        yield lines
        if lines and not complete:
            continue
        build = await ledger.read(build.id)
        over = build.state.final or build.attempt > attempt
        if complete or (over and await _silent(ledger, build, attempt, place)):
            if only is not None or (build.state.final and build.attempt <= attempt):
                return
            if build.attempt > attempt:
                attempt, place = attempt + 1, "0-0"


async def _silent(ledger: Ledger, build: Build, attempt: int, place: str) -> bool:
    """Whether an ended attempt's log stays without an end: it never ran, or its log was dropped."""
    last, _ = await ledger.logs.last_time(build.id, attempt)
    return last is None or not (await ledger.logs.read(build.id, attempt, place, block=5.0))[0]


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    return ledger
