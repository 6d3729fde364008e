"""When images were last pulled, as far as registries tell it: Harbor by its own API, zot by its search extension, distribution not at all.

Whoever asks keeps what is not known, so every answer that is not wholly sound is none: RegistryConfused. Sources: the swagger.yaml of Harbor 2
(`listArtifacts`), the schema.graphql of zot's search extension.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from ledger.errors import RegistryConfused, RegistryUnsupported
from ledger.references import ImageReference, parse_digest
from worker.registry.answers import refusal
from worker.registry.auth import Authorizer
from worker.registry.listing import has_next
from worker.registry.manifests import parse_object
from worker.registry.products import HARBOR, ZOT
from worker.registry.scopes import Scope

NEVER = datetime(1, 1, 1, tzinfo=UTC)
_FIRST_PULL = datetime(2013, 1, 1, tzinfo=UTC)
"""Before this nobody pulled an image: the years 1 and 1970 are how registries say never."""
_SKEW = timedelta(minutes=10)
"""How far a registry's clock may be ahead of ours."""
_HARBOR_PAGE = 100
"""The most that Harbor gives at once."""
_ZOT_PAGE = 5000
"""zot looks at all tags of a repository for each page."""
_MAX_PAGES = 10_000
_MAX_BODY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pulls:
    """What a registry tells of the pulls of a repository."""

    last: Mapping[str, tuple[str, datetime]] = field(default_factory=dict)
    """By tag: the digest that it stood for, and when that was pulled last; NEVER where it was not."""
    untold: str | None = None
    """Why the registry does not tell."""

    def of(self, tag: str, digest: str) -> datetime | None:
        """When a tag was last pulled as what it stands for; None: nobody knows."""
        stood_for, at = self.last.get(tag, (None, None))
        return at if stood_for == digest else None


async def pulls_of(authorizer: Authorizer, product: str | None, image: ImageReference, now: datetime) -> Pulls:
    """What a registry of a product tells of a repository. RegistryUnsupported: it tells nothing; RegistryError."""
    if product == HARBOR:
        told = _harbor(authorizer, image)
    elif product == ZOT:
        told = _zot(authorizer, image)
    else:
        raise RegistryUnsupported(f"{image.registry} tells no pull times: Harbor does, and zot with its search extension")
    found: dict[str, tuple[str, datetime]] = {}
    async for tag, digest, times in told:
        if None in times:
            continue  # it says nothing of this one
        last = max(_last(image, text, now) for text in times)
        known = found.get(tag)
        found[tag] = (digest, max(last, known[1]) if known is not None and known[0] == digest else last)
    if found and all(at == NEVER for _, at in found.values()):
        # Harbor can be told not to write pulls down, and then says of everything that it was never pulled.
        raise RegistryUnsupported(
            f"{image.registry} says that nothing in {image.repository} was ever pulled, so it may not write pulls down"
        )
    return Pulls(found)


_Told = AsyncIterator[tuple[str, str, tuple[Any, ...]]]
"""A tag, its digest, and the times of it that a registry tells, as they were sent."""


async def _harbor(authorizer: Authorizer, image: ImageReference) -> _Told:
    """Of an artifact and of each of its tags there is a time: a pull by digest moves the artifact's alone."""
    project, _, name = image.repository.partition("/")
    path = f"/api/v2.0/projects/{quote(project, safe='')}/repositories/{quote(quote(name, safe=''), safe='')}/artifacts"
    seen = set[str]()
    for page in range(1, _MAX_PAGES + 1):
        query = urlencode({"with_tag": "true", "page": page, "page_size": _HARBOR_PAGE})
        answer = await authorizer.ask_aside(image.registry, f"{path}?{query}", image.repository, limit=_MAX_BODY)
        if answer.status != 200:
            raise refusal(answer, f"read when {image.name} was pulled")
        artifacts = _list(image, _parsed(image, answer.body))
        for artifact in artifacts:
            digest = _digest(image, _field(image, artifact, "digest"))
            for tag in _list(image, artifact.get("tags")):
                yield _text(image, _field(image, tag, "name")), digest, (artifact.get("pull_time"), tag.get("pull_time"))
        digests = {artifact["digest"] for artifact in artifacts}
        if not has_next(answer):
            return
        if digests <= seen:
            break
        seen |= digests
    raise RegistryConfused(f"{image.registry} lists the artifacts of {image.repository} without an end")


