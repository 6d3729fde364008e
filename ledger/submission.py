"""Submitting builds, said without a connection, so that the sync and the async producer send the very same call.

Policy is checked in the producer against the project as stored in the ledger. The copy is kept; the Lua refuses when it is out of
date and sends the current one along, so that a submit is one round trip except after a change of policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uuid_utils import uuid7

from ledger.build import Build, State, moment
from ledger.deadlines import allowance
from ledger.errors import LedgerFull, NotFound, Problem, QueueFull, RequestInvalid
from ledger.events import queued
from ledger.policy import Policy, check
from ledger.projects import ProjectSettings
from ledger.request import BuildRequest

KEY_SECONDS = 7 * 86400
"""How long an idempotency key is remembered."""
DELIVERY_SECONDS = 3 * 86400
"""How long a webhook's delivery id is remembered."""


@dataclass(frozen=True, slots=True)
class Push:
    """A forge's delivery that the builds come from: dropped as a whole when it was seen before."""

    delivery: str
    ref: str
    commit: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A build as it is about to be submitted."""

    id: str
    request: BuildRequest
    key: str = ""
    order: int | None = None
    """The sequence of the push that it repeats, so that its mutable tags do not go before those of newer pushes; None: a push of its own."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The push was taken in before: the same delivery, or the same commit as the last accepted one of its ref."""

    why: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A project as it was last read."""

    version: str
    settings: ProjectSettings
    allowed: Policy


# Copied for every build taken in: validating a record that is known to be valid would be a third of a submit's time.
_BLANK = Build.model_validate(
    {
        "id": "",
        "request": {"project": "x", "source": {"kind": "config_map", "config_map": "x"}, "destinations": ["localhost/x:1"]},
        "created": 0,
        "updated": 0,
    }
)


class Stale(Exception):
    """The caller's copy of the project was out of date; it is current now: send the call again."""


class Submission:
    """Drafts, the arguments of `submit.lua`, and what its answer means; keeps the projects' policies between calls."""

    def __init__(self, event_stream_length: int) -> None:
        self._length = event_stream_length
        self._projects: dict[str, _Known] = {}

    def arguments(self, project: str, drafts: Sequence[Draft], push: Push | None = None) -> list[str | int]:
        """Check the drafts against the project's policy and give the script's arguments. PolicyDenied."""
        known = self._projects.get(project)
        version = known.version if known else ""
        head: list[str | int] = [project, version, self._length]
        origin: list[str | int] = [push.delivery, DELIVERY_SECONDS, push.ref, push.commit] if push else ["", 0, "", ""]
        most = known.settings.max_queued if known else None
        namespace = known.settings.namespace if known else None
        rows: list[str | int] = [*head, *origin, "" if most is None else most, namespace or ""]
        # A tag's build, or one asked for by hand, is never superseded.
        supersedes = push is not None and push.ref.startswith("refs/heads/") and known is not None and known.settings.supersede != "never"
        for draft in drafts if known else ():
            assert known is not None
            request = draft.request
            check(request, known.allowed, known.settings.repository)
            deadline = allowance(State.QUEUED, request.deadlines, known.settings.deadlines)
            rows += (
                draft.id, draft.key, KEY_SECONDS, request.to_json(), ",".join(request.platforms), request.capacity_class,
                request.lane, request.priority, int(deadline.total_seconds() * 1000),
                request.images[0].name if supersedes and request.images else "", "" if draft.order is None else draft.order,
                queued(draft.id, request),
            )  # fmt: skip
        return rows

    def result(self, answer: Any, project: str, drafts: Sequence[Draft]) -> list[Build] | Seen:
        """The builds as taken in; a draft whose key was used before gives a build with the first one's id and version 0: read it.

        Stale: the policy is fetched now; send the call again. NotFound: no such project.
        """
        match answer[0]:
            case b"policy":
                if answer[1] is None:
                    self._projects.pop(project, None)
                    raise NotFound(
                        f"there is no project {project!r}; add it to the projects file and restart `crabpot serve` or `crabpot watch`"
                    )
                settings = ProjectSettings.model_validate_json(answer[2])
                self._projects[project] = _Known(answer[1].decode(), settings, settings.allowed)
                raise Stale
            case b"long":
                raise QueueFull(
                    f"{answer[1]} builds of project {project!r} wait already, which is its max_queued; try again when some have been admitted",
                    retry_after=30.0,
                )
            case b"full":
                raise LedgerFull(
                    "Redis is nearly out of memory, so no new build is taken in, and what runs can end; raise maxmemory, or wait until"
                    " builds have finished and expired",
                    retry_after=30.0,
                )
            case b"delivery":
                return Seen("this delivery was taken in before")
            case b"repeat":
                return Seen("this commit is the last one accepted for its ref")
        now = moment(answer[1])
        taken = []
        for draft, (build, sequence, position, new) in zip(drafts, answer[2:], strict=True):
            changes = {"id": build.decode(), "request": draft.request, "sequence": sequence, "position": position, "version": int(new)}
            taken.append(_BLANK.model_copy(update={**changes, "created": now, "updated": now}))
        return taken


def draft(request: BuildRequest, key: str | None = None, *, order: int | None = None) -> Draft:
    """A new build for a request, with its id. `order`: see `Draft`."""
    if key is not None and not (0 < len(key) <= 200 and key.isprintable()):
        raise RequestInvalid([Problem("idempotency_key", repr(key)[:80], "must be 1 to 200 printable characters")])
    return Draft(str(uuid7()), request, key or "", order)
