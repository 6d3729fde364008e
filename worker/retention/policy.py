"""What a retention policy means for the tags of a repository: pure, with the moment as a parameter.

Each rule gives the tags that it keeps; what stays is what any of them keeps. Whatever cannot be judged is kept. So adding a rule, or a tag
without a time, never makes another tag go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from ledger.patterns import branch_template, is_plain, repository_pattern, tag_pattern
from ledger.projects import ProjectSettings
from ledger.quantities import parse_duration
from ledger.retention import Keep, Retention
from worker.retention.inventory import Origin, Tag, last_use

_VERSION = re.compile(r"v?(\d{1,18})\.(\d{1,18})\.(\d{1,18})([-_+.][0-9A-Za-z._+-]+)?", re.ASCII)
_LINE = re.compile(r"v?(\d{1,18})(?:\.(\d{1,18}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of all projects, in the order of the projects file."""

    entries: tuple[tuple[str, Retention], ...] = ()

    @classmethod
    def of(cls, projects: Mapping[str, ProjectSettings]) -> Policies:
        return cls(tuple((name, policy) for name, project in projects.items() for policy in project.retention))

    def naming(self, repository: str) -> tuple[tuple[str, Retention], ...]:
        """The first policy of each project that names a repository (`registry/path`). More than one means that projects disagree who cares for it."""
        found: dict[str, Retention] = {}
        for project, policy in self.entries:
            if project not in found and any(repository_pattern(pattern)(repository) for pattern in policy.repositories):
                found[project] = policy
        return tuple(found.items())

    def asks_for_pulls(self, repository: str) -> bool:
        """Whether a policy that names a repository wants to know when its tags were pulled."""
        return any(policy.asks_for_pulls for _, policy in self.naming(repository))

    def plain_names(self) -> frozenset[str]:
        """Repositories that policies name without a pattern: they need no catalog to be found."""
        return frozenset(pattern for _, policy in self.entries for pattern in policy.repositories if is_plain(pattern))

    def registries(self) -> tuple[str, ...]:
        """The registries that policies name. A pattern names its registry without `*`, or it would be any."""
        hosts = {pattern.partition("/")[0] for _, policy in self.entries for pattern in policy.repositories}
        return tuple(sorted(host for host in hosts if host and not set("*?") & set(host)))

    def has_patterns(self) -> bool:
        """Whether some policy names repositories by a pattern, so that they must be listed to be found."""
        return not all(is_plain(pattern) for _, policy in self.entries for pattern in policy.repositories)


def rule_words(policy: Retention) -> tuple[str, ...]:
    """Each rule to keep as a plan tells of it: its place in the policy, and what it says."""
    return tuple(f"keep.{number}: {_words(rule)}" for number, rule in enumerate(policy.keep))


def kept_by(rule: Keep, newest_first: Sequence[Tag], now: datetime) -> Iterable[int]:
    """Which tags a rule keeps, by their places in a list sorted by the time of their push, newest first; no time is known of the last ones."""
    looked_at = _scope(rule, newest_first)
    if rule.last is not None and rule.per_branch is not None:
        return _last_of_branches(rule.last, rule.per_branch, newest_first, looked_at)
    if rule.last is not None:
        return newest_images(rule.last, newest_first, looked_at)
    if rule.within is not None:
        return younger(timedelta(seconds=parse_duration(rule.within)), newest_first, looked_at, now)
    if rule.pulled is not None:
        return _used_since(now - timedelta(seconds=parse_duration(rule.pulled)), newest_first, looked_at, now)
    if rule.versions is not None:
        return _versions(rule, newest_first, looked_at)
    return looked_at


def of_unknown_use(policy: Retention, newest_first: Sequence[Tag], now: datetime) -> Iterable[int]:
    """The places of the tags that a rule `pulled` keeps because nobody knows when they were used last."""
    rules = [rule for rule in policy.keep if rule.pulled is not None]
    found = {place for rule in rules for place in _scope(rule, newest_first) if last_use(newest_first[place], now) is None}
    return sorted(found)


