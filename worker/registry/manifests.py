"""What a registry's manifests say, read once from their raw bytes, so that a digest is always the digest of what was really sent."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Self

from ledger.errors import RegistryConfused
from ledger.references import parse_digest

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
INDEXES = frozenset({DOCKER_LIST, OCI_INDEX})
KNOWN = INDEXES | {DOCKER_MANIFEST, OCI_MANIFEST}
IMAGE_CONFIGS = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
"""The types of configs that say when an image was made."""
_SIGNATURE = re.compile(r"sha256-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?")
ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"
"""All four, always: without the list type distribution answers a list's tag with the linux/amd64 child, under the child's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a registry holds under a digest: `size` in bytes, `platform` as `linux/arm64/v8` where an index names it."""

    media_type: str
    digest: str
    size: int
    platform: str | None = None
    artifact_type: str | None = None
    """What a referrer is: a signature, an attestation, a list of materials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An image's manifest, or an index of several. Its digest is the sha256 of `raw`."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    """The manifests of an index, in its order."""
    subject: str | None = None
    """The digest of the manifest that this one is about: then it is a referrer of it."""
    artifact_type: str | None = None
    created: str | None = None
    """The annotation `org.opencontainers.image.created`, as it stands there."""

    @classmethod
    def parse(cls, raw: bytes, content_type: str | None) -> Self:
        """Read a manifest as it was sent. RegistryConfused when it is none, or calls itself something else than the answer's head did."""
        body = parse_object(raw, "manifest")
        announced, own = media_type_of(content_type), body.get("mediaType")
        if own and announced in ACCEPT.split(", ") and own != announced:
            raise RegistryConfused(f"the manifest was sent as {announced} but calls itself {str(own)[:100]}")
        media_type = announced if announced and announced != "application/json" else str(own or announced or "")
        index = media_type in INDEXES
        if index and ("layers" in body or "config" in body):
            raise RegistryConfused("the manifest is an index and an image at once")
        return cls(
            raw=raw,
            media_type=media_type,
            digest=digest_of(raw),
            config=None if index or not isinstance(body.get("config"), dict) else _descriptor(body["config"]),
            layers=() if index else descriptors(body.get("layers")),
            children=descriptors(body.get("manifests")) if index else (),
            subject=None if body.get("subject") is None else _descriptor(body["subject"]).digest,
            artifact_type=_text(body.get("artifactType")) or (None if index else _text(_field(body.get("config"), "mediaType"))),
            created=_text(_field(body.get("annotations"), "org.opencontainers.image.created")),
        )

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))

    @property
    def image_size(self) -> int:
        """Bytes of config and compressed layers; RegistryConfused for a manifest that names neither, as an index does."""
        if self.config is None:
            raise RegistryConfused(f"a manifest of type {self.media_type[:100] or 'unknown'} says no image size")
        return self.config.size + sum(layer.size for layer in self.layers)

    def child(self, platform: str | None) -> Descriptor | None:
        """An index's manifest for a platform, or its first that is no attestation (those have the platform `unknown/unknown`)."""
        for child in self.children:
            if child.platform == platform if platform else child.platform != "unknown/unknown":
                return child
        return None


def signature_subject(tag: str) -> str | None:
    """The digest that a tag is about by its name: `sha256-<hex>` (the referrers' fallback) and cosign's `.sig`, `.att`, `.sbom`."""
    match = _SIGNATURE.fullmatch(tag)
    return f"sha256:{match[1]}" if match else None


def fallback_tag(digest: str) -> str:
    """Where a registry without the referrers' API keeps the list of a manifest's referrers."""
    return digest.replace(":", "-", 1)


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def media_type_of(content_type: str | None) -> str | None:
    """The media type alone, without parameters as `; charset=utf-8`."""
    return (content_type or "").partition(";")[0].strip().lower() or None


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object, or RegistryConfused."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RegistryConfused(f"the registry's {what} is not a JSON object")
    return body


def descriptors(given: Any) -> tuple[Descriptor, ...]:
    """A list of descriptors as manifests and referrers hold it; RegistryConfused for anything else."""
    if given is None:
        return ()
    if not isinstance(given, list):
        raise RegistryConfused("the manifest's descriptors are not a list")
    return tuple(_descriptor(one) for one in given)


def _descriptor(given: Any) -> Descriptor:
    try:
        size = given["size"]
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError("the size is not a number of bytes")
        # The digest becomes part of a URL: anything but sha256 and hexadecimal digits is refused here.
        return Descriptor(
            media_type=str(given.get("mediaType", "")),
            digest=parse_digest(given["digest"]),
            size=size,
            platform=_platform(given.get("platform")),
            artifact_type=_text(given.get("artifactType")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RegistryConfused(f"a descriptor in the manifest is broken: {error}") from None


def _text(given: Any) -> str | None:
    return given if isinstance(given, str) and given else None


def _field(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, dict) else None


def _platform(given: Any) -> str | None:
    if not isinstance(given, dict):
        return None
    return "/".join(str(given[key]) for key in ("os", "architecture", "variant") if given.get(key)) or None
