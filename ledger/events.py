"""The events of a build's life, and of a promotion's: the CDEvents 0.5 vocabulary inside CloudEvents 1.0 JSON.

An event is written in the same atomic call as the change that it tells of. Its id is a function of what happened, so that a repeat
collapses on (source, id). Where CDEvents has no word (a retry, a cancel) the type is ours, `dev.crabpot.…`; build.finished has no
outcome of its own, so it stands in customData. Their JSON Schemas are in `ledger/schemas/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from uuid_utils import uuid7

from ledger.build import Build, BuildRequest, GitSource, State
from ledger.promotion import Promotion, PromotionState
from ledger.references import ImageReference

CDEVENTS_VERSION = "0.5.0"
QUEUE_SOURCE = "/crabpot/queue"
_NAMED = 20
"""Subjects that one event names."""


class EventType(StrEnum):
    """What can happen to a build."""

    QUEUED = "dev.cdevents.build.queued.0.3.0"
    STARTED = "dev.cdevents.build.started.0.3.0"
    FINISHED = "dev.cdevents.build.finished.0.3.0"
    PUBLISHED = "dev.cdevents.artifact.published.0.3.0"
    RETRIED = "dev.crabpot.build.retried.0.1.0"
    CANCEL_REQUESTED = "dev.crabpot.build.cancelrequested.0.1.0"
    CANCELLED = "dev.crabpot.build.cancelled.0.1.0"
    SUPERSEDED = "dev.crabpot.build.superseded.0.1.0"


class QueueEvent(StrEnum):
    """What can happen to the queue as a whole; subject is the scope (`ledger.limits.Scope`), or `registry/` and the host of a held one."""

    LIMITED = "dev.crabpot.queue.limited.0.1.0"
    PAUSED = "dev.crabpot.queue.paused.0.1.0"
    RESUMED = "dev.crabpot.queue.resumed.0.1.0"
    HELD = "dev.crabpot.queue.held.0.1.0"
    RELEASED = "dev.crabpot.queue.released.0.1.0"
    MENDED = "dev.crabpot.queue.mended.0.1.0"


class PromotionEvent(StrEnum):
    """What can happen to a promotion: a tag of it is set, and it comes to its end."""

    PUBLISHED = EventType.PUBLISHED.value
    FINISHED = "dev.crabpot.promotion.finished.0.1.0"


class CollectionEvent(StrEnum):
    """What can happen to a collection of garbage; subject is the registry."""

    PLANNED = "dev.crabpot.collection.planned.0.1.0"
    STARTED = "dev.crabpot.collection.started.0.1.0"
    FINISHED = "dev.crabpot.collection.finished.0.1.0"
    FAILED = "dev.crabpot.collection.failed.0.1.0"


class RegistryEvent(StrEnum):
    """What retention does in a registry; subject is the registry, the image, or the repository that is adopted."""

    PLANNED = "dev.crabpot.registry.planned.0.1.0"
    UNTAGGED = "dev.crabpot.registry.untagged.0.1.0"
    DELETED = "dev.cdevents.artifact.deleted.0.2.0"
    APPLIED = "dev.crabpot.registry.applied.0.1.0"
    UNDONE = "dev.crabpot.registry.undone.0.1.0"
    ADOPTED = "dev.crabpot.registry.adopted.0.1.0"


_SHORT = {kind: kind.split(".")[-4] for kind in EventType}
OUTCOMES = {State.SUCCEEDED: "success", State.FAILED: "failure", State.CANCELLED: "cancel", State.SUPERSEDED: "cancel"}
PROMOTION_OUTCOMES = {PromotionState.PROMOTED: "success", PromotionState.FAILED: "failure", PromotionState.OVERTAKEN: "cancel"}


def source_of(project: str) -> str:
    """The CloudEvents source, a URI reference: the same whichever process writes the event."""
    return f"/crabpot/projects/{project}"


def purl(image: ImageReference, digest: str) -> str:
    """The artifact's package URL, as CDEvents names images."""
    name = image.repository.rpartition("/")[2]
    return f"pkg:oci/{name}@{quote(digest, safe='')}?repository_url={quote(image.name, safe='/')}"


def queued(build: str, request: BuildRequest) -> str:
    """The CloudEvent's JSON for a build that is about to be taken in, of which there is no record yet."""
    told = {"build": build, "project": request.project, "state": "queued", "attempt": 0, **_given(request)}
    return _cd_event(EventType.QUEUED, f"{build}.0.{_SHORT[EventType.QUEUED]}", source_of(request.project), build, {}, told)


def event(kind: EventType, build: Build, *, image: ImageReference | None = None) -> str:
    """The CloudEvent's JSON for a build as it is *after* the change. `image` is what was published."""
    identity = f"{build.id}.{build.attempt}.{_SHORT[kind]}" + (f".{image}" if image else "")
    artifact = purl(build.request.images[0], build.digest) if build.digest and build.request.images else None
    subject = artifact if kind is EventType.PUBLISHED and artifact else build.id
    content: dict[str, Any] = {"artifactId": artifact} if kind is EventType.FINISHED and artifact else {}
    told = {
        "build": build.id,
        "project": build.project,
        "state": str(build.state),
        "attempt": build.attempt,
        "outcome": OUTCOMES.get(build.state),
        "reason": build.reason and str(build.reason),
        "message": build.message,
        "image": str(image) if image else None,
        "digest": build.digest,
        **_given(build.request),
    }
    return _cd_event(
        kind, identity, source_of(build.project), subject, content, {key: value for key, value in told.items() if value is not None}
    )


