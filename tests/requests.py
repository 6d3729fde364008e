"""Requests and records that tests build on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ledger.build import Build, BuildRequest, State

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUILD_ID = "01a20a76-c61e-7703-9dd2-5db96d858f06"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def request_fields(**changes: Any) -> dict[str, Any]:
    """A valid request of project demo, as a mapping."""
    return {
        "project": "demo",
        "source": {"kind": "git", "url": "https://git.example.com/team/demo.git", "ref": "refs/heads/main", "commit": COMMIT},
        "destinations": [f"registry.example.com/team/demo:{COMMIT}"],
        **changes,
    }


def make_request(**changes: Any) -> BuildRequest:
    return BuildRequest.parse(request_fields(**changes))


def make_build(state: State = State.QUEUED, *, request: BuildRequest | None = None, **changes: Any) -> Build:
    return Build(id=BUILD_ID, state=state, request=request or make_request(), created=NOW, updated=NOW).model_copy(update=changes)
