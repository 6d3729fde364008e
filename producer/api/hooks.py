"""/webhooks/github: a signed push becomes builds, once."""

from __future__ import annotations

import os
from time import monotonic

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ledger.projects import Projects, ProjectSettings
from ledger.quantities import parse_memory
from ledger.store import Ledger
from ledger.submission import Push, Seen, draft
from producer.api.body import read_capped
from producer.submit import submit_drafts
from producer.webhooks import Ignored
from producer.webhooks.github import read_body, read_push, repository_of, signature_holds

log = structlog.get_logger()
_NOBODY = b"a secret that nobody has"
"""Checked against for repositories that are not known, so that they take as long and answer alike."""
_PROJECTS_TTL = 2.0


async def github(request: Request) -> Response:
    """202 with the builds; 200 where nothing is to be built and why; 401 for a bad signature or an unknown repository."""
    ledger: Ledger = request.app.state.ledger
    body = await read_capped(request, parse_memory(request.app.state.settings.webhook_body_limit))
    payload = read_body(request.headers, body)
    found = (await _projects(request)).by_forge_name(repository_of(payload))
    secret = _secret(*found) if found else None
    if not signature_holds(request.headers, body, secret or _NOBODY) or not secret or not found:
        log.warning("webhook_refused", repository=repository_of(payload)[:100], known=found is not None)
        detail = "the signature does not match; set the same secret in the forge's webhook and in the projects file's webhook_secret"
        return JSONResponse({"title": "Unauthorized", "status": 401, "detail": detail}, 401, media_type="application/problem+json")
    pushed = read_push(request.headers, payload)
    name, project = found
    if isinstance(pushed, Ignored):
        if pushed.deleted_ref:
            await ledger.forget_ref(name, pushed.deleted_ref)
        return JSONResponse({"ignored": pushed.why})
    drafts = [draft(wanted) for wanted in project.requests(name, pushed.ref, pushed.commit)]
    if not drafts:
        return JSONResponse({"ignored": f"no rule of project {name} matches {pushed.ref}"})
    taken = await submit_drafts(ledger, drafts, Push(pushed.delivery, pushed.ref, pushed.commit))
    if isinstance(taken, Seen):
        return JSONResponse({"ignored": taken.why})
    log.info("webhook_accepted", project=name, ref=pushed.ref, commit=pushed.commit, builds=[build.id for build in taken])
    return JSONResponse({"builds": [build.id for build in taken]}, 202)


async def _projects(request: Request) -> Projects:
    """The projects as the ledger has them, read anew every few seconds."""
    state = request.app.state
    if monotonic() > getattr(state, "projects_until", 0.0):
        state.projects = Projects(projects=await state.ledger.projects())
        state.projects_until = monotonic() + _PROJECTS_TTL
    projects: Projects = state.projects
    return projects


def _secret(name: str, project: ProjectSettings) -> bytes | None:
    """The project's webhook secret, from where the projects file says. None, and a line in the log, where it is not there."""
    source = project.webhook_secret
    if source is None:
        log.error("webhook_secret_missing", project=name, mend="set webhook_secret in the projects file")
        return None
    try:
        text = os.environ.get(source.env, "") if source.env else (source.file.read_text().strip() if source.file else "")
    except OSError as error:
        log.error("webhook_secret_unreadable", project=name, error=str(error))
        return None
    if not text:
        log.error("webhook_secret_missing", project=name, variable=source.env, file=str(source.file))
    return text.encode() or None
