"""The record as Redis holds it, a hash of small fields, and as the code knows it, a `Build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from ledger.build import Attempt, Build, BuildRequest, Reason, State, milliseconds, moment
from ledger.errors import LedgerError

_ATTEMPTS = TypeAdapter(tuple[Attempt, ...])
_NUMBERS = frozenset({"version", "sequence", "attempt", "publish_tries", "misses", "no_room", "size"})
_FLAGS = frozenset({"claimed", "moving_tags", "doubtful"})
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


def _text_of(stored: bytes) -> str:
    return stored.decode()


_READ: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    name.encode(): (name, read)
    for names, read in (
        (("created", "updated", "due", "not_before", "admitted", "started", "finished", "cancel_requested"), moment),
        (_NUMBERS, int),
        (_FLAGS, b"1".__eq__),
        (("digest", "message", "namespace", "superseded_by"), _text_of),
        (("request",), BuildRequest.model_validate_json),
        (("attempts",), _ATTEMPTS.validate_json),
        (("state",), {state.value.encode(): state for state in State}.__getitem__),
        (("reason",), {reason.value.encode(): reason for reason in Reason}.__getitem__),
    )
    for name in names
}
"""How each field of the hash is read; those that only the scripts use are not among them."""


def decode(build: str, answer: Any) -> Build:
    """The record of a build from its hash, in whichever shape it came. It is read for every step and admission, so it is made to be quick."""
    fields = answer.items() if isinstance(answer, Mapping) else zip(answer[::2], answer[1::2], strict=True)
    known: dict[str, Any] = {"id": build}
    try:
        for field, stored in fields:
            if found := _READ.get(field):
                known[found[0]] = found[1](stored)
        return _BLANK.model_copy(update=known)
    except (ValidationError, ValueError, KeyError) as error:
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
