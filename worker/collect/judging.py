"""What a dry run said, held against what every tag needs: a sweep that would delete any of that is not begun. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_COUNTS = re.compile(r"(\d+) blobs marked, (\d+) blobs and (\d+) manifests eligible for deletion")
_BLOB = re.compile(r"blob eligible for deletion: (sha256:[0-9a-f]{64})")
_LINK = re.compile(r"(\S+): layer link eligible for deletion: (sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Needed:
    """What the tags of a repository need: every manifest through all indexes, and every blob of those. Blobs with their sizes."""

    manifests: frozenset[str] = frozenset()
    blobs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Eligible:
    """What the registry's own dry run would delete."""

    marked: int
    blobs: frozenset[str]
    links: frozenset[tuple[str, str]]
    """Repository (its path) and digest: distribution 3 also takes links to layers away."""
    manifests: int


def read_dry_run(output: str) -> Eligible | str:
    """What `registry garbage-collect --dry-run` printed (distribution 2.8 and 3.1); or why it cannot be relied on."""
    counts = _COUNTS.findall(output)
    if len(counts) != 1:
        return f"the dry run did not come to its end: {_last(output)}"
    marked, blobs, manifests = (int(number) for number in counts[0])
    found = _BLOB.findall(output)
    if len(found) != blobs or len(set(found)) != blobs:
        return f"the dry run counts {blobs} blobs to delete and names {len(set(found))}"
    return Eligible(marked, frozenset(found), frozenset(_LINK.findall(output)), manifests)


def judge(eligible: Eligible, needed: Mapping[str, Needed]) -> str | None:
    """Why the sweep must not be; None: it deletes nothing that a tag needs."""
    if eligible.manifests:
        return f"{eligible.manifests} manifests would be deleted, and a collection deletes none: look for --delete-untagged in the registry's settings"
    wanted: dict[str, str] = {}
    for repository, one in needed.items():
        for digest in (*one.manifests, *one.blobs):
            wanted.setdefault(digest, repository)
    lost = sorted(eligible.blobs & wanted.keys())
    if lost:
        return f"{len(lost)} blobs that tags need would be deleted, as {lost[0]} of {wanted[lost[0]]}; nothing was deleted"
    unlinked = sorted((repository, digest) for repository, digest in eligible.links if digest in needed.get(repository, Needed()).blobs)
    if unlinked:
        repository, digest = unlinked[0]
        return f"{len(unlinked)} layers would be taken from repositories that need them, as {digest} of {repository}; nothing was deleted"
    if eligible.marked < len(wanted):
        return f"the registry knows {eligible.marked} blobs to be used, and its tags need {len(wanted)}; nothing was deleted"
    return None


def merged(*found: Mapping[str, Needed]) -> dict[str, Needed]:
    """What any of them needs."""
    result: dict[str, Needed] = {}
    for one in found:
        for repository, needed in one.items():
            before = result.get(repository, Needed())
            result[repository] = Needed(before.manifests | needed.manifests, {**before.blobs, **needed.blobs})
    return result


def _last(lines: str) -> str:
    said: Iterable[str] = [line for line in lines.splitlines() if line.strip()][-2:]
    return " / ".join(said)[:300] or "it printed nothing"
