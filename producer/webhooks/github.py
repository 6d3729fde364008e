"""GitHub's push webhook, which Gitea and Forgejo send too: JSON, signed with HMAC-SHA256 over the raw body.

Read in two steps: `repository_of` finds whose secret to check with, `read_push` believes the rest once the signature holds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from ledger.errors import Problem, WebhookInvalid
from ledger.references import parse_commit, parse_git_ref
from producer.webhooks import Ignored, PushEvent

_DELIVERIES = ("x-github-delivery", "x-gitea-delivery", "x-forgejo-delivery")
_EVENTS = ("x-github-event", "x-gitea-event", "x-forgejo-event")


def read_body(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The JSON object of the request. WebhookInvalid."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _bad("Content-Type", kind or "nothing", "set the webhook's content type to application/json")
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad("body", f"{len(body)} bytes", "must be JSON") from None
    if not isinstance(payload, dict):
        raise _bad("body", type(payload).__name__, "must be a JSON object")
    return payload


def repository_of(payload: Mapping[str, Any]) -> str:
    """The repository's full name, by which the project is found. WebhookInvalid."""
    repository = payload.get("repository")
    name = repository.get("full_name") if isinstance(repository, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        raise _bad("repository.full_name", "no name", "must be the repository's full name, owner/name")
    return name


def signature_holds(headers: Mapping[str, str], body: bytes, secret: bytes) -> bool:
    """Whether the body was signed with the secret; compared in constant time."""
    scheme, _, given = headers.get("x-hub-signature-256", "").partition("=")
    expected = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), given.strip().lower().encode()) and scheme == "sha256"


def read_push(headers: Mapping[str, str], payload: Mapping[str, Any]) -> PushEvent | Ignored:
    """What was pushed. WebhookInvalid names the field that is wrong."""
    event = next((headers[name] for name in _EVENTS if name in headers), "")
    if event != "push":
        return Ignored("the webhook works" if event == "ping" else f"only push events make builds, not {event[:40] or 'unnamed ones'}")
    delivery = next((headers[name] for name in _DELIVERIES if headers.get(name)), "")
    if not 0 < len(delivery) <= 200 or not delivery.isprintable():
        raise _bad("X-GitHub-Delivery", repr(delivery[:40]), "must be the delivery's id")
    commit = payload.get("after")
    try:
        ref = parse_git_ref(_text("ref", payload.get("ref")))
        if payload.get("deleted") is True or (isinstance(commit, str) and commit and not commit.strip("0")):
            return Ignored("the ref was deleted", deleted_ref=ref)
        return PushEvent(delivery, repository_of(payload), ref, parse_commit(_text("after", commit)))
    except ValueError as error:
        raise WebhookInvalid(str(error)) from None


def _text(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise _bad(name, type(given).__name__, "must be a text")
    return given


def _bad(path: str, given: str, allowed: str) -> WebhookInvalid:
    return WebhookInvalid([Problem(path, given, allowed)])
