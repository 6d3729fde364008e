"""What a registry holds, as one frozen value: read once, judged any number of times, and stored so that a policy can be tried on it offline.

Nothing here is guessed. A time that nobody knows is None, and what went wrong while a repository was read stands in its `trouble`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ledger.ages import credible, is_to_come
from ledger.errors import InputInvalid

VERSION = 1


class Origin(StrEnum):
    """Where the time of a push is from."""

    PUSH = "push"
    """Our own record of the push."""
    IMAGE = "image"
    """What the image says of itself."""
    SEEN = "seen"
    """When a survey first saw the tag stand for the image."""
    TOLD = "told"
    """Somebody who adopted the registry knew it from elsewhere."""
    ADOPTED = "adopted"
    """Nobody knew it when the registry was adopted: it was pushed before that, and counts from then on."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A config or layer; `size` in bytes as it is stored."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A manifest that a repository holds; `size` in bytes of the manifest alone."""

    digest: str
    media_type: str
    size: int
    blobs: tuple[Blob, ...] = ()
    children: tuple[str, ...] = ()
    """The digests of an index's manifests; those that the repository lacks are among them."""
    subject: str | None = None
    """The digest of what this one refers to, as a signature does."""
    untagged_since: datetime | None = None
    """When it was first seen without a tag, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag, what it stood for, and when that was pushed (in UTC): None where nobody knows."""

    name: str
    digest: str
    pushed: datetime | None = None
    origin: Origin | None = None
    branch: str | None = None
    """The branch of our own push."""
    pulled: datetime | None = None
    """When the registry last saw it pulled, the year 1 where never; None where the registry does not tell, or was not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository; `name` with its registry. Manifests are those of its tags with all their parts, and those known without a tag."""

    name: str
    tags: tuple[Tag, ...] = ()
    manifests: tuple[Stored, ...] = ()
    trouble: str | None = None
    """What could not be read. Then nothing in the repository may be deleted, whatever else is known of it."""
    untold: str | None = None
    """Why the registry does not tell when tags were pulled, where it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Repositories of one registry. Layers that two of them share are stored once, so what is weighed together belongs in one inventory."""

    registry: str
    taken: datetime
    repositories: tuple[Repository, ...] = ()
    untags: bool = True
    """Whether the registry can take a tag away alone, as far as is known; where it cannot, a tag on a kept digest stays."""

    def text(self) -> str:
        """The stored form: JSON with a version."""
        return json.dumps(_inventory(self), separators=(",", ":"), sort_keys=True)


def read_inventory(text: str | bytes) -> Inventory:
    """Read the stored form; InputInvalid says what is wrong with it."""
    try:
        given = json.loads(text)
        if given["version"] != VERSION:
            raise InputInvalid(f"the inventory has version {given['version']!r}, and {VERSION} is known")
        return Inventory(
            registry=given["registry"],
            taken=_moment(given["taken"]),
            untags=bool(given["untags"]),
            repositories=tuple(_read_repository(one) for one in given["repositories"]),
        )
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise InputInvalid(f"this is no stored inventory ({type(error).__name__}: {error})") from None


def last_use(tag: Tag, now: datetime) -> datetime | None:
    """When a tag was pulled or pushed last; None where one of the two is not known, or cannot be."""
    if tag.pulled is None or is_to_come(tag.pulled, now):
        return None
    pushed = credible(tag.pushed, now)
    return None if pushed is None else max(tag.pulled, pushed)


def parse_time(text: str | None) -> datetime | None:
    """An image's own date (RFC 3339), None where it is none."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _inventory(inventory: Inventory) -> dict[str, Any]:
    return {
        "version": VERSION,
        "registry": inventory.registry,
        "taken": inventory.taken.isoformat(),
        "untags": inventory.untags,
        "repositories": [
            {
                "name": repository.name,
                "tags": [
                    _without_none(
                        name=tag.name,
                        digest=tag.digest,
                        pushed=_iso(tag.pushed),
                        origin=tag.origin,
                        branch=tag.branch,
                        pulled=_iso(tag.pulled),
                    )
                    for tag in repository.tags
                ],
                "manifests": [_manifest(manifest) for manifest in repository.manifests],
                "trouble": repository.trouble,
                **_without_none(untold=repository.untold),
            }
            for repository in inventory.repositories
        ],
    }


def _manifest(manifest: Stored) -> dict[str, Any]:
    return _without_none(
        digest=manifest.digest,
        media_type=manifest.media_type,
        size=manifest.size,
        blobs=[[blob.digest, blob.size] for blob in manifest.blobs] or None,
        children=list(manifest.children) or None,
        subject=manifest.subject,
        untagged_since=_iso(manifest.untagged_since),
    )


def _read_repository(given: Mapping[str, Any]) -> Repository:
    return Repository(
        name=given["name"],
        trouble=given["trouble"],
        untold=given.get("untold"),
        tags=tuple(
            Tag(
                name=tag["name"],
                digest=tag["digest"],
                pushed=_time(tag.get("pushed")),
                origin=Origin(tag["origin"]) if "origin" in tag else None,
                branch=tag.get("branch"),
                pulled=_time(tag.get("pulled")),
            )
            for tag in given["tags"]
        ),
        manifests=tuple(
            Stored(
                digest=one["digest"],
                media_type=one["media_type"],
                size=int(one["size"]),
                blobs=tuple(Blob(str(digest), int(size)) for digest, size in one.get("blobs", ())),
                children=tuple(one.get("children", ())),
                subject=one.get("subject"),
                untagged_since=_time(one.get("untagged_since")),
            )
            for one in given["manifests"]
        ),
    )


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _time(text: str | None) -> datetime | None:
    return _moment(text) if text else None


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
