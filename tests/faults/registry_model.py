"""What a repository holds and who needs it, as somebody knows who pushed it all: the measure of what retention may take away.

It says less than the rules do: only what must stay. What may go is the rest.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.integration.registry_server import digest_of
from worker.registry.manifests import signature_subject


@dataclass(frozen=True)
class Known:
    """A manifest that was pushed."""

    raw: bytes
    dated: bool = False
    """Whether it tells a time that can be one."""

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.raw))

    @property
    def media_type(self) -> str:
        return str(self.body["mediaType"])

    @property
    def children(self) -> list[str]:
        return [child["digest"] for child in self.body.get("manifests", ())]

    @property
    def blobs(self) -> list[str]:
        body = self.body
        return [part["digest"] for part in (*([body["config"]] if "config" in body else ()), *body.get("layers", ()))]

    @property
    def subject(self) -> str | None:
        return (self.body.get("subject") or {}).get("digest")


@dataclass
class RegistryModel:
    """One repository."""

    name: str
    """With its registry."""
    manifests: dict[str, Known] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Of people: all but the quarantine's."""
    undated: set[str] = field(default_factory=set)
    """Tags that were there at the first look and have not been touched since: if nothing tells their age, nobody knows it."""

    def add(self, raw: bytes, tag: str | None = None, *, dated: bool = False) -> str:
        digest = digest_of(raw)
        self.manifests[digest] = Known(raw, dated or (digest in self.manifests and self.manifests[digest].dated))
        if tag is not None:
            self.put(tag, digest)
        return digest

    def put(self, tag: str, digest: str) -> None:
        self.tags[tag] = digest
        self.undated.discard(tag)

    def above(self, digest: str) -> set[str]:
        """The indexes that hold a digest, through any number of others."""
        found: set[str] = set()
        ahead = [digest]
        while ahead:
            child = ahead.pop()
            holders = {one for one, known in self.manifests.items() if child in known.children} - found
            found |= holders
            ahead += holders
        return found

    def needed(self, seeds: Iterable[str]) -> set[str]:
        """Everything that the seeds hold, and what is about any of it."""
        found: set[str] = set()
        ahead = [digest for digest in seeds if digest in self.manifests]
        while ahead:
            digest = ahead.pop()
            if digest in found:
                continue
            found.add(digest)
            ahead += [child for child in self.manifests[digest].children if child in self.manifests]
            ahead += [one for one, known in self.manifests.items() if known.subject == digest]
            ahead += [to for tag, to in self.tags.items() if signature_subject(tag) == digest and to in self.manifests]
        return found

    def used(self, marks: Iterable[str]) -> set[str]:
        """The digests that somebody outside uses: those that are named by their tag, and those named by themselves with the indexes that
        hold them, by which they may be used.
        """
        prefix = f"{self.name}:"
        named = {
            self.tags[mark.removeprefix(prefix)] for mark in marks if mark.startswith(prefix) and mark.removeprefix(prefix) in self.tags
        }
        direct = {mark for mark in marks if mark in self.manifests}
        return named.union(direct, *(self.above(digest) for digest in direct))

    def must_stay(self, marks: Iterable[str]) -> set[str]:
        """The digests whose every byte must be there now."""
        return self.needed({*self.tags.values(), *self.used(marks)})

    def spared(self, policy: Mapping[str, Any], marks: Iterable[str], pushes: Mapping[str, tuple[str, datetime]]) -> set[str]:
        """The tags that must stay, by the policy and by who uses them. `pushes`: what is on record of each tag."""
        marks = set(marks)
        people = {tag: digest for tag, digest in self.tags.items() if signature_subject(tag) is None}
        at = {tag: pushes[tag][1] for tag, digest in people.items() if tag in pushes and pushes[tag][0] == digest}
        named = {tag for tag in people if any(fnmatch.fnmatchcase(tag, pattern) for pattern in policy["delete"])}
        if any(tag in self.undated and tag not in at and not self._tells_a_time(people[tag]) for tag in named):
            return set(self.tags)
        kept = people.keys() - named
        kept |= {tag for tag in people if any(fnmatch.fnmatchcase(tag, pattern) for pattern in policy.get("protect", ()))}
        kept |= {tag for tag, digest in people.items() if f"{self.name}:{tag}" in marks}
        outside = {mark for mark in marks if mark in self.manifests}
        outside = outside.union(*(self.above(digest) for digest in outside))
        kept |= {tag for tag, digest in people.items() if digest in outside}
        for rule in (*policy["keep"], {"last": 1}):  # the minimum
            of = {tag for tag in people if not rule.get("tags") or any(fnmatch.fnmatchcase(tag, pattern) for pattern in rule["tags"])}
            if "matching" in rule:
                kept |= {tag for tag in people if any(fnmatch.fnmatchcase(tag, pattern) for pattern in rule["matching"])}
            elif at.keys() == people.keys():
                newest: dict[str, datetime] = {}
                for tag in of:
                    newest[people[tag]] = max(at[tag], newest.get(people[tag], at[tag]))
                threshold = sorted(newest.values(), reverse=True)[: rule["last"]]
                kept |= {tag for tag in of if threshold and newest[people[tag]] >= threshold[-1]}
        whole = self.needed({people[tag] for tag in kept} | outside)
        for tag in self.tags.keys() - people.keys():
            subject = signature_subject(tag)
            if subject not in self.manifests or subject in whole or self.tags[tag] in outside or f"{self.name}:{tag}" in marks:
                kept.add(tag)
        return kept

    def _tells_a_time(self, digest: str) -> bool:
        """Whether anything in it does; of an index, any of its images."""
        known = self.manifests[digest]
        return known.dated or any(self._tells_a_time(child) for child in known.children if child in self.manifests)