async def _zot(authorizer: Authorizer, image: ImageReference) -> _Told:
    """A time is that of the digest, whichever of its tags was pulled."""
    offset, seen, scope = 0, set[str](), Scope(image.repository, ("pull",))
    for _ in range(_MAX_PAGES):
        asked = f"ImageList(repo:{json.dumps(image.repository)},requestedPage:{{limit:{_ZOT_PAGE},offset:{offset},sortBy:ALPHABETIC_ASC}})"
        query = urlencode({"query": f"{{{asked}{{Results{{Tag Digest LastPullTimestamp}}Page{{TotalCount}}}}}}"})
        answer = await authorizer.send("GET", image.registry, f"/v2/_zot/ext/search?{query}", scope, limit=_MAX_BODY)
        if answer.status == 404:
            raise RegistryUnsupported(f"{image.registry} tells no pull times: zot's search extension is not on")
        if answer.status != 200:
            raise refusal(answer, f"read when {image.name} was pulled")
        body = parse_object(answer.body, "answer about pulls")
        if body.get("errors"):
            raise RegistryConfused(f"{image.registry} does not say when {image.repository} was pulled: {str(body['errors'])[:200]}")
        listed = _field(image, _field(image, body, "data"), "ImageList")
        images, total = _list(image, _field(image, listed, "Results")), _field(image, _field(image, listed, "Page"), "TotalCount")
        if type(total) is not int:
            raise _broken(image, "a count of tags", total)
        for one in images:
            yield _text(image, _field(image, one, "Tag")), _digest(image, _field(image, one, "Digest")), (one.get("LastPullTimestamp"),)
        tags, offset = {one["Tag"] for one in images}, offset + len(images)
        if offset >= total or not images:
            return
        if tags <= seen:
            break
        seen |= tags
    raise RegistryConfused(f"{image.registry} lists the tags of {image.repository} without an end")


def _last(image: ImageReference, text: Any, now: datetime) -> datetime:
    """A time as a registry tells it. RegistryConfused for one that is none, or that is yet to come."""
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise _broken(image, "a time", text) from None
    if at > now + _SKEW:
        raise _broken(image, "the time of a pull", text)
    return NEVER if at < _FIRST_PULL else at


def _parsed(image: ImageReference, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise RegistryConfused(f"{image.registry} answers with no JSON about the pulls of {image.repository}") from None


def _field(image: ImageReference, given: Any, name: str) -> Any:
    if not isinstance(given, dict) or name not in given:
        raise _broken(image, f"an object with `{name}`", given)
    return given[name]


def _list(image: ImageReference, given: Any) -> list[Any]:
    """None is an empty list: so Go's programs write one."""
    if given is not None and not isinstance(given, list):
        raise _broken(image, "a list", given)
    return given or []


def _text(image: ImageReference, given: Any) -> str:
    if not isinstance(given, str):
        raise _broken(image, "a name", given)
    return given


def _digest(image: ImageReference, given: Any) -> str:
    try:
        return parse_digest(_text(image, given))
    except ValueError as error:
        raise RegistryConfused(f"{image.registry} tells of pulls of {image.repository}, and {error}") from None


def _broken(image: ImageReference, expected: str, given: Any) -> RegistryConfused:
    return RegistryConfused(f"{image.registry} tells of pulls of {image.repository}, and {json.dumps(given)[:60]} is not {expected}")