def promotion_published(promotion: Promotion, image: ImageReference) -> str:
    """The CloudEvent's JSON for a target of a promotion that stands at its image now."""
    told = {**_promoted(promotion), "image": str(image)}
    subject = purl(image, promotion.request.digest)
    return _cd_event(PromotionEvent.PUBLISHED, f"{promotion.id}.published.{image}", source_of(promotion.request.project), subject, {}, told)


def promotion_finished(promotion: Promotion) -> str:
    """The CloudEvent's JSON for a promotion as it is after its end."""
    told = {**_promoted(promotion), "targets": promotion.request.targets, "outcome": PROMOTION_OUTCOMES[promotion.state]}
    if promotion.overtaken:
        told["overtaken"] = promotion.overtaken
    if promotion.message:
        told["message"] = promotion.message
    return _cd_event(PromotionEvent.FINISHED, f"{promotion.id}.finished", source_of(promotion.request.project), promotion.id, {}, told)


def _promoted(promotion: Promotion) -> dict[str, Any]:
    """What every event repeats of a promotion."""
    request = promotion.request
    told = {
        "promotion": promotion.id,
        "project": request.project,
        "state": str(promotion.state),
        "sequence": promotion.sequence,
        "from": request.image,
        "digest": request.digest,
    }
    return {**told, "by": request.by} if request.by else told


def queue_event(kind: QueueEvent, scope: str, *, limit: int | None = None) -> str:
    """The CloudEvent's JSON for a change that holds admission back or lets it go on. A limit of None is given back to the projects file."""
    return _say_queue(kind, scope, {"scope": scope} if limit is None else {"scope": scope, "limit": limit})


def mended_event(mended: Mapping[str, Sequence[str]]) -> str:
    """The CloudEvent's JSON for what was put right in a round: what -> builds and the like; the first of many are named."""
    told = {what: {"count": len(subjects), "subjects": sorted(subjects)[:_NAMED]} for what, subjects in sorted(mended.items())}
    return _say_queue(QueueEvent.MENDED, "all", {"mended": told})


def collection_event(kind: CollectionEvent, registry: str, run: str, told: Mapping[str, Any]) -> str:
    """The CloudEvent's JSON for a run; its id is the run's, so that a repeat collapses."""
    identity, data = f"{run}.{kind.value.split('.')[3]}", {"registry": registry, "run": run, **told}
    return _cloud_event(kind, identity, QUEUE_SOURCE, registry, data, datetime.now(UTC))


def registry_event(kind: RegistryEvent, registry: str, plan: str, *, image: ImageReference | None = None, **told: Any) -> str:
    """The CloudEvent's JSON for what a plan does in a registry, or to an image there. Told again it has the same id."""
    identity = f"{plan}.{kind.split('.')[-4]}" + (f".{image}" if image else "")
    subject = purl(image, image.digest) if image and image.digest else str(image or registry)
    body = {"plan": plan, **({"image": str(image)} if image else {}), **told}
    source = f"/crabpot/registries/{registry}"
    if kind is RegistryEvent.DELETED:  # a CDEvent: it has a form of its own
        return _cd_event(kind, identity, source, subject, {}, body)
    return _cloud_event(kind, identity, source, subject, body, datetime.now(UTC))


def adoption_event(target: str, run: str, told: Mapping[str, Any]) -> str:
    """The CloudEvent's JSON for an adoption of a registry or a repository that has come to its end; its id is the run's. Told: what was found."""
    source = f"/crabpot/registries/{target.partition('/')[0]}"
    return _cloud_event(RegistryEvent.ADOPTED, f"{run}.adopted", source, target, {"adopted": target, **told}, datetime.now(UTC))


def _say_queue(kind: QueueEvent, scope: str, told: Mapping[str, Any]) -> str:
    return _cloud_event(kind, str(uuid7()), QUEUE_SOURCE, scope, told, datetime.now(UTC))


def _given(request: BuildRequest) -> dict[str, Any]:
    """What every event repeats of the request."""
    source = request.source
    told: dict[str, Any] = {"destinations": request.destinations}
    if isinstance(source, GitSource):
        told["commit"] = source.commit
        if source.ref is not None:
            told["ref"] = source.ref
    return told


def _cd_event(
    kind: EventType | PromotionEvent | RegistryEvent,
    identity: str,
    source: str,
    subject: str,
    content: dict[str, Any],
    told: dict[str, Any],
) -> str:
    """A CDEvent inside its CloudEvent; what is ours alone stands in customData."""
    time = datetime.now(UTC)
    body = {
        "context": {"specversion": CDEVENTS_VERSION, "id": identity, "source": source, "type": kind.value, "timestamp": time},
        "subject": {"id": subject, "source": source, "content": content},
        "customData": told,
        "customDataContentType": "application/json",
    }
    return _cloud_event(kind, identity, source, subject, body, time)


def _cloud_event(kind: StrEnum, identity: str, source: str, subject: str, data: Mapping[str, Any], time: datetime) -> str:
    envelope = {
        "specversion": "1.0",
        "id": identity,
        "source": source,
        "type": kind.value,
        "subject": subject,
        "time": time,
        "datacontenttype": "application/json",
        "data": data,
    }
    return to_json(envelope).decode()
