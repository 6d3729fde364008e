"""Asking for the adoption of a registry that was there before crabpot, by a command or by REST: what is adopted, and when its tags were pushed as far
as somebody knows. A worker does it (`worker/retention/adoption.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ledger.ages import credible
from ledger.chores import ChoreState
from ledger.errors import Conflict, InputInvalid, NotFound, Problem
from ledger.references import ImageReference
from ledger.store import Ledger

KIND = "adopt"
Times = Mapping[str, Mapping[str, datetime]]
"""Repository -> tag -> when it was pushed."""
_ANEW = {"cursor": ""}
"""The progress of one that begins. One that was stopped would else go on at its place, and times that were told since of what lies before it would
never be looked at.
"""
_NAMED = 20
"""Wrong entries that are told at once."""


def chore_of(target: str) -> str:
    """The chore's name."""
    return f"{KIND}:{target}"


async def start(ledger: Ledger, target: str, times: Times) -> bool:
    """Begin an adoption, and lay down for it what is known of times. False: one is under way, and goes on as it is. Conflict: so it is, and there are
    times, of whose repositories it may have passed some.
    """
    name = chore_of(target)
    passed = Conflict(f"an adoption of {target} is under way, which may have passed what the times are about; tell them again after it")
    if times and await _under_way(ledger, name):
        raise passed
    await ledger.shelf.tell(times)  # before it begins: a worker comes at once
    new = await ledger.chores.start(name, target.partition("/")[0], _ANEW)
    if times and not new:  # somebody else began it since
        raise passed
    return new


async def _under_way(ledger: Ledger, chore: str) -> bool:
    try:
        return (await ledger.chores.read(chore)).state is ChoreState.WAITING
    except NotFound:
        return False


def read_json(raw: bytes, what: str) -> Any:
    """What JSON says. InputInvalid: it is none, or an object of it names something twice, of which only the last would count."""
    problems: list[Problem] = []

    def fields(given: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(name for name, _ in given)
        "".join(counts).encode()  # half a character (a lone surrogate) could not even be repeated to whoever sent it
        problems.extend(Problem(name, "named twice", "say it once") for name, count in counts.items() if count > 1)
        return dict(given)

    try:
        said = json.loads(raw, object_pairs_hook=fields)
    except (ValueError, RecursionError) as error:
        raise InputInvalid(f"{what} is no JSON: {error}") from None
    if problems:
        raise InputInvalid(problems[:_NAMED])
    return said


def read_times(said: Any, target: str, now: datetime) -> Times:
    """What somebody says of times, `{"registry.example.com/team/app:1": "2025-01-01T00:00:00Z"}`. InputInvalid names each entry that is wrong."""
    if not isinstance(said, dict):
        raise InputInvalid('the times must be one object, as {"registry.example.com/team/app:1": "2025-01-01T00:00:00Z"}')
    problems: list[Problem] = []
    found: dict[str, dict[str, datetime]] = {}
    for name, at in said.items():
        try:
            image, time = _tag_of(name, target), _time_of(at, now)
        except ValueError as error:
            problems.append(Problem(name, repr(at)[:60], str(error)))
        else:
            found.setdefault(image.name, {})[image.tag or ""] = time
    if problems:
        raise InputInvalid(problems[:_NAMED])
    return found


def _tag_of(name: str, target: str) -> ImageReference:
    image = ImageReference.parse(name)
    if image.tag is None or image.digest:
        raise ValueError("an entry names a tag, as registry.example.com/team/app:1")
    if target not in (image.registry, image.name):
        raise ValueError(f"it is not of {target}, which is adopted")
    return image


def _time_of(at: Any, now: datetime) -> datetime:
    try:
        time = datetime.fromisoformat(at) if isinstance(at, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError("a time is a date with hours and a time zone, as 2025-01-01T00:00:00Z")
    if credible(time, now) is None:
        raise ValueError("no image was pushed then: it is before March 2013, or yet to come")
    return time
