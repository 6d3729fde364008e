"""Copying whole images, within a registry or from one to another, byte for byte: the copy has the same digest.

Blobs first, then the manifests that name them, the children of an index before the index, and the tag last: a copy that is cut off leaves
nothing that can be pulled and is not whole.
"""

from __future__ import annotations

import asyncio

from ledger.errors import ManifestUnknown, RegistryConfused, RegistryDenied, RegistryUnavailable
from ledger.references import ImageReference
from worker.abreast import each
from worker.registry.client import RegistryClient
from worker.registry.manifests import KNOWN, Descriptor, Manifest
from worker.registry.pace import PATIENT
from worker.registry.reader import RegistryReader

_AT_ONCE = 4
"""Blobs on their way at a time."""
_MAX_DEPTH = 3
_TRIES = 3


async def copy_image(reader: RegistryReader, source: ImageReference, client: RegistryClient, target: ImageReference) -> str:
    """Copy an image or index with all its platforms, and return its digest. The target names the tag (else only its digest is put).

    What the target has already is not sent. Within one registry blobs are mounted where it and the target's credential allow that, and
    else read and sent. ManifestUnknown: no such source.
    """
    manifest = await reader.manifest(source)
    if target.digest not in (None, manifest.digest):
        raise RegistryConfused(f"{source} has the digest {manifest.digest}, not {target.digest}")
    await _Copy(reader, source, client, target).manifest(manifest, _MAX_DEPTH)
    name = target.with_tag(target.tag) if target.tag else target.with_digest(manifest.digest)
    await client.put_manifest(name, manifest.raw, manifest.media_type)
    return manifest.digest


class _Copy:
    """One copy under way."""

    def __init__(self, reader: RegistryReader, source: ImageReference, client: RegistryClient, target: ImageReference) -> None:
        self._reader, self._source = reader, source
        self._client, self._target = client, target
        self._mounts = source.registry == target.registry
        """Whether mounting is worth a try: only within a registry, and until it refuses."""

    async def manifest(self, manifest: Manifest, depth: int) -> None:
        """Everything that a manifest names, and not the manifest itself."""
        if manifest.media_type not in KNOWN:
            raise RegistryConfused(f"{self._source} is of the type {manifest.media_type[:100]}, whose parts are not known")
        if not depth:
            raise RegistryConfused(f"{self._source} is an index of indexes, too deep to follow")
        for child in manifest.children:
            read = await self._reader.manifest(self._source.with_digest(child.digest))
            await self.manifest(read, depth - 1)
            await self._client.put_manifest(self._target.with_digest(child.digest), read.raw, read.media_type)
        blobs = {blob.digest: blob for blob in (*manifest.layers, *([manifest.config] if manifest.config else []))}
        await each(blobs.values(), self._blob, _AT_ONCE)

    async def _blob(self, blob: Descriptor) -> None:
        if await self._there(blob) or await self._mount(blob):
            return
        for tried in range(1, _TRIES + 1):
            try:
                async with self._reader.blob(self._source, blob) as pieces:
                    await self._client.push_blob(self._target, blob, pieces)
                return
            except RegistryUnavailable as error:
                pause = PATIENT.pause(tried, error.retry_after) if tried < _TRIES else None
                if pause is None:
                    raise
                await asyncio.sleep(pause)
                if await self._there(blob):  # it took the blob, and was too long about storing it to say so
                    return

    async def _there(self, blob: Descriptor) -> bool:
        return await self._client.blob_size(self._target, blob.digest) == blob.size

    async def _mount(self, blob: Descriptor) -> bool:
        """Have it without sending it. A refusal is no failure: the target's credential may not read the source, which the reader's may."""
        if not self._mounts:
            return False
        try:
            return await self._client.mount(self._target, blob, self._source.repository)
        except (RegistryDenied, ManifestUnknown, RegistryConfused):
            self._mounts = False
            return False
