"""What must stay whatever the rules say: what the world outside uses, and what hangs together with anything that stays.

An index holds its manifests, a manifest its referrers and signatures; nothing that stays ever loses a part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ledger.references import ImageReference
from worker.registry.manifests import signature_subject
from worker.retention.decisions import Reason, Why
from worker.retention.inventory import Repository, Stored, Tag

QUARANTINE = "crabpot-quarantine-"
"""How the tags begin that hold what a plan deleted until its undo window ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """What is used outside of the registry: by digest, or by name as `registry/repository:tag` (see `mark_of`), and who says so."""

    running: Mapping[str, str] = field(default_factory=dict)
    """In a cluster: pods, and the templates of what makes pods."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    in_flight: Mapping[str, str] = field(default_factory=dict)
    """Made or to be tagged by builds that have not ended."""
    answered: tuple[str, ...] = ()
    """The clusters that said what runs there."""
    silent: tuple[str, ...] = ()
    """The clusters that should have, and did not."""

    def reasons(self, mark: str) -> tuple[Reason, ...]:
        """Why a digest or name must stay."""
        sources = ((Why.RUNNING, self.running), (Why.PINNED, self.pinned), (Why.IN_FLIGHT, self.in_flight))
        return tuple(Reason(why, marks[mark]) for why, marks in sources if mark in marks)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset((*self.running, *self.pinned, *self.in_flight))


def mark_of(image: ImageReference) -> str:
    """How an image that somebody uses is named here: its digest, which tags may leave, else its name and tag."""
    return image.digest or f"{image.name}:{image.reference}"


@dataclass(slots=True)
class Web:
    """How the manifests of a repository hang together, by digest."""

    manifests: dict[str, Stored]
    tags: dict[str, list[Tag]] = field(default_factory=dict)
    """The tags that people set, on their digests."""
    parents: dict[str, list[str]] = field(default_factory=dict)
    referrers: dict[str, list[str]] = field(default_factory=dict)
    signatures: dict[str, list[Tag]] = field(default_factory=dict)
    """Signatures' tags, by the digest that they are about."""
    quarantined: list[Tag] = field(default_factory=list)

    @classmethod
    def of(cls, repository: Repository) -> Web:
        web = cls({manifest.digest: manifest for manifest in repository.manifests})
        for tag in repository.tags:
            if tag.name.startswith(QUARANTINE):
                web.quarantined.append(tag)
            elif subject := signature_subject(tag.name) if tag.name.startswith("sha256-") else None:
                web.signatures.setdefault(subject, []).append(tag)
            else:
                web.tags.setdefault(tag.digest, []).append(tag)
        for manifest in repository.manifests:
            for child in manifest.children:
                web.parents.setdefault(child, []).append(manifest.digest)
            if manifest.subject is not None:
                web.referrers.setdefault(manifest.subject, []).append(manifest.digest)
        return web

    def tagged(self) -> set[str]:
        """Every digest that has a tag of any kind."""
        signed = {tag.digest for tags in self.signatures.values() for tag in tags}
        return signed | set(self.tags) | {tag.digest for tag in self.quarantined}

    def hangs_on(self, digest: str) -> list[tuple[str, Why]]:
        """What stays because a digest does."""
        manifest = self.manifests.get(digest)
        held = [(child, Why.INDEX_CHILD) for child in manifest.children] if manifest and manifest.children else []
        if digest in self.referrers:
            held += ((referrer, Why.REFERRER) for referrer in self.referrers[digest])
        if digest in self.signatures:
            held += ((tag.digest, Why.SIGNATURE) for tag in self.signatures[digest])
        return held

    def holders(self, digest: str) -> set[str]:
        """The indexes that hold a digest, through any number of others."""
        found: set[str] = set()
        ahead = [digest]
        while ahead:
            above = [parent for parent in self.parents.get(ahead.pop(), ()) if parent not in found]
            found.update(above)
            ahead += above
        return found

    def closure(self, seeds: Iterable[str]) -> dict[str, list[Reason]]:
        """Everything that stays because of the seeds, each with all reasons that come from its connections (a seed may have none)."""
        kept: dict[str, list[Reason]] = {seed: [] for seed in seeds}
        ahead = deque(kept)
        while ahead:
            digest = ahead.popleft()
            for other, why in self.hangs_on(digest):
                if other not in kept:
                    kept[other] = []
                    ahead.append(other)
                kept[other].append(Reason(why, digest))
        return kept

    def in_order(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Digests so that each comes after all that it hangs on; among equals the given order."""
        waiting = dict.fromkeys(digests, 0)
        for digest in waiting:
            for other, _ in self.hangs_on(digest):
                if other in waiting:
                    waiting[other] += 1
        ordered = [digest for digest, above in waiting.items() if not above]
        for digest in ordered:
            for other, _ in self.hangs_on(digest):
                if other in waiting:
                    waiting[other] -= 1
                    if not waiting[other]:
                        ordered.append(other)
        placed = set(ordered)
        return (*ordered, *(digest for digest in waiting if digest not in placed))
