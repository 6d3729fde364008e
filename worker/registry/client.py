"""What crabpot changes in a registry: it sets tags, stores blobs, and deletes. Everything that only reads is the reader's.

There is no conditional DELETE in the protocol: who deletes looks just before whether it still deletes what it means to.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import ClassVar

from ledger.errors import (
    DeletesByDigest,
    ManifestUnknown,
    RegistryConfused,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
    RegistryUnsupported,
)
from ledger.references import ImageReference
from worker.registry.answers import Answer, refusal
from worker.registry.auth import ANY
from worker.registry.listing import local_path
from worker.registry.manifests import Descriptor, digest_of
from worker.registry.reader import RegistryReader, check_digest, digest_header, manifest_path, path_of, scope_of
from worker.registry.scopes import Scope

_GONE = (200, 202, 204)


class RegistryClient(RegistryReader):
    """A reader that also writes. Of its writes only putting a manifest is repeated, which is safe to do twice."""

    _methods: ClassVar[frozenset[str]] = ANY

    async def put_manifest(self, reference: ImageReference, raw: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest, and return its digest. The blobs it names must be in that repository: else ManifestUnknown."""
        digest = digest_of(raw)
        if reference.digest not in (None, digest):
            raise ValueError(f"{reference} is not the name of these bytes, whose digest is {digest}")
        answer = await self._authorizer.send(
            "PUT",
            reference.registry,
            manifest_path(reference),
            scope_of(reference, "pull", "push"),
            headers={"Content-Type": media_type},
            content=raw,
            tries=self._wire.patience.tries,
        )
        if answer.status not in (200, 201, 202):
            raise refusal(answer, f"push the manifest of {reference}")
        check_digest(reference, digest, digest_header(answer))
        return digest

    async def delete(self, image: ImageReference) -> bool:
        """Delete a manifest by its digest: **every tag on it goes too**. Whether it was there; False also when somebody else was faster.

        It is sent once. After an unclear answer the registry is asked whether the manifest is gone; if not, it is RegistryUnavailable, and
        the caller looks at its tags again before the next try: the same digest may have been pushed anew.
        RegistryUnsupported: this registry deletes nothing (distribution: `storage.delete.enabled`); RegistryUnavailable: also while it is read-only.
        """
        if image.digest is None:
            raise ValueError(f"{image} names no digest; a tag alone is taken away by `untag`")
        try:
            answer = await self._delete(image)
            if answer.status in _GONE:
                return True
            if answer.status == 404 and answer.from_registry:
                return False
            raise refusal(answer, f"delete {image}")
        except RegistryUnavailable:
            if await self.resolve(image) is None:
                return True
            raise

    async def untag(self, image: ImageReference) -> bool:
        """Take a tag away and leave its manifest with all other tags. Whether it was there, be it without its manifest (`garbage-collect -m`
        leaves such tags).

        DeletesByDigest: this registry cannot (distribution 2.8, Harbor). RegistryUnsupported: it deletes nothing, or no tag without its
        manifest (distribution 2.8, zot). RegistryConfused: it deleted the manifest instead; that has been put
        back under its digest, and its other tags are the caller's to set again.
        """
        if image.tag is None or image.digest is not None:
            raise ValueError(f"{image} names no tag alone")
        try:
            before = await self.manifest(image)
        except ManifestUnknown:
            return await self._untag_broken(image)
        answer = await self._delete(image)
        if _deletes_by_digest_only(answer):
            raise DeletesByDigest(f"{image.registry} cannot take a tag away alone; it deletes by digest only")
        if answer.status == 404 and answer.from_registry:
            return False
        if answer.status not in _GONE:
            raise refusal(answer, f"take away the tag {image}")
        kept = image.with_digest(before.digest)
        if await self.resolve(kept) is None:
            await self.put_manifest(kept, before.raw, before.media_type)
            raise RegistryConfused(f"{image.registry} deleted {kept} with its tag {image.tag}; the manifest was put back without its tags")
        return True

    async def _untag_broken(self, image: ImageReference) -> bool:
        """There is no manifest to look after, and none to put back."""
        if not await self.lists_tag(image):
            return False
        answer = await self._delete(image)
        if answer.status in _GONE:
            return True
        missing = answer.status == 404 and answer.from_registry
        if missing and not await self.lists_tag(image):
            return False
        if missing or _deletes_by_digest_only(answer):
            raise RegistryUnsupported(
                f"the manifest of {image} is gone, and {image.registry} takes no such tag away; push any image to it, and remove that"
            )
        raise refusal(answer, f"take away the tag {image}")

    async def can_push(self, registry: str, repository: str) -> None:
        """Return if the credential may push there: an upload is begun and cancelled, so no image or blob is left. RegistryDenied if not."""
        target = ImageReference(registry, repository)
        answer = await self._begin(target, "", scope_of(target, "pull", "push"))
        if answer.status == 404 and answer.from_registry:
            raise RegistryDenied(f"{registry} has no repository {repository}, and does not make one for a push")
        if answer.status != 202:
            raise refusal(answer, f"push to {target}")
        await self._cancel(target, answer)

    async def refuses_uploads(self, target: ImageReference) -> bool:
        """Whether the registry is read-only: it answers 405 and allows reading alone, as distribution does while `maintenance.readonly` is on.
        False: it began an upload, which was cancelled. Any other answer (401, 404, a proxy's) proves neither: RegistryError.
        """
        answer = await self._begin(target, "", scope_of(target, "pull", "push"))
        if answer.status == 202:
            await self._cancel(target, answer)
            return False
        allowed = {method.strip().upper() for method in answer.headers.get("allow", "").split(",")} - {""}
        if answer.status == 405 and allowed and allowed <= {"GET", "HEAD"}:
            return True
        raise refusal(answer, f"see whether {target.registry} takes uploads")

    async def mount(self, target: ImageReference, blob: Descriptor, source: str) -> bool:
        """Have a blob of the repository `source` of the same registry in the target's too, without sending it. False: the registry would not.

        RegistryDenied: the credential of the target may not read the source; ManifestUnknown, RegistryConfused: it is refused all the same.
        """
        repository = path_of(target.registry, source)
        answer = await self._begin(
            target, f"?mount={blob.digest}&from={repository}", scope_of(target, "pull", "push"), Scope(repository, ("pull",))
        )
        if answer.status == 201:
            return True
        if answer.status == 202:  # it began an upload instead
            await self._cancel(target, answer)
            return False
        raise refusal(answer, f"mount {blob.digest} from {source} in {target.name}")

    async def push_blob(self, target: ImageReference, blob: Descriptor, pieces: AsyncIterable[bytes]) -> None:
        """Store a blob in the target's repository, in one upload of exactly its size. RegistryConfused: the bytes have another digest."""
        scope = scope_of(target, "pull", "push")
        answer = await self._begin(target, "", scope)
        if answer.status != 202:
            raise refusal(answer, f"push to {target.name}")
        place = self._place(target, answer)
        if place is None:
            raise RegistryConfused(f"{target.registry} names another host for the upload")
        path = f"{place}{'&' if '?' in place else '?'}digest={blob.digest}"
        answer = await self._authorizer.upload(
            target.registry,
            path,
            scope,
            content=_exactly(pieces, blob.size),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)},
        )
        if answer.status not in (201, 204):
            raise refusal(answer, f"push the blob {blob.digest} to {target.name}")

    async def _delete(self, image: ImageReference) -> Answer:
        return await self._authorizer.send("DELETE", image.registry, manifest_path(image), scope_of(image, "delete"))

    async def _begin(self, target: ImageReference, query: str, *scopes: Scope) -> Answer:
        path = f"/v2/{path_of(target.registry, target.repository)}/blobs/uploads/{query}"
        return await self._authorizer.send("POST", target.registry, path, *scopes, headers={"Content-Length": "0"})

    async def _cancel(self, target: ImageReference, begun: Answer) -> None:
        """Where a cancel is refused (distribution wants the right to delete for it) the empty upload lapses by itself."""
        if place := self._place(target, begun):
            with contextlib.suppress(RegistryError):
                await self._authorizer.send("DELETE", target.registry, place, scope_of(target, "delete"))

    def _place(self, target: ImageReference, begun: Answer) -> str | None:
        path = f"/v2/{path_of(target.registry, target.repository)}/blobs/uploads/"
        return local_path(self._wire.base(target.registry), path, begun.headers.get("location", ""))


def _deletes_by_digest_only(answer: Answer) -> bool:
    """How registries refuse a tag: distribution 2.8 as no digest, Harbor as not supported."""
    return answer.status == 400 and {code for code, _ in answer.errors} <= {
        "DIGEST_INVALID",
        "MANIFEST_INVALID",
        "TAG_INVALID",
        "UNSUPPORTED",
    }


async def _exactly(pieces: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The pieces, which must be as many bytes as were announced: else the connection would wait for the rest."""
    sent = 0
    async for piece in pieces:
        sent += len(piece)
        if sent > size:
            break
        yield piece
    if sent != size:
        raise RegistryConfused(f"a blob of {size} bytes was to be sent, and {sent} came")
