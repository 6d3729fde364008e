"""What a stored plan and one made at this moment both let go: pure. Everything else stays, and is told with the reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from worker.retention.decisions import Action, Decision, RepositoryPlan
from worker.retention.inventory import Repository
from worker.retention.protection import Web, silence_of

WAITS = "it waits for somebody's approval"
"""How the reason begins for which nothing goes of a repository where nobody was asked."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What goes from a repository now."""

    digests: tuple[str, ...] = ()
    """In the order in which they are to."""
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The tags of each of them, all of which go first."""
    untag: tuple[tuple[str, str], ...] = ()
    """Tags whose digest stays, with it."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """By `repository:tag` or `repository@digest`, and why."""


def agree(
    stored: RepositoryPlan,
    fresh: RepositoryPlan | None,
    found: Repository | None,
    despite: tuple[str, ...] | None,
    binned: Collection[str] = (),
) -> Agreement:
    """Hold a stored plan against one of this moment. `despite`: clusters whose silence somebody took on himself; None: nobody was asked,
    so whatever wants a person's approval keeps everything. `binned`: what has gone of the stored plan already.
    """
    if stop := _stop(stored, fresh, found, despite):
        return Agreement(skipped={_name(stored, one): f"skipped: {stop}" for one in stored.decisions if one.action is not Action.KEEP})
    assert fresh is not None
    assert found is not None
    now = {(one.tag, one.digest): one for one in fresh.decisions}
    by_tag = {one.tag: one for one in fresh.decisions if one.tag is not None}
    wanted = {(one.tag, one.digest): one.action for one in stored.decisions if one.action is not Action.KEEP}
    agreed = {key for key, action in wanted.items() if key in now and now[key].action is action}
    web, on = Web.of(found), _tags_on(found)
    going = set(stored.deletions) & set(fresh.deletions)
    bare = {digest for digest in going - on.keys() if digest in binned or (None, digest) in agreed}
    going = bare | {digest for digest in going & on.keys() if all((tag, digest) in agreed for tag in on[digest])}
    above: dict[str, set[str]] = {}
    for holder, parts in web.holds.items():
        for part, _ in parts:
            above.setdefault(part, set()).add(holder)
    # What something holds that is there and does not go stays with it.
    while held := {digest for digest in going if any(one in web.manifests and one not in going for one in above.get(digest, ()))}:
        going -= held
    skipped = {}
    for decision in stored.decisions:
        if decision.action is Action.KEEP:
            continue
        if decision.action is Action.DELETE and decision.digest in going:
            continue
        if decision.action is Action.UNTAG and (decision.tag, decision.digest) in agreed:
            continue
        if why := _why(decision, now.get((decision.tag, decision.digest)), by_tag.get(decision.tag or "")):
            skipped[_name(stored, decision)] = f"skipped: {why}"
    untag = tuple((one.tag or "", one.digest) for one in stored.of(Action.UNTAG) if (one.tag, one.digest) in agreed)
    digests = tuple(digest for digest in stored.deletions if digest in going)
    return Agreement(digests, {digest: tuple(sorted(on.get(digest, ()))) for digest in digests}, untag, skipped)


def _stop(stored: RepositoryPlan, fresh: RepositoryPlan | None, found: Repository | None, despite: tuple[str, ...] | None) -> str | None:
    """Why nothing of it goes."""
    if fresh is None or found is None:
        return "no policy names the repository any more"
    if found.trouble is not None:
        return f"it could not be wholly read: {found.trouble}"
    if fresh.project is None or fresh.project != stored.project:
        return fresh.review[0] if fresh.review else "another project's policy names it now"
    wanting = fresh.review or stored.review
    if despite is None:
        return f"{WAITS}: {wanting[0]}" if wanting else None
    silent = [why for why in fresh.review if why.startswith("the cluster ") and not why.startswith(tuple(map(silence_of, despite)))]
    return silent[0] if silent else None


def _why(decision: Decision, now: Decision | None, tag_now: Decision | None) -> str | None:
    """Why something does not go that was to; None: it is gone already."""
    if now is not None and now.action is Action.KEEP:
        return "; ".join(str(reason) for reason in now.reasons[:3]) or "it stays now"
    if now is not None:
        return "something that hangs together with it stays"
    if tag_now is not None:
        return f"it stands for {tag_now.digest} by now"
    return None if decision.tag is not None else "it has a tag by now, or is gone"


def _tags_on(found: Repository) -> dict[str, list[str]]:
    on: dict[str, list[str]] = {}
    for tag in found.tags:
        on.setdefault(tag.digest, []).append(tag.name)
    return on


def _name(stored: RepositoryPlan, decision: Decision) -> str:
    return f"{stored.name}:{decision.tag}" if decision.tag is not None else f"{stored.name}@{decision.digest}"
