"""The record as Redis holds it, a hash of small fields, and as the code knows it, a `Build`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from ledger.build import Attempt, Build, BuildRequest, Reason, State, milliseconds, moment
from ledger.errors import LedgerError

_ATTEMPTS = TypeAdapter(tuple[Attempt, ...])
_TIMES = frozenset({"created", "updated", "due", "not_before", "admitted", "started", "finished", "cancel_requested"})
_NUMBERS = frozenset({"version", "sequence", "attempt", "publish_tries", "misses", "no_room", "size"})
_FLAGS = frozenset({"claimed", "moving_tags", "doubtful"})
_TEXTS = frozenset({"digest", "message", "namespace", "superseded_by"})
_WRITABLE = frozenset(
    {"attempts", "started", "cancel_requested", "publish_tries", "misses", "no_room", "digest", "size", "reason", "message", *_FLAGS}
)
_BLANK: Build = cast("Any", Build).model_construct(id="", created=moment(0), updated=moment(0))
"""Copied for every record that is read: to construct one takes five times as long."""


def pairs(answer: Any) -> dict[str, str]:
    """A hash in whichever shape it came: a mapping, or a flat list from a script."""
    if isinstance(answer, Mapping):
        return {key.decode(): value.decode() for key, value in answer.items()}
    flat = [word.decode() if isinstance(word, bytes) else str(word) for word in answer]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode(build: str, fields: Mapping[str, str]) -> Build:
    """The record of a build from its hash."""
    known: dict[str, Any] = {"id": build}
    try:
        for name, text in fields.items():
            if name in _TIMES:
                known[name] = moment(text)
            elif name in _NUMBERS:
                known[name] = int(text)
            elif name == "request":
                known[name] = BuildRequest.model_validate_json(text)
            elif name == "attempts":
                known[name] = _ATTEMPTS.validate_json(text)
            elif name == "state":
                known[name] = State(text)
            elif name == "reason":
                known[name] = Reason(text)
            elif name in _FLAGS:
                known[name] = text == "1"
            elif name in _TEXTS:
                known[name] = text
        return _BLANK.model_copy(update=known)
    except (ValidationError, ValueError) as error:
        raise LedgerError(f"the record of build {build} cannot be read by this version of crabpot: {error}") from error


def encode(changes: Mapping[str, Any]) -> list[str]:
    """Changed fields as `field, value, …`; an empty value deletes, as one does that says what an absent field says."""
    flat: list[str] = []
    for name, value in changes.items():
        if name not in _WRITABLE:
            raise LedgerError(f"{name} is not written by a transition")
        flat += (name, _text(name, value))
    return flat


def _text(name: str, value: Any) -> str:
    if value is None or value is False or (value == 0 and name in _NUMBERS):
        return ""
    if value is True:
        return "1"
    if name == "attempts":
        attempts: Sequence[Attempt] = value
        return _ATTEMPTS.dump_json(tuple(attempts), exclude_defaults=True).decode()
    if isinstance(value, datetime):
        return str(milliseconds(value))
    return str(value.value if isinstance(value, Enum) else value)
