"""What must stay whatever the rules say: what the world outside uses, and what hangs together with anything that stays.

An index holds its manifests, a manifest its referrers and signatures; nothing that stays ever loses a part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from worker.registry.manifests import signature_subject
from worker.retention.decisions import Reason, Why
from worker.retention.inventory import Repository, Stored, Tag

QUARANTINE = "crabpot-quarantine-"
"""How the tags begin that hold what a plan deleted until its undo window ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """What is used outside of the registry: by digest, or by name as `registry/repository:tag` (see `ImageReference.mark`), and who says so."""

    running: Mapping[str, str] = field(default_factory=dict)
    """In a cluster: pods, and the templates of what makes pods."""
    pinned: Mapping[str, str] = field(default_factory=dict)
    in_flight: Mapping[str, str] = field(default_factory=dict)
    """Made or to be tagged by builds that have not ended."""
    answered: tuple[str, ...] = ()
    """The clusters that said what runs there."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """The clusters that should have and did not, and why."""

    def reasons(self, mark: str) -> tuple[Reason, ...]:
        """Why a digest or name must stay."""
        sources = ((Why.RUNNING, self.running), (Why.PINNED, self.pinned), (Why.IN_FLIGHT, self.in_flight))
        return tuple(Reason(why, marks[mark]) for why, marks in sources if mark in marks)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset((*self.running, *self.pinned, *self.in_flight))


def silence_of(cluster: str, why: str = "") -> str:
    """Why somebody has to approve what a cluster said nothing about; without the reason, how all such begin."""
    return f"the cluster {cluster} did not say what runs there" + (f": {why}" if why else "")


@dataclass(slots=True)
class Web:
    """How the manifests of a repository hang together, by digest."""

    manifests: dict[str, Stored]
    tags: list[Tag] = field(default_factory=list)
    """The tags that people set."""
    parents: dict[str, list[str]] = field(default_factory=dict)
    signatures: dict[str, list[Tag]] = field(default_factory=dict)
    """Signatures' tags, by the digest that they are about."""
    quarantined: list[Tag] = field(default_factory=list)
    holds: dict[str, list[tuple[str, Why]]] = field(default_factory=dict)
    """What stays because a digest does."""

    @classmethod
    def of(cls, repository: Repository) -> Web:
        web = cls({manifest.digest: manifest for manifest in repository.manifests})
        for tag in repository.tags:
            if tag.name.startswith(QUARANTINE):
                web.quarantined.append(tag)
            elif tag.name.startswith("sha256-") and (subject := signature_subject(tag.name)):
                web.signatures.setdefault(subject, []).append(tag)
                web.holds.setdefault(subject, []).append((tag.digest, Why.SIGNATURE))
            else:
                web.tags.append(tag)
        for manifest in repository.manifests:
            if manifest.children:
                for child in manifest.children:
                    web.parents.setdefault(child, []).append(manifest.digest)
                web.holds.setdefault(manifest.digest, []).extend((child, Why.INDEX_CHILD) for child in manifest.children)
            if manifest.subject is not None:
                web.holds.setdefault(manifest.subject, []).append((manifest.digest, Why.REFERRER))
        for connected in (*web.parents.values(), *web.holds.values()):
            connected.sort()  # type: ignore[attr-defined]
        web.signatures = {subject: sorted(web.signatures[subject], key=lambda tag: tag.name) for subject in sorted(web.signatures)}
        return web

    def meant(self, marks: Collection[str]) -> list[tuple[str, str]]:
        """The digests of this repository that marks mean, as (mark, digest). A container runtime may know an image by the digest of its configuration
        alone (containerd's `imageID` of one that it did not pull by name): that means every manifest with this configuration.
        """
        known = [(mark, mark) for mark in marks if mark in self.manifests or mark in self.parents]
        # A manifest's configuration is the first of its blobs.
        built = [(one.blobs[0].digest, one.digest) for one in self.manifests.values() if one.blobs and one.blobs[0].digest in marks]
        return sorted((*known, *built))

    def untagged(self) -> list[Stored]:
        """The manifests without a tag of any kind, by digest."""
        tagged = {tag.digest for tag in self.tags}
        tagged.update(tag.digest for tags in self.signatures.values() for tag in tags)
        tagged.update(tag.digest for tag in self.quarantined)
        return sorted((one for one in self.manifests.values() if one.digest not in tagged), key=lambda one: one.digest)

    def part_of(self, manifest: Stored) -> list[str]:
        """The indexes that hold a manifest, and what it refers to, as far as they are here."""
        above = list(self.parents.get(manifest.digest, ()))
        return [*above, manifest.subject] if manifest.subject is not None and manifest.subject in self.manifests else above

    def strays(self) -> dict[str, str]:
        """What refers to something that is not here, and to what."""
        return {one.digest: one.subject for one in self.manifests.values() if one.subject is not None and one.subject not in self.manifests}

    def holders(self, digest: str) -> set[str]:
        """The indexes that hold a digest, through any number of others."""
        found: set[str] = set()
        ahead = [digest]
        while ahead:
            above = [parent for parent in self.parents.get(ahead.pop(), ()) if parent not in found]
            found.update(above)
            ahead += above
        return found

    def closure(self, seeds: Iterable[str]) -> dict[str, tuple[Reason, ...]]:
        """Everything that stays because of the seeds, each with all reasons that come from its connections (a seed may have none)."""
        kept: dict[str, tuple[Reason, ...]] = dict.fromkeys(seeds, ())
        ahead = deque(sorted(digest for digest in self.holds if digest in kept))
        while ahead:
            digest = ahead.popleft()
            for other, why in self.holds[digest]:
                if other not in kept and other in self.holds:
                    ahead.append(other)
                kept[other] = (*kept.get(other, ()), Reason(why, digest))
        return kept

    def in_order(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Digests so that each comes after all that it hangs on; among equals the given order."""
        above = dict.fromkeys(digests, 0)
        linked = [digest for digest in above if digest in self.holds]
        for digest in linked:
            for other, _ in self.holds[digest]:
                if other in above:
                    above[other] += 1
        ordered = [digest for digest, count in above.items() if not count]
        ahead = deque(digest for digest in ordered if digest in self.holds)
        while ahead:
            for other, _ in self.holds[ahead.popleft()]:
                if other in above:
                    above[other] -= 1
                    if not above[other]:
                        ordered.append(other)
                        if other in self.holds:
                            ahead.append(other)
        placed = set(ordered)
        return (*ordered, *(digest for digest in above if digest not in placed))
