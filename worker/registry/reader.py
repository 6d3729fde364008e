"""What crabpot asks of a registry without changing it: names, manifests, configs, referrers and blobs.

Small on purpose: the maintained Python clients are synchronous, and trust a registry's word for a digest. Here every digest that
is acted on was computed from the bytes or is checked against them. Sources: OCI distribution-spec 1.1.1, distribution 2.8 and 3.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, Self

from ledger.errors import ManifestUnknown, RegistryConfused
from ledger.references import ImageReference, parse_digest, parse_repository, parse_tag
from worker.registry.answers import Answer, refusal
from worker.registry.auth import READING, Authorizer
from worker.registry.credentials import Credentials
from worker.registry.listing import pages
from worker.registry.manifests import ACCEPT, Descriptor, Manifest, digest_of, media_type_of, parse_object
from worker.registry.pace import IMPATIENT, Budgets, Patience
from worker.registry.products import product_of
from worker.registry.pulls import Pulls, pulls_of
from worker.registry.referrers import Referrers
from worker.registry.scopes import Scope
from worker.registry.wire import Timeouts, Wire, is_hub

_MAX_MANIFEST = 4 * 1024 * 1024  # what the specification asks registries to take
_MAX_CONFIG = 8 * 1024 * 1024
_MAX_DEPTH = 3
_PAGE = 1000
"""Names a page: distribution answers 400 where more are asked for."""


class RegistryReader:
    """All registries through one pool of connections, to read only: it cannot send anything but GET and HEAD to them.

    Use it from one event loop; close it in the end. Every call may raise RegistryUnavailable, RateLimited, RegistryDenied and
    RegistryConfused; ManifestUnknown where it says so.
    """

    _methods: ClassVar[frozenset[str]] = READING

    def __init__(
        self,
        credentials: Credentials,
        *,
        insecure: frozenset[str] = frozenset(),
        certificates: Mapping[str, str] = MappingProxyType({}),
        user_agent: str = "crabpot",
        timeouts: Timeouts = Timeouts(),  # noqa: B008 (frozen)
        budgets: Budgets | None = None,
        patience: Patience = IMPATIENT,
        known_as: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Insecure registries are spoken to over plain HTTP, all others over https.

        Certificates: registry -> path of a CA certificate (PEM), trusted for it and wherever its answers lead; SettingsInvalid for one that
        cannot be read. Clients that share `budgets` together ask no more of a registry than it allows. `known_as`: address -> the host name that its certificate is for.
        """
        self._wire = Wire(
            insecure=insecure,
            certificates=certificates,
            user_agent=user_agent,
            timeouts=timeouts,
            budgets=budgets,
            patience=patience,
            known_as=known_as,
        )
        self._authorizer = Authorizer(self._wire, credentials, methods=self._methods)
        self._referrers = Referrers(self._authorizer, self._wire.base, self.manifest)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._wire.close()

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
        check_digest(reference, manifest.digest, reference.digest)
        check_digest(reference, manifest.digest, digest_header(answer))
        return manifest

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
        return await self.config_blob(reference, manifest.config)

    async def config_blob(self, reference: ImageReference, config: Descriptor) -> dict[str, Any]:
        """The config that a manifest of the same repository names, its digest checked. ManifestUnknown: it is not there."""
        path = blob_path(reference, config.digest)
        answer = await self._authorizer.send("GET", reference.registry, path, scope_of(reference, "pull"), limit=_MAX_CONFIG)
        if answer.status != 200:
            raise refusal(answer, f"read the config of {reference}")
        check_digest(reference, digest_of(answer.body), config.digest)
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
        repository = path_of(registry, repository)
        first, scope = f"/v2/{repository}/tags/list?n={_PAGE}", Scope(repository, ("pull",))
        async for body in pages(
            self._authorizer, self._wire.base(registry), registry, first, scope, f"the tags of {registry}/{repository}"
        ):
            for tag in _names(body.get("tags"), f"{registry} answers with no list of tags for {repository}"):
                yield _sound(registry, parse_tag, tag)

    async def lists_tag(self, image: ImageReference) -> bool:
        """Whether an image's tag is among those of its repository, also where its manifest is gone: such a tag is broken."""
        try:
            return image.tag in {tag async for tag in self.tags(image.registry, image.repository)}
        except ManifestUnknown:
            return False

    async def catalog(self, registry: str, *, page: int | None = None) -> AsyncIterator[str]:
        """All repositories of a registry, `page` at a time: it walks through its storage for them, so who wants one says 1, and stops there.
        RegistryUnsupported, ManifestUnknown or RegistryDenied where it does not list them.
        """
        first, scope = f"/v2/_catalog?n={page or _PAGE}", Scope("catalog", ("*",), kind="registry")
        async for body in pages(self._authorizer, self._wire.base(registry), registry, first, scope, f"the repositories of {registry}"):
            for repository in _names(body.get("repositories"), f"{registry} answers with no list of repositories"):
                yield _sound(registry, parse_repository, repository)

    async def referrers(self, image: ImageReference) -> tuple[Descriptor, ...]:
        """What refers to a digest (signatures, attestations), by the API, or by the tag `sha256-<hex>` where the registry has none.

        Once a registry has shown that it has none, this reader only looks at the tag.
        """
        return await self._referrers.of(image, path_of(image.registry, image.repository))

    def lists_referrers(self, registry: str) -> bool | None:
        """Whether a registry has the referrers' API, as far as `referrers` has asked it; None: nobody has, or its answers did not tell."""
        return self._referrers.answered(registry)

    async def blob_size(self, image: ImageReference, digest: str) -> int | None:
        """Bytes of a blob of the image's repository; None when the registry itself says that it is not there."""
        answer = await self._authorizer.send("HEAD", image.registry, blob_path(image, digest), scope_of(image, "pull"))
        if answer.status == 404 and answer.from_registry:
            return None
        length = answer.headers.get("content-length", "")
        if answer.status != 200 or not re.fullmatch(r"\d{1,18}", length, re.ASCII):
            raise refusal(answer, f"look for the blob {digest} of {image.name}")
        return int(length)

    async def can_read(self, image: ImageReference, digest: str) -> bool:
        """Whether a blob of the image's repository can be read: its first byte is asked for, since a HEAD may be answered from a registry's
        memory, for long after the blob is gone.
        """
        path = blob_path(image, digest)
        answer = await self._authorizer.send("GET", image.registry, path, scope_of(image, "pull"), headers={"Range": "bytes=0-0"})
        if answer.status == 404 and answer.from_registry:
            return False
        if answer.status not in (200, 206, 416):  # 416: an empty blob has no first byte
            raise refusal(answer, f"read the blob {digest} of {image.name}")
        return True

    async def collector(self, registry: str) -> str | None:
        """`Harbor` or `zot` where a registry is one of these, which collect their own garbage; None: it shows no sign of it."""
        return await product_of(self._wire, self._authorizer, registry)

    async def pulls(self, product: str | None, repository: ImageReference, now: datetime) -> Pulls:
        """When a repository's tags were last pulled, as a registry of this product tells it. RegistryUnsupported: it does not; RegistryError."""
        return await pulls_of(self._authorizer, product, repository, now)

    @asynccontextmanager
    async def blob(self, image: ImageReference, blob: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
        """A blob of the image's repository, piece by piece. Its size and digest are checked at its end: RegistryConfused. ManifestUnknown."""
        async with self._authorizer.download(image.registry, blob_path(image, blob.digest), scope_of(image, "pull")) as (answer, pieces):
            if answer.status != 200:
                raise refusal(answer, f"read the blob {blob.digest} of {image.name}")
            yield _checked(image, blob, pieces)

    async def _manifest(self, method: str, reference: ImageReference) -> Answer:
        path, scope = manifest_path(reference), scope_of(reference, "pull")
        return await self._authorizer.send(method, reference.registry, path, scope, headers={"Accept": ACCEPT}, limit=_MAX_MANIFEST)


def path_of(registry: str, repository: str) -> str:
    """A repository as the API names it: Docker Hub's own images have a namespace that nobody writes."""
    return f"library/{repository}" if is_hub(registry) and "/" not in repository else repository


def manifest_path(reference: ImageReference) -> str:
    return f"/v2/{path_of(reference.registry, reference.repository)}/manifests/{reference.reference}"


def blob_path(reference: ImageReference, digest: str) -> str:
    return f"/v2/{path_of(reference.registry, reference.repository)}/blobs/{parse_digest(digest)}"


def scope_of(reference: ImageReference, *actions: str) -> Scope:
    return Scope(path_of(reference.registry, reference.repository), actions)


def digest_header(answer: Answer) -> str | None:
    try:
        return parse_digest(answer.headers.get("docker-content-digest", ""))
    except ValueError:
        return None  # it need not be there, and it may be of another algorithm than ours


def check_digest(reference: ImageReference, digest: str, expected: str | None) -> None:
    """RegistryConfused where something has another digest than it should."""
    if expected not in (None, digest):
        raise RegistryConfused(f"{reference} has the digest {digest}, where {expected} was asked for or announced")


def _described(reference: ImageReference, answer: Answer) -> Descriptor | None:
    """What a HEAD says, None where it does not say all."""
    digest, length = digest_header(answer), answer.headers.get("content-length", "")
    media_type = media_type_of(answer.headers.get("content-type"))
    if digest is None or media_type is None or not re.fullmatch(r"\d{1,18}", length, re.ASCII):
        return None
    check_digest(reference, digest, reference.digest)
    return Descriptor(media_type=media_type, digest=digest, size=int(length))


async def _checked(image: ImageReference, blob: Descriptor, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    sha, size = hashlib.sha256(), 0
    async for piece in pieces:
        size += len(piece)
        if size > blob.size:
            break
        sha.update(piece)
        yield piece
    if size != blob.size or f"sha256:{sha.hexdigest()}" != blob.digest:
        raise RegistryConfused(f"{image.registry} sent something else than the blob {blob.digest} of {image.repository}")


def _names(given: Any, otherwise: str) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise RegistryConfused(otherwise)
    return given


def _sound(registry: str, parse: Any, name: str) -> str:
    """A listed name becomes part of a URL, so it must be one."""
    try:
        return str(parse(name))
    except ValueError as error:
        raise RegistryConfused(f"{registry} lists a name that is none: {error}") from None
