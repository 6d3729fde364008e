"""The registry of a dry run: everything is read from the real one, and what is written is only remembered.

Other tools shipped dry runs that deleted, because a dry run was a branch in their code. Here the code that applies a plan is the same, and
the client that it is given cannot send anything but GET and HEAD.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from ledger.errors import ManifestUnknown
from ledger.references import ImageReference
from worker.registry.manifests import Descriptor, Manifest, digest_of
from worker.registry.reader import RegistryReader


class Changing(Protocol):
    """What code that changes a registry is given: a RegistryClient, or a Rehearsal of one. Their docstrings say what each call does."""

    async def resolve(self, reference: ImageReference) -> Descriptor | None: ...

    async def manifest(self, reference: ImageReference) -> Manifest: ...

    async def put_manifest(self, reference: ImageReference, raw: bytes, media_type: str) -> str: ...

    async def delete(self, image: ImageReference) -> bool: ...

    async def untag(self, image: ImageReference) -> bool: ...


@dataclass(slots=True)
class _Pretended:
    """What the registry would hold otherwise than it does; by `registry/repository`, then tag or digest."""

    gone: set[str] = field(default_factory=set)
    put: dict[str, Manifest] = field(default_factory=dict)

    def put_under(self, name: str, manifest: Manifest) -> None:
        for key in (name, manifest.digest):
            self.gone.discard(key)
            self.put[key] = manifest

    def delete(self, digest: str) -> None:
        self.gone.add(digest)
        self.put = {name: manifest for name, manifest in self.put.items() if manifest.digest != digest}


class Rehearsal(RegistryReader):
    """Has the writing calls of RegistryClient, and answers as the registry would after them. `would` lists them in order, in words."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.would: list[str] = []
        self._pretended: dict[str, _Pretended] = {}

    async def resolve(self, reference: ImageReference) -> Descriptor | None:
        here = self._at(reference)
        if put := here.put.get(reference.reference):
            return put.descriptor
        if reference.reference in here.gone:
            return None
        found = await super().resolve(reference)
        return None if found is None or found.digest in here.gone else found

    async def manifest(self, reference: ImageReference) -> Manifest:
        here = self._at(reference)
        if put := here.put.get(reference.reference):
            return put
        if reference.reference not in here.gone:
            manifest = await super().manifest(reference)
            if manifest.digest not in here.gone:
                return manifest
        raise ManifestUnknown(f"{reference} would be gone")

    async def put_manifest(self, reference: ImageReference, raw: bytes, media_type: str) -> str:
        self.would.append(f"put {reference} as {digest_of(raw)}")
        manifest = Manifest.parse(raw, media_type)
        self._at(reference).put_under(reference.reference, manifest)
        return manifest.digest

    async def delete(self, image: ImageReference) -> bool:
        if image.digest is None:
            raise ValueError(f"{image} names no digest; a tag alone is taken away by `untag`")
        there = await self.resolve(image) is not None
        self.would.append(f"delete {image}")
        self._at(image).delete(image.digest)
        return there

    async def untag(self, image: ImageReference) -> bool:
        if image.tag is None or image.digest is not None:
            raise ValueError(f"{image} names no tag alone")
        here = self._at(image)
        there = await self.resolve(image) is not None or (image.tag not in here.gone and await self.lists_tag(image))
        self.would.append(f"untag {image}")
        here.gone.add(image.tag)
        here.put.pop(image.tag, None)
        return there

    def _at(self, image: ImageReference) -> _Pretended:
        return self._pretended.setdefault(image.name, _Pretended())
