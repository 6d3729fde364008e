"""A build's record: its states, the reasons why attempts end, and what is kept of each attempt.

The request never changes; the record does, one version at a time (`ledger/store.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import Field

from ledger.fields import Frozen
from ledger.references import ImageReference
from ledger.request import BuildRequest, GitSource, problems_of

__all__ = [
    "Attempt",
    "Build",
    "BuildRequest",
    "Frozen",
    "GitSource",
    "PlatformRun",
    "Reason",
    "ReasonClass",
    "State",
    "pod_name",
    "problems_of",
]

ATTEMPT_LABEL = "dev.crabpot.attempt"
"""The image label that says which attempt of which build made it: `<build>.<attempt>`."""


class State(StrEnum):
    """Where a build is in its life."""

    QUEUED = "queued"  # waits for a slot, perhaps until a time
    STARTING = "starting"  # holds its slots; its pods exist or are about to
    RUNNING = "running"  # a container runs
    PUBLISHING = "publishing"  # the executor succeeded; the digest is confirmed and the tags are moved; holds no slot
    SUCCEEDED = "succeeded"  # final
    FAILED = "failed"  # final
    CANCELLED = "cancelled"  # final
    SUPERSEDED = "superseded"  # final: a newer push of the same image came before it started

    @property
    def final(self) -> bool:
        return self in FINAL

    @property
    def holds_slots(self) -> bool:
        return self in (State.STARTING, State.RUNNING)


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SUPERSEDED})


class ReasonClass(StrEnum):
    """Whose trouble it is, and so what comes next."""

    USER = "user"  # failed, at once
    INFRASTRUCTURE = "infrastructure"  # again, exponential backoff
    REGISTRY = "registry"  # again, longer backoff, Retry-After
    MEMORY = "memory"  # again with twice the memory
    NO_ROOM = "no_room"  # queued again without using up an attempt
    STOPPED = "stopped"  # cancelled or superseded


class Reason(StrEnum):
    """Why an attempt, or a build, ended otherwise than well."""

    DOCKERFILE_INVALID = "dockerfile_invalid"
    BUILD_FAILED = "build_failed"
    SOURCE_MISSING = "source_missing"
    SOURCE_DENIED = "source_denied"
    BASE_IMAGE_MISSING = "base_image_missing"
    REGISTRY_DENIED = "registry_denied"
    CONFIG_ERROR = "config_error"
    ADMISSION_DENIED = "admission_denied"
    RUN_DEADLINE = "run_deadline"
    QUEUED_DEADLINE = "queued_deadline"
    PUBLISH_DEADLINE = "publish_deadline"
    POD_LOST = "pod_lost"
    EVICTED = "evicted"
    NODE_LOST = "node_lost"
    START_FAILED = "start_failed"
    PENDING_DEADLINE = "pending_deadline"
    IMAGE_PULL = "image_pull"
    UNKNOWN = "unknown"
    PUSH_FAILED = "push_failed"
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    RATE_LIMITED = "rate_limited"
    DIGEST_UNCONFIRMED = "digest_unconfirmed"
    OUT_OF_MEMORY = "out_of_memory"
    UNSCHEDULABLE = "unschedulable"
    QUOTA = "quota"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"

    @property
    def reason_class(self) -> ReasonClass:
        return _CLASS.get(self, ReasonClass.USER)


_CLASS = {
    **dict.fromkeys((Reason.POD_LOST, Reason.EVICTED, Reason.NODE_LOST, Reason.START_FAILED, Reason.PENDING_DEADLINE, Reason.IMAGE_PULL, Reason.UNKNOWN), ReasonClass.INFRASTRUCTURE),
    **dict.fromkeys((Reason.PUSH_FAILED, Reason.REGISTRY_UNAVAILABLE, Reason.RATE_LIMITED, Reason.DIGEST_UNCONFIRMED), ReasonClass.REGISTRY),
    Reason.OUT_OF_MEMORY: ReasonClass.MEMORY,
    **dict.fromkeys((Reason.UNSCHEDULABLE, Reason.QUOTA), ReasonClass.NO_ROOM),
    **dict.fromkeys((Reason.CANCELLED, Reason.SUPERSEDED), ReasonClass.STOPPED),
}  # fmt: skip


class PlatformRun(Frozen):
    """One platform's try within an attempt: one pod."""

    platform: str
    pod: str
    uid: str | None = None
    node: str | None = None
    reason: Reason | None = None
    """None while it runs, and when it ended well."""
    message: str | None = None
    exit_code: int | None = None
    digest: str | None = None
    log_tail: tuple[str, ...] = ()
    """The last lines of its log, redacted; kept of failures."""
    started: datetime | None = None
    ended: datetime | None = None


class Attempt(Frozen):
    """One try at a build: a pod a platform."""

    number: int
    memory: str | None = None
    """The memory it was given, where that is more than the request says."""
    runs: tuple[PlatformRun, ...] = ()


class Estimate(Frozen):
    """When a queued build may start and end, as ranges, from the middle half of how long the project's recent builds ran."""

    starts_after: datetime
    starts_before: datetime
    ends_after: datetime
    ends_before: datetime
    runs_for: float
    """Seconds that the project's builds run: the median."""
    spread: tuple[float, float]
    """The quarter that ran shortest ran for less than the first, the one that ran longest for more than the second."""


