"""What crabpot asks of a registry: which digest a name has, what an image is and how big, to set a tag, and whether it may.

Small on purpose: the maintained Python clients are synchronous, and trust a registry's word for a digest. Here every digest that
is acted on was computed from the bytes or is checked against them. Sources: OCI distribution-spec 1.1.1, distribution 2.8 and 3.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urljoin, urlsplit

from ledger.errors import ManifestUnknown, RegistryConfused, RegistryDenied, RegistryError
from ledger.references import ImageReference, parse_digest
from worker.registry.auth import Authorizer, Scope
from worker.registry.credentials import Credentials
from worker.registry.manifests import ACCEPT, Descriptor, Manifest, digest_of, media_type_of, parse_object
from worker.registry.wire import Answer, Timeouts, Wire, is_hub, refusal

_MAX_MANIFEST = 4 * 1024 * 1024  # what the specification asks registries to take
_MAX_CONFIG = 8 * 1024 * 1024
_MAX_TAGS = 64 * 1024 * 1024  # distribution 2.8 answers all tags in one page
_MAX_DEPTH = 3
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*?\brel="?next"?', re.IGNORECASE)


class RegistryClient:
    """All registries through one pool of connections. Use it from one event loop; close it in the end.

    Every call may raise RegistryUnavailable, RateLimited, RegistryDenied and RegistryConfused; ManifestUnknown where it says so.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        insecure: frozenset[str] = frozenset(),
        certificates: Mapping[str, str] = MappingProxyType({}),
        user_agent: str = "crabpot",
        timeouts: Timeouts = Timeouts(),  # noqa: B008 (frozen)
    ) -> None:
        """Insecure registries are spoken to over plain HTTP, all others over https.

        Certificates: registry -> path of a CA certificate (PEM); SettingsInvalid for one that cannot be read.
        """
        self._wire = Wire(insecure=insecure, certificates=certificates, user_agent=user_agent, timeouts=timeouts)
        self._authorizer = Authorizer(self._wire, credentials)

    async def ping(self, registry: str) -> None:
        """Return if there is a registry of that name that speaks the protocol. It says nothing about rights."""
        await self._authorizer.ping(registry)

    async def resolve(self, reference: ImageReference) -> Descriptor | None:
        """What a tag or digest stands for now; None only when the registry itself says that there is no such thing."""
        answer = await self._manifest("HEAD", reference)
        if answer.status == 200 and (found := _described(reference, answer)):
            return found
        if answer.status == 404 and answer.from_registry:
            return None
        if answer.status in (401, 403, 429) or answer.status >= 500:
            raise refusal(answer, f"resolve {reference}")
        # The digest is missing, or a registry or a proxy before it does not do HEAD, or a 404 has no word of the registry in it.
        try:
            return (await self.manifest(reference)).descriptor
        except ManifestUnknown:
            return None

    async def manifest(self, reference: ImageReference) -> Manifest:
        """The manifest, its digest checked from its bytes. ManifestUnknown: a definite 404."""
        answer = await self._manifest("GET", reference)
        if answer.status != 200:
            raise refusal(answer, f"read the manifest of {reference}")
        manifest = Manifest.parse(answer.body, answer.headers.get("content-type"))
        _check_digest(reference, manifest.digest, reference.digest)
        _check_digest(reference, manifest.digest, _digest_header(answer))
        return manifest

    async def put_manifest(self, reference: ImageReference, raw: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest, and return its digest. The blobs it names must be in that repository: else ManifestUnknown."""
        digest = digest_of(raw)
        if reference.digest not in (None, digest):
            raise ValueError(f"{reference} is not the name of these bytes, whose digest is {digest}")
        path, scope = self._path(reference, "manifests", reference.reference), self._scope(reference, "pull", "push")
        answer = await self._authorizer.send("PUT", reference.registry, path, scope, headers={"Content-Type": media_type}, content=raw)
        if answer.status not in (200, 201, 202):
            raise refusal(answer, f"push the manifest of {reference}")
        _check_digest(reference, digest, _digest_header(answer))
        return digest

    async def config(self, reference: ImageReference, *, platform: str | None = None) -> dict[str, Any]:
        """An image's config, its digest checked. Of an index: that of a platform (`linux/arm64/v8`), or of its first image.

        ManifestUnknown: there is no such image, or none for the platform.
        """
        manifest = await self.manifest(reference)
        for _ in range(_MAX_DEPTH):
            if not manifest.is_index:
                break
            child = manifest.child(platform)
            if child is None:
                raise ManifestUnknown(f"{reference} holds no image{f' for {platform}' if platform else ''}")
            manifest = await self.manifest(reference.with_digest(child.digest))
        if manifest.config is None:
            raise RegistryConfused(f"{reference} names no config")
        path = self._path(reference, "blobs", manifest.config.digest)
        answer = await self._authorizer.send("GET", reference.registry, path, self._scope(reference, "pull"), limit=_MAX_CONFIG)
        if answer.status != 200:
            raise refusal(answer, f"read the config of {reference}")
        _check_digest(reference, digest_of(answer.body), manifest.config.digest)
        return parse_object(answer.body, "image config")

    async def image_size(self, reference: ImageReference) -> int:
        """Bytes of config and compressed layers; of an index the sum over its images. ManifestUnknown: there is no such image."""
        return await self._size(reference, await self.manifest(reference), _MAX_DEPTH)

    async def _size(self, reference: ImageReference, manifest: Manifest, depth: int) -> int:
        if not manifest.is_index:
            return manifest.image_size
        if not depth:
            raise RegistryConfused(f"{reference} is an index of indexes, too deep to follow")
        children = [reference.with_digest(child.digest) for child in manifest.children]
        return sum([await self._size(child, await self.manifest(child), depth - 1) for child in children])

    async def tags(self, registry: str, repository: str) -> AsyncIterator[str]:
        """All tags of a repository, page by page. ManifestUnknown: there is no such repository.

        An error midway means that the list is not complete: take it as no list at all.
        """
        repository = _repository(registry, repository)
        path, seen = f"/v2/{repository}/tags/list?n=1000", set[str]()
        while path:
            if path in seen:
                raise RegistryConfused(f"{registry} lists the tags of {repository} in a circle")
            seen.add(path)
            answer = await self._authorizer.send("GET", registry, path, Scope(repository, ("pull",)), limit=_MAX_TAGS)
            if answer.status != 200:
                raise refusal(answer, f"list the tags of {registry}/{repository}")
            tags = parse_object(answer.body, "tag list").get("tags")
            if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
                raise RegistryConfused(f"{registry} answers with no list of tags for {repository}")
            for tag in tags or ():
                yield tag
            path = self._next_page(registry, path, answer)

    async def can_push(self, registry: str, repository: str) -> None:
        """Return if the credential may push there: an upload is begun and cancelled, so no image or blob is left. RegistryDenied if not."""
        repository = _repository(registry, repository)
        scope, path = Scope(repository, ("pull", "push")), f"/v2/{repository}/blobs/uploads/"
        answer = await self._authorizer.send("POST", registry, path, scope, headers={"Content-Length": "0"})
        if answer.status == 404 and answer.from_registry:
            raise RegistryDenied(f"{registry} has no repository {repository}, and does not make one for a push")
        if answer.status != 202:
            raise refusal(answer, f"push to {registry}/{repository}")
        if upload := self._here(registry, path, answer.headers.get("location", "")):
            # The right is proved. Where a cancel is refused (distribution wants the right to delete for it) the empty upload lapses by itself.
            with contextlib.suppress(RegistryError):
                await self._authorizer.send("DELETE", registry, upload, Scope(repository, ("delete",)))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._wire.close()

    async def _manifest(self, method: str, reference: ImageReference) -> Answer:
        path, scope = self._path(reference, "manifests", reference.reference), self._scope(reference, "pull")
        return await self._authorizer.send(method, reference.registry, path, scope, headers={"Accept": ACCEPT}, limit=_MAX_MANIFEST)

    def _path(self, reference: ImageReference, kind: str, name: str) -> str:
        return f"/v2/{_repository(reference.registry, reference.repository)}/{kind}/{name}"

    def _scope(self, reference: ImageReference, *actions: str) -> Scope:
        return Scope(_repository(reference.registry, reference.repository), actions)

    def _next_page(self, registry: str, path: str, answer: Answer) -> str:
        match = _NEXT.search(answer.headers.get("link", ""))
        if not match:
            return ""
        following = self._here(registry, path, match[1])
        if following is None:
            raise RegistryConfused(f"{registry} names another host for the rest of its list")
        return following

    def _here(self, registry: str, path: str, location: str) -> str | None:
        """An address from an answer as a path of the same registry, None if it is elsewhere: the credential goes nowhere else.

        The scheme is not compared: a registry behind a proxy that ends TLS thinks that it is asked over http.
        """
        base = self._wire.base(registry)
        try:
            url = urlsplit(urljoin(base + path, location))
        except ValueError:
            return None
        if not location or url.hostname != urlsplit(base).hostname or not url.path.startswith("/v2/"):
            return None
        return url.path + (f"?{url.query}" if url.query else "")


def _repository(registry: str, repository: str) -> str:
    """Docker Hub's own images have a namespace that nobody writes."""
    return f"library/{repository}" if is_hub(registry) and "/" not in repository else repository


def _described(reference: ImageReference, answer: Answer) -> Descriptor | None:
    """What a HEAD says, None where it does not say all."""
    digest, length = _digest_header(answer), answer.headers.get("content-length", "")
    media_type = media_type_of(answer.headers.get("content-type"))
    if digest is None or media_type is None or not re.fullmatch(r"\d{1,18}", length, re.ASCII):
        return None
    _check_digest(reference, digest, reference.digest)
    return Descriptor(media_type=media_type, digest=digest, size=int(length))


def _digest_header(answer: Answer) -> str | None:
    try:
        return parse_digest(answer.headers.get("docker-content-digest", ""))
    except ValueError:
        return None  # it need not be there, and it may be of another algorithm than ours


def _check_digest(reference: ImageReference, digest: str, expected: str | None) -> None:
    if expected not in (None, digest):
        raise RegistryConfused(f"{reference} has the digest {digest}, where {expected} was asked for or announced")