def newest_images(count: int, newest_first: Sequence[Tag], looked_at: Sequence[int]) -> Iterator[int]:
    """All tags of the newest so many digests; with the last of them all that were pushed at the same time, and all whose time is not known.

    One whose time nobody knew when it was adopted may be among the newest until so many came after its adoption, and takes no other's place.
    """
    digests = {newest_first[place].digest for place in _untimed(newest_first, looked_at)}
    images, boundary = set[str](), None
    for place in looked_at:
        tag = newest_first[place]
        if tag.pushed is None or (len(images) == count and tag.pushed != boundary):
            break
        if tag.origin is not Origin.ADOPTED and tag.digest not in images and len(images) < count:
            boundary = tag.pushed
            images.add(tag.digest)
        digests.add(tag.digest)
    return (place for place in looked_at if newest_first[place].digest in digests)


def younger(age: timedelta, newest_first: Sequence[Tag], looked_at: Sequence[int], now: datetime) -> Iterator[int]:
    """What was pushed within a time, or nobody knows when."""
    since = now - age
    yield from takewhile(lambda place: (at := newest_first[place].pushed) is not None and at >= since, looked_at)
    yield from _untimed(newest_first, looked_at)


def _used_since(since: datetime, tags: Sequence[Tag], looked_at: Iterable[int], now: datetime) -> Iterator[int]:
    """What was pulled or pushed since then, or nobody knows when."""
    return (place for place in looked_at if (at := last_use(tags[place], now)) is None or at >= since)


def _untimed(newest_first: Sequence[Tag], looked_at: Sequence[int]) -> Iterator[int]:
    """They are the last ones."""
    return takewhile(lambda place: newest_first[place].pushed is None, reversed(looked_at))


def first_matches(patterns: Sequence[str], tags: Sequence[Tag]) -> list[int]:
    """For each tag the place of the first pattern that names it, -1 for none."""
    found = [-1] * len(tags)
    for number, pattern in enumerate(patterns):
        matches = tag_pattern(pattern)
        for place, tag in enumerate(tags):
            if found[place] < 0 and matches(tag.name):
                found[place] = number
    return found


def _scope(rule: Keep, tags: Sequence[Tag]) -> Sequence[int]:
    patterns = [tag_pattern(pattern) for pattern in rule.matching or rule.tags]
    if not patterns:
        return range(len(tags))
    if len(patterns) == 1:
        [matches] = patterns
        return [place for place, tag in enumerate(tags) if matches(tag.name)]
    return [place for place, tag in enumerate(tags) if any(matches(tag.name) for matches in patterns)]


def _last_of_branches(count: int, template: str, newest_first: Sequence[Tag], looked_at: Sequence[int]) -> Iterator[int]:
    """The newest images of each branch. A tag whose branch cannot be told stays."""
    branch_of = branch_template(template)
    branches: dict[str, list[int]] = {}
    for place in looked_at:
        tag = newest_first[place]
        branch = tag.branch or branch_of(tag.name)
        if branch is None:
            yield place
        else:
            branches.setdefault(branch, []).append(place)
    for places in branches.values():
        yield from newest_images(count, newest_first, places)


def _versions(rule: Keep, tags: Sequence[Tag], looked_at: Iterable[int]) -> Iterator[int]:
    """The highest versions of each line, and the tags that name a line of a version that stays."""
    assert rule.versions is not None
    found: dict[int, tuple[int, int, int]] = {}
    lines: dict[int, tuple[int, ...]] = {}
    for place in looked_at:
        name = tags[place].name
        if (match := _VERSION.fullmatch(name)) and (rule.suffixes or match[4] is None):
            found[place] = (int(match[1]), int(match[2]), int(match[3]))
        elif match := _LINE.fullmatch(name):
            lines[place] = tuple(int(part) for part in match.groups() if part is not None)
    depth = {"major": 1, "minor": 2, None: 0}[rule.per]
    groups: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for version in set(found.values()):
        groups.setdefault(version[:depth], []).append(version)
    kept = {version for versions in groups.values() for version in sorted(versions, reverse=True)[: rule.versions]}
    yield from (place for place, version in found.items() if version in kept)
    prefixes = {version[:length] for version in kept for length in (1, 2)}
    yield from (place for place, line in lines.items() if line in prefixes)


def _words(rule: Keep) -> str:
    among = f" of {' '.join(rule.tags)}" if rule.tags else ""
    if rule.last is not None:
        return f"last {rule.last}{f' per {rule.per_branch}' if rule.per_branch else ''}{among}"
    if rule.within is not None:
        return f"within {rule.within}{among}"
    if rule.pulled is not None:
        return f"pulled {rule.pulled}{among}"
    if rule.versions is not None:
        return f"{rule.versions} versions{f' per {rule.per}' if rule.per else ''}{among}"
    return f"matching {' '.join(rule.matching or ())}"
