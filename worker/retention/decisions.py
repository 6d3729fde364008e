"""A plan: for every tag and every image without one whether it stays, by which rule, and why. Frozen, versioned, and known by its hash.

It is stored before anything is deleted and approved by its hash, so what is applied is what somebody has read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from ledger.errors import InputInvalid

VERSION = 1


class Action(StrEnum):
    """What becomes of a tag, or of an image without one."""

    KEEP = "keep"
    UNTAG = "untag"
    """The tag goes and its digest stays: other tags, an index or a running pod need it."""
    DELETE = "delete"
    """The digest goes, with every tag on it."""


class Why(StrEnum):
    """Why something stays, or goes."""

    NO_POLICY = "no policy"
    """No policy names the repository, or no pattern of its `delete` names the tag: the default is to keep."""
    DISPUTED = "disputed"
    """Policies of several projects name the repository."""
    TROUBLE = "trouble"
    """Something of the repository could not be read or understood, so nothing in it goes."""
    UNKNOWN_TIME = "unknown time"
    """Nobody knows when it was pushed, or the date that it bears cannot be one."""
    UNKNOWN_PULL = "unknown pull time"
    """A rule asks when it was pulled, and nobody knows."""
    RULE = "rule"
    PROTECTED = "protected"
    """A pattern of the policy's `protect`."""
    MINIMUM = "minimum"
    """It is one of the newest images, which always stay."""
    GRACE = "grace"
    """It is too young to go."""
    BLAST_RADIUS = "blast radius"
    """Older ones go first; this one would be more than one plan may delete."""
    RUNNING = "running"
    PINNED = "pinned"
    IN_FLIGHT = "in flight"
    """A build under way has made it."""
    QUARANTINE = "quarantine"
    """It waits in the bin; no rule sees it."""
    INDEX_CHILD = "index child"
    """A kept index holds it."""
    REFERRER = "referrer"
    """It refers to something that stays, or that is not known here."""
    SIGNATURE = "signature"
    """It is a signature's tag, by its name, of something that stays or is not known here."""
    SHARED = "shared digest"
    """Another tag on the same digest stays."""
    CONDEMNED = "condemned"
    """A pattern of `delete` names it and nothing keeps it."""
    UNTAGGED = "untagged"
    """It has had no tag for longer, or for less long, than `delete_untagged_after`; or it never goes because that is not set."""
    GOES_WITH = "goes with"
    """The index that holds it, or what it refers to, goes."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason, and which rule, tag, digest or pod it is about."""

    why: Why
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.detail}" if self.detail else str(self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """About one tag, or with `tag` None about a digest that has none."""

    tag: str | None
    digest: str
    action: Action
    reasons: tuple[Reason, ...]
    pushed: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryPlan:
    """What is decided about one repository."""

    name: str
    project: str | None
    """Whose policy it is."""
    policy: str | None
    """The policy as JSON, as it was when the plan was made."""
    decisions: tuple[Decision, ...]
    """Tags by name, then digests without one."""
    deletions: tuple[str, ...] = ()
    """The digests that go, in the order in which they are to: an index before what it holds, a subject before its referrers."""
    freed: int = 0
    """Bytes that a collection of garbage would free: what kept images of the same inventory share does not count."""
    review: tuple[str, ...] = ()
    """Why the plan must not be applied here without somebody's approval; none: it may be."""

    def of(self, action: Action) -> Iterator[Decision]:
        return (decision for decision in self.decisions if decision.action is action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is decided about repositories of one registry at one moment. Nothing in it depends on where or when it is read."""

    registry: str
    made: datetime
    inventory_taken: datetime
    repositories: tuple[RepositoryPlan, ...]

    @property
    def freed(self) -> int:
        return sum(repository.freed for repository in self.repositories)

    def count(self, action: Action) -> int:
        """How many tags, and digests without one, it is decided about."""
        return sum(1 for repository in self.repositories for _ in repository.of(action))

    def text(self) -> str:
        """The stored form: canonical JSON (sorted keys, no spaces, ASCII) with a version."""
        head = {"version": VERSION, "registry": self.registry, "made": self.made.isoformat(), "taken": self.inventory_taken.isoformat()}
        told: dict[tuple[Reason, ...], str] = {}
        return _object(
            {
                **{key: _json(value) for key, value in head.items()},
                "repositories": _array(_repository(one, told) for one in self.repositories),
            }
        )

    @property
    def sha256(self) -> str:
        """The name of the plan: of its canonical JSON."""
        return hash_of(self.text())


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_plan(text: str, sha256: str) -> Plan:
    """Read a stored plan. InputInvalid: it is none, of another version, or not the one of that hash."""
    if hash_of(text) != sha256:
        raise InputInvalid(f"the stored plan is not the one of the hash {sha256}")
    try:
        given = json.loads(text)
        if given["version"] != VERSION:
            raise InputInvalid(f"the plan has version {given['version']!r}, and {VERSION} is known")
        return Plan(
            registry=given["registry"],
            made=datetime.fromisoformat(given["made"]),
            inventory_taken=datetime.fromisoformat(given["taken"]),
            repositories=tuple(_read_repository(one) for one in given["repositories"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputInvalid(f"this is no stored plan ({type(error).__name__}: {error})") from None


def _repository(repository: RepositoryPlan, told: dict[tuple[Reason, ...], str]) -> str:
    """As JSON, put together here: a hundred thousand dictionaries for json to write would take longer than the plan itself."""
    decisions = []
    for one in repository.decisions:
        reasons = told.get(one.reasons)
        if reasons is None:
            reasons = told[one.reasons] = _json([{"why": reason.why, "detail": reason.detail} for reason in one.reasons])
        pushed = f'"{one.pushed.isoformat()}"' if one.pushed else "null"
        tag = "null" if one.tag is None else quoted(one.tag)
        decisions.append(f'{{"action":"{one.action}","digest":{quoted(one.digest)},"pushed":{pushed},"reasons":{reasons},"tag":{tag}}}')
    fields = {
        "name": repository.name,
        "project": repository.project,
        "policy": repository.policy,
        "deletions": repository.deletions,
        "freed": repository.freed,
        "review": repository.review,
    }
    return _object({**{key: _json(value) for key, value in fields.items()}, "decisions": _array(decisions)})


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _object(fields: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{quoted(key)}:{fields[key]}" for key in sorted(fields)) + "}"


def _array(items: Iterable[str]) -> str:
    return "[" + ",".join(items) + "]"


def _read_repository(given: Mapping[str, Any]) -> RepositoryPlan:
    return RepositoryPlan(
        name=given["name"],
        project=given["project"],
        policy=given["policy"],
        deletions=tuple(given["deletions"]),
        freed=given["freed"],
        review=tuple(given["review"]),
        decisions=tuple(
            Decision(
                tag=one["tag"],
                digest=one["digest"],
                action=Action(one["action"]),
                pushed=datetime.fromisoformat(one["pushed"]) if one["pushed"] else None,
                reasons=_reasons(one["reasons"]),
            )
            for one in given["decisions"]
        ),
    )


def _reasons(given: Iterable[Mapping[str, str]]) -> tuple[Reason, ...]:
    return tuple(Reason(Why(one["why"]), one["detail"]) for one in given)
