"""What refers to an image: by the API that some registries have, else by a tag where clients keep the list.

A registry without the API seldom says so as the specification wants. It answers with a page of its web site, or leads to one (GHCR to
github.com, registry.k8s.io to a login); all of that is a no. What only means that nobody knows (401, 403, 429, 5xx) is an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from time import monotonic

from ledger.errors import ManifestUnknown, RegistryConfused
from ledger.references import ImageReference
from worker.registry.answers import Answer, refusal
from worker.registry.auth import Authorizer
from worker.registry.listing import MAX_PAGE, next_page, pages
from worker.registry.manifests import OCI_INDEX, Descriptor, Manifest, descriptors, fallback_tag, media_type_of, parse_object
from worker.registry.scopes import Scope

_WITHOUT = 3600.0
"""Seconds that it is believed that a registry has no such API: it may be replaced by one that has."""


class Said(Enum):
    """What a registry's answer to the question for referrers means."""

    LISTED = "listed"
    """Here they are."""
    UNKNOWN_IMAGE = "unknown image"
    """The API knows of no such image or repository; about others it may."""
    NO_API = "no api"
    REFUSED = "refused"
    """Nobody knows: not allowed, not now, or not understood."""


def understand(answer: Answer) -> Said:
    """Pure: what the first answer means, where redirects to other hosts were not followed."""
    codes = {code for code, _ in answer.errors}
    if answer.status == 200:
        return Said.LISTED if _is_index(answer) else Said.NO_API
    if answer.status in (401, 403, 429) or (answer.status >= 500 and "UNSUPPORTED" not in codes):
        return Said.REFUSED
    if answer.status in (404, 405) or 300 <= answer.status < 400 or "UNSUPPORTED" in codes:
        return Said.UNKNOWN_IMAGE if codes - {"UNSUPPORTED"} else Said.NO_API
    return Said.REFUSED


class Referrers:
    """Lists what refers to images, and remembers which registries have no API to ask."""

    def __init__(self, authorizer: Authorizer, base: Callable[[str], str], read: Callable[[ImageReference], Awaitable[Manifest]]) -> None:
        """`base`: where a registry's API is; `read`: how a manifest is read."""
        self._authorizer, self._base, self._read = authorizer, base, read
        self._with: set[str] = set()
        self._without: dict[str, float] = {}

    def answered(self, registry: str) -> bool | None:
        """Whether a registry has the API, as far as it was asked. None: it has not said yet."""
        if monotonic() < self._without.get(registry, 0.0):
            return False
        return True if registry in self._with else None

    async def of(self, image: ImageReference, path: str) -> tuple[Descriptor, ...]:
        """What refers to a digest of the repository that the API calls `path`. RegistryError: nobody knows."""
        if image.digest is None:
            raise ValueError(f"{image} names no digest")
        if self.answered(image.registry) is False:
            return await self._by_tag(image, image.digest)
        what, scope = f"the referrers of {image}", Scope(path, ("pull",))
        first = f"/v2/{path}/referrers/{image.digest}"
        answer = await self._authorizer.send("GET", image.registry, first, scope, limit=MAX_PAGE, stay=True)
        said = understand(answer)
        if said is Said.REFUSED:
            raise refusal(answer, f"list {what}")
        if said is not Said.LISTED:
            found = await self._by_tag(image, image.digest)
            if said is Said.NO_API:  # only now: where something answers in the registry's place, this was an error
                self._without[image.registry] = monotonic() + _WITHOUT
            return found
        self._with.add(image.registry)
        listed = list(descriptors(parse_object(answer.body, f"list of {what}").get("manifests")))
        if following := next_page(self._base(image.registry), image.registry, first, answer):
            async for body in pages(self._authorizer, self._base(image.registry), image.registry, following, scope, what):
                listed += descriptors(body.get("manifests"))
        return tuple(listed)

    async def _by_tag(self, image: ImageReference, digest: str) -> tuple[Descriptor, ...]:
        try:
            listed = await self._read(image.with_tag(fallback_tag(digest)))
        except ManifestUnknown:
            return ()
        # GitLab.com takes the tag for another way to write the digest, and gives the image itself.
        return listed.children if listed.media_type == OCI_INDEX and listed.digest != digest else ()


def _is_index(answer: Answer) -> bool:
    try:
        body = parse_object(answer.body, "list of referrers")
    except RegistryConfused:
        return False
    return isinstance(body.get("manifests"), list) and OCI_INDEX in (
        media_type_of(answer.headers.get("content-type")),
        body.get("mediaType"),
    )