class Build(Frozen):
    """The record of one build."""

    id: str
    """A UUIDv7."""
    version: int = 1
    """Raised by every write; a write names the version that it has read."""
    state: State = State.QUEUED
    sequence: int = 0
    """The order in which the ledger took builds in; mutable tags follow it."""
    request: BuildRequest
    attempt: int = 0
    """The current attempt's number; 0 before the first."""
    attempts: tuple[Attempt, ...] = ()
    created: datetime
    """When it was submitted, by Redis's clock."""
    updated: datetime
    """When it was last written, by Redis's clock."""
    due: datetime | None = None
    """When the leader looks at it again."""
    namespace: str | None = None
    """Where its pods are, as the project said when it was submitted; None: where the workers' settings say."""
    not_before: datetime | None = None
    """For a queued build: when it may be admitted."""
    admitted: datetime | None = None
    """When the current attempt was given its slots, by Redis's clock."""
    started: datetime | None = None
    """When a container of the current attempt was first seen running."""
    finished: datetime | None = None
    cancel_requested: datetime | None = None
    superseded_by: str | None = None
    """The build of a newer push of the same image from the same branch."""
    claimed: bool = False
    """A step is at work on publishing it: until `due`, others leave it alone."""
    moving_tags: bool = False
    """Publishing has begun to move tags: too late for a cancel."""
    doubtful: bool = False
    """A step that published it was stopped midway: it may yet wake up, so the tags are looked at once more after the end."""
    publish_tries: int = 0
    """How often in a row the registry had trouble while it was published."""
    misses: int = 0
    """How often the registry said for certain that it has no such digest."""
    no_room: int = 0
    """How often in a row no room was found for it; such tries use up no attempt."""
    digest: str | None = None
    size: int | None = None
    """Bytes of the image's compressed layers and config."""
    reason: Reason | None = None
    message: str | None = None
    """What happened, for people; says what to do where that is known."""
    waits_for: str | None = None
    """For a queued build: which limit, pause or time it waits for, and who holds it."""
    position: int | None = None
    """For a queued build: how many of its project go before it."""
    estimate: Estimate | None = None
    """For a queued build: when it may start and end."""

    @property
    def project(self) -> str:
        return self.request.project

    @property
    def current(self) -> Attempt:
        """The current attempt; its runs exist from the moment it is admitted."""
        for attempt in reversed(self.attempts):
            if attempt.number == self.attempt:
                return attempt
        return Attempt(
            number=self.attempt,
            runs=tuple(
                PlatformRun(platform=platform, pod=pod_name(self.id, self.attempt, platform)) for platform in self.request.platforms
            ),
        )

    @property
    def publishing_since(self) -> datetime:
        """When the executor ended: publishing begins with it."""
        return max((run.ended for run in self.current.runs if run.ended), default=self.updated)

    @property
    def pushed_image(self) -> ImageReference | None:
        """The tag that the executor pushes: the first destination where its tag never moves, else a tag of this build's own.

        Mutable tags are moved by `finish` alone, in the ledger's order: an executor that pushed `latest` itself could move it backwards.
        """
        if not self.request.push:
            return None
        first = self.request.images[0]
        return first if self.request.is_fixed(first) else first.with_tag(f"build-{self.id}")

    @property
    def further_tags(self) -> tuple[ImageReference, ...]:
        """The tags of the pushed image's repository that `finish` sets."""
        pushed = self.pushed_image
        return () if pushed is None else tuple(image for image in self.request.images if image.name == pushed.name and image != pushed)

    @property
    def moved_tags(self) -> tuple[ImageReference, ...]:
        """Those of them that move from push to push."""
        return tuple(image for image in self.further_tags if not self.request.is_fixed(image))

    def with_attempt(self, attempt: Attempt) -> tuple[Attempt, ...]:
        """The attempts with this one put in its place."""
        return (*(other for other in self.attempts if other.number != attempt.number), attempt)


@dataclass(frozen=True, slots=True)
class Again:
    """How a build goes back into the queue."""

    delay: timedelta
    """From when on it may be admitted."""
    behind: bool = False
    """Behind all that wait now, and not where it was."""


def pod_name(build: str, attempt: int, platform: str) -> str:
    """The pod's name: f(build, attempt, platform), the same whoever starts it, so that a second start finds the first."""
    suffix = hashlib.sha256(platform.encode()).hexdigest()[:6]
    return f"crabpot-{build}-{attempt}-{suffix}"


def moment(milliseconds: float | str | bytes) -> datetime:
    """Redis's milliseconds as a time with its zone."""
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


def milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def record_schema() -> dict[str, Any]:
    """The JSON Schema of the record, the request within it; `python -m ledger.schema` writes it to ledger/schemas/."""
    return Build.model_json_schema()


class BuildPage(Frozen):
    """A page of builds, newest first."""

    builds: tuple[Build, ...]
    cursor: str | None = Field(default=None, description="Give it back to read on; None at the end.")
