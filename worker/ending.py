"""Writing the end of an attempt: what each platform came to, the slots back, and the next state, in one ledger call."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ledger.build import Attempt, Build, PlatformRun, Reason, ReasonClass, State
from ledger.deadlines import allowance
from ledger.events import EventType, event
from ledger.leases import Fence
from ledger.redaction import clean
from worker.cluster import Pod
from worker.outcome import Outcome
from worker.place import Place
from worker.retries import next_try

_RECOVERABLE = frozenset({Reason.POD_LOST, Reason.NODE_LOST, Reason.EVICTED})
"""The attempt may have pushed before it was lost: the registry is asked before it is tried again."""
_UNPUBLISHED: dict[str, Any] = {"publish_tries": 0, "misses": 0, "claimed": False, "moving_tags": False, "doubtful": False}
"""What the record says of publishing, before it begins."""
_FINISH_AGAIN = timedelta(seconds=15)
"""When `finish` is nudged again if nothing came of the first nudge."""


async def end_attempt(
    place: Place,
    build: Build,
    outcomes: Mapping[str, Outcome],
    *,
    pods: Mapping[str, Pod] | None = None,
    log_tail: tuple[str, ...] = (),
    retry_after: float | None = None,
    fence: Fence | None = None,
) -> Build:
    """Record the end of the current attempt. VersionConflict and TooLate mean that somebody else did.

    `outcomes` and `pods` go by platform. The next state: cancelled where that was asked for; publishing after a success (succeeded
    where nothing is pushed) and after a loss that the registry may know more of; else queued again or failed, by the reason's class.
    """
    attempt = _written(build.current, outcomes, pods or {}, log_tail, await place.ledger.now())
    attempt = attempt.model_copy(update={"memory": await place.memory_of(build)})
    worst = next((outcome for outcome in outcomes.values() if outcome.reason), None)
    digest = next((outcome.digest for outcome in outcomes.values() if outcome.digest), None)
    record = build.model_copy(update={"attempts": build.with_attempt(attempt)})
    changes: dict[str, Any] = {"attempts": record.attempts}
    if build.cancel_requested:
        return await cancel(place, record, "cancelled while it ran", fence, **changes)
    if worst is not None and worst.reason is Reason.SUPERSEDED:
        return await supersede(place, record, fence, **changes)
    if worst is None:
        changes |= {"digest": digest, "reason": None, "message": None, **_UNPUBLISHED}
        if not build.request.push:
            return await finalize(place, record, State.SUCCEEDED, fence, **changes)
        return await place.ledger.transition(build, State.PUBLISHING, due=_FINISH_AGAIN, fence=fence, **changes)
    reason = worst.reason
    assert reason is not None
    changes |= {"reason": reason, "message": clean(worst.message or str(reason))}
    if reason in _RECOVERABLE and build.request.push:
        return await place.ledger.transition(build, State.PUBLISHING, due=_FINISH_AGAIN, fence=fence, **changes, **_UNPUBLISHED)
    return await try_again(place, record, reason, changes, retry_after=retry_after, fence=fence)


async def try_again(
    place: Place, build: Build, reason: Reason, changes: dict[str, Any], *, retry_after: float | None = None, fence: Fence | None = None
) -> Build:
    """Back to the queue, or failed, by the reason's class and what it was tried before. `build` has the ended attempt in it."""
    again = next_try(build, reason, memory=await place.memory_of(build), retry_after=retry_after, spread=random.uniform)
    if again is None:
        return await finalize(place, build, State.FAILED, fence, **changes)
    if build.superseded_by:
        return await supersede(place, build, fence, **changes)
    without_room = reason.reason_class is ReasonClass.NO_ROOM
    if without_room:
        # Many of these in a row say no more than the last one and their number.
        attempts = tuple(attempt for attempt in build.attempts if attempt.number == build.attempt or not _without_room(attempt))
        changes = {**changes, "attempts": attempts}
    changes |= {"no_room": build.no_room + 1 if without_room else 0, **_UNPUBLISHED}
    project = await place.project(build.project)
    due = allowance(State.QUEUED, build.request.deadlines, project.deadlines)
    changes |= {"started": None, "digest": None}
    told = build.model_copy(update={**changes, "state": State.QUEUED})
    events = [] if without_room else [event(EventType.RETRIED, told)]
    return await place.ledger.transition(build, State.QUEUED, due=due, again=again, events=events, fence=fence, **changes)


async def cancel(place: Place, build: Build, message: str, fence: Fence | None, **changes: Any) -> Build:
    """The end of a build that somebody asked to end."""
    return await finalize(place, build, State.CANCELLED, fence, **{**changes, "reason": Reason.CANCELLED, "message": message})


async def supersede(place: Place, build: Build, fence: Fence | None, **changes: Any) -> Build:
    """The end of a build that a newer push has made needless."""
    told = {**changes, "reason": Reason.SUPERSEDED, "message": superseded(build)}
    return await finalize(place, build, State.SUPERSEDED, fence, **told)


def superseded(build: Build) -> str:
    """Why, for people."""
    return f"build {build.superseded_by} is of a newer push of the same image"


async def finalize(place: Place, build: Build, state: State, fence: Fence | None, **changes: Any) -> Build:
    told = build.model_copy(update={**changes, "state": state})
    kind = {State.CANCELLED: EventType.CANCELLED, State.SUPERSEDED: EventType.SUPERSEDED}.get(state)
    events = [event(kind, told)] if kind else []
    return await place.ledger.transition(build, state, due=None, events=[*events, event(EventType.FINISHED, told)], fence=fence, **changes)


def _without_room(attempt: Attempt) -> bool:
    return any(run.reason and run.reason.reason_class is ReasonClass.NO_ROOM for run in attempt.runs)


def _written(
    attempt: Attempt, outcomes: Mapping[str, Outcome], pods: Mapping[str, Pod], log_tail: tuple[str, ...], now: datetime
) -> Attempt:
    runs = (_run(run, outcomes.get(run.platform), pods.get(run.platform), log_tail, now) for run in attempt.runs)
    return attempt.model_copy(update={"runs": tuple(runs)})


def _run(run: PlatformRun, outcome: Outcome | None, pod: Pod | None, log_tail: tuple[str, ...], now: datetime) -> PlatformRun:
    if outcome is None:
        return run
    seen = {"uid": pod.uid, "node": pod.node, "started": pod.started} if pod else {}
    return run.model_copy(
        update={
            **seen,
            "reason": outcome.reason,
            "message": clean(outcome.message) if outcome.reason and outcome.message else None,
            "exit_code": outcome.exit_code,
            "digest": outcome.digest,
            "log_tail": log_tail if outcome.reason else (),
            "ended": (pod and pod.ended) or now,
        }
    )
