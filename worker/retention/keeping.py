"""Why each tag of a repository stays by itself: the policy's rules, its age, its place among the newest, and what the world outside uses.

What stays because something else does is found afterwards, from the connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ledger.ages import credible
from ledger.patterns import tag_pattern
from ledger.references import marked_name
from ledger.retention import Retention
from worker.retention.decisions import Reason, Why
from worker.retention.inventory import Repository, Tag
from worker.retention.policy import kept_by, newest_images, of_unknown_use, rule_words, younger
from worker.retention.protection import Protected, Web

Held = Mapping[str, tuple[Reason, ...]]
"""Why digests stay for reasons outside of the registry."""


class Tally:
    """The reasons for each of many tags. Few combinations of reasons occur, so each is held once and a tag has its number."""

    def __init__(self, tags: int) -> None:
        self._numbers = [0] * tags
        self._combinations: list[tuple[Reason, ...]] = [()]
        self._known: dict[tuple[Reason, ...], int] = {(): 0}

    def __getitem__(self, place: int) -> tuple[Reason, ...]:
        return self._combinations[self._numbers[place]]

    def note(self, places: Iterable[int], *reasons: Reason) -> None:
        """More reasons for the tags at these places."""
        numbers, joined = self._numbers, dict[int, int]()
        for place in places:
            before = numbers[place]
            after = joined.get(before)
            if after is None:
                after = joined[before] = self._number((*self._combinations[before], *reasons))
            numbers[place] = after

    def without(self) -> list[int]:
        """The places of the tags without any reason."""
        return [place for place, number in enumerate(self._numbers) if not number]

    def _number(self, combination: tuple[Reason, ...]) -> int:
        number = self._known.get(combination)
        if number is None:
            number = self._known[combination] = len(self._combinations)
            self._combinations.append(combination)
        return number


def newest_first(web: Web, now: datetime) -> list[Tag]:
    """The tags that people set, in the order that rules count in; ties by name. At the end those without a time that can be one."""
    timed: list[Tag] = []
    untimed: list[Tag] = []
    for tag in sorted(web.tags, key=lambda tag: tag.name):
        if credible(tag.pushed, now) is not None:
            timed.append(tag)
        else:
            untimed.append(tag if tag.pushed is None else replace(tag, pushed=None, origin=None))
    timed.sort(key=lambda tag: tag.pushed, reverse=True)  # type: ignore[arg-type, return-value]
    return timed + untimed


def held_outside(web: Web, protected: Protected) -> Held:
    """Digests of a repository that are needed outside of it: used by somebody, with every index that holds them (they may be used through
    that), or about something that is not known here.
    """
    held: dict[str, tuple[Reason, ...]] = {}
    for mark, meant in web.meant(protected.marks):
        reasons = protected.reasons(mark)
        for digest in (meant, *sorted(web.holders(meant))):
            held[digest] = (*held.get(digest, ()), *reasons)
    for digest, subject in web.strays().items():
        held[digest] = (*held.get(digest, ()), Reason(Why.REFERRER, f"{subject}, which is not known here"))
    return held


def reasons_to_stay(
    policy: Retention, tags: Sequence[Tag], named: Sequence[int], repository: Repository, protected: Protected, held: Held, now: datetime
) -> Tally:
    """For each of a repository's tags, newest first, every reason to stay that does not come from others. None: it is condemned.

    `named` is the place of the pattern of `delete` that names each tag, -1 where none does.
    """
    found, every = Tally(len(tags)), range(len(tags))
    for rule, words in zip(policy.keep, rule_words(policy), strict=True):
        found.note(kept_by(rule, tags, now), Reason(Why.RULE, words))
    found.note(of_unknown_use(policy, tags, now), Reason(Why.UNKNOWN_PULL, repository.untold or ""))
    found.note(newest_images(policy.minimum, tags, every), Reason(Why.MINIMUM, f"the newest {policy.minimum} stay"))
    found.note(younger(policy.grace_age, tags, every, now), Reason(Why.GRACE, f"pushed within {policy.grace}"))
    for pattern in policy.protect:
        matches = tag_pattern(pattern)
        found.note([place for place, tag in enumerate(tags) if matches(tag.name)], Reason(Why.PROTECTED, f"protect: {pattern}"))
    found.note([place for place in every if named[place] < 0], Reason(Why.NO_POLICY, "no pattern of `delete` names it"))
    found.note([place for place, tag in enumerate(tags) if tag.pushed is None], Reason(Why.UNKNOWN_TIME))
    if held:
        for place, tag in enumerate(tags):
            if tag.digest in held:
                found.note((place,), *held[tag.digest])
    if names := protected.marks:
        repository_name = marked_name(repository.name)
        for place, tag in enumerate(tags):
            if (name := f"{repository_name}:{tag.name}") in names:
                found.note((place,), *protected.reasons(name))
    return found


def missing_time(tags: Sequence[Tag], named: Sequence[int]) -> Tag | None:
    """A tag, newest first, that may go by its name and whose time nobody knows. What rules say of it does not count: one more never frees others."""
    for tag, pattern in zip(reversed(tags), reversed(named), strict=True):
        if tag.pushed is not None:
            break
        if pattern >= 0:
            return tag
    return None
