"""Why each tag of a repository stays by itself: the policy's rules, its age, its place among the newest, and what the world outside uses.

What stays because something else does is found afterwards, from the connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ledger.patterns import tag_pattern
from ledger.retention import Retention
from worker.retention.decisions import Reason, Why
from worker.retention.inventory import Tag, credible
from worker.retention.policy import kept_by, newest_images, rule_words, younger
from worker.retention.protection import Protected, Web

Held = Mapping[str, tuple[Reason, ...]]
"""Why digests stay for reasons outside of the registry."""


def newest_first(web: Web, now: datetime) -> list[Tag]:
    """The tags that people set, in the order that rules count in; ties by name. At the end those without a time that can be one."""
    tags = sorted((tag for tags in web.tags.values() for tag in tags), key=lambda tag: tag.name)
    timed: list[Tag] = []
    untimed: list[Tag] = []
    for tag in tags:
        if credible(tag.pushed, now) is not None:
            timed.append(tag)
        else:
            untimed.append(tag if tag.pushed is None else replace(tag, pushed=None, origin=None))
    timed.sort(key=lambda tag: tag.pushed, reverse=True)  # type: ignore[arg-type, return-value]
    return timed + untimed


def held_outside(web: Web, protected: Protected) -> Held:
    """Digests of a repository that are used outside, and every index that holds one: it may be used through that."""
    held: dict[str, tuple[Reason, ...]] = {}
    for mark in sorted(protected.marks):
        if mark in web.manifests or mark in web.parents:
            reasons = protected.reasons(mark)
            for digest in (mark, *sorted(web.holders(mark))):
                held[digest] = (*held.get(digest, ()), *reasons)
    return held


def reasons_to_stay(
    policy: Retention, tags: Sequence[Tag], repository: str, protected: Protected, held: Held, now: datetime
) -> list[list[Reason]]:
    """For each of the tags, newest first, every reason to stay that does not come from others. None: it is condemned."""
    found: list[list[Reason]] = [[] for _ in tags]
    every = range(len(tags))
    for rule, words in zip(policy.keep, rule_words(policy), strict=True):
        _note(found, kept_by(rule, tags, now), Reason(Why.RULE, words))
    _note(found, newest_images(policy.minimum, tags, every), Reason(Why.MINIMUM, f"the newest {policy.minimum} stay"))
    _note(found, younger(policy.grace_age, tags, every, now), Reason(Why.GRACE, f"pushed within {policy.grace}"))
    for pattern in policy.protect:
        matches = tag_pattern(pattern)
        _note(found, (place for place, tag in enumerate(tags) if matches(tag.name)), Reason(Why.PROTECTED, f"protect: {pattern}"))
    may_go = [tag_pattern(pattern) for pattern in policy.delete]
    default, untimed, names = Reason(Why.NO_POLICY, "no pattern of `delete` names it"), Reason(Why.UNKNOWN_TIME), protected.marks
    for tag, reasons in zip(tags, found, strict=True):
        if not any(matches(tag.name) for matches in may_go):
            reasons.append(default)
        if tag.digest in held:
            reasons += held[tag.digest]
        if names and (name := f"{repository}:{tag.name}") in names:
            reasons += protected.reasons(name)
        if tag.pushed is None:
            reasons.append(untimed)
    return found


def missing_time(policy: Retention, tags: Sequence[Tag]) -> Tag | None:
    """A tag, newest first, that may go by its name and whose time nobody knows. What rules say of it does not count: one more never frees others."""
    may_go = [tag_pattern(pattern) for pattern in policy.delete]
    for tag in reversed(tags):
        if tag.pushed is not None:
            break
        if any(matches(tag.name) for matches in may_go):
            return tag
    return None


def _note(found: list[list[Reason]], places: Iterable[int], reason: Reason) -> None:
    for place in places:
        found[place].append(reason)
