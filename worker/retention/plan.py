"""From an inventory, the policies and what is protected to a plan. Pure: it reads no clock and asks nobody.

Fail closed. A repository that was not wholly read or understood keeps everything; so does one that no policy names, or that two projects
claim. What stays is found first, then everything that hangs together with it; only what nothing holds may go, oldest first and no more than
one plan may delete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ledger.ages import credible
from ledger.references import marked_name
from ledger.retention import Retention
from worker.registry.manifests import KNOWN
from worker.retention.decisions import Action, Decision, Plan, Reason, RepositoryPlan, Why
from worker.retention.inventory import Inventory, Repository, Stored, Tag
from worker.retention.keeping import Held, Tally, held_outside, missing_time, newest_first, reasons_to_stay
from worker.retention.policy import Policies, first_matches
from worker.retention.protection import Protected, Web, silence_of
from worker.retention.weighing import freed_bytes

_Alone = dict[str, tuple[Reason, ...]]
"""The digests without a tag, and why each stays by itself; what is part of something else stays and goes with that."""


def plan(inventory: Inventory, policies: Policies, protected: Protected, now: datetime, *, binned: Collection[str] = ()) -> Plan:
    """Decide about every tag, and every digest without one, of an inventory at a moment. Equal arguments give equal plans.

    `binned` are digests that the bin has and nothing else: what they hold goes with them, as if they still had their tags.
    """
    repositories = sorted(inventory.repositories, key=lambda repository: repository.name)
    judged = [_judge(repository, policies, protected, now, binned, untags=inventory.untags) for repository in repositories]
    freed = freed_bytes([(repository, made.deletions) for repository, made in zip(repositories, judged, strict=True)])
    return Plan(
        registry=inventory.registry,
        made=now,
        inventory_taken=inventory.taken,
        repositories=tuple(replace(made, freed=size) for made, size in zip(judged, freed, strict=True)),
    )


def _judge(
    repository: Repository, policies: Policies, protected: Protected, now: datetime, binned: Collection[str], *, untags: bool
) -> RepositoryPlan:
    web, policy_of = Web.of(repository), policies.naming(repository.name)
    if stop := _stop(repository, web, [project for project, _ in policy_of]):
        return _all_kept(repository, web, stop)
    [(project, policy)] = policy_of
    tags = newest_first(web, now)
    named = first_matches(policy.delete, tags)
    if unsure := missing_time(tags, named):
        return _all_kept(repository, web, Reason(Why.TROUBLE, f"nobody knows when {unsure.name} was pushed"))
    held = held_outside(web, protected)
    reasons = reasons_to_stay(policy, tags, named, repository, protected, held, now)
    untagged = {one.digest: () if one.digest in binned else _untagged(web, one, policy, now) for one in web.untagged()}
    alone = {digest: (*held.get(digest, ()), *why) for digest, why in untagged.items()}
    _hold_back(policy, web, tags, reasons, alone, binned)
    signing = _signing(marked_name(repository.name), web, policy, protected, held)
    decisions, gone = _decide(web, policy, tags, named, reasons, alone, signing, untags=untags)
    return RepositoryPlan(
        name=repository.name,
        project=project,
        policy=policy.model_dump_json(),
        decisions=tuple(decisions),
        deletions=web.in_order(gone),
        review=_review(policy, protected),
    )


def _stop(repository: Repository, web: Web, projects: Sequence[str]) -> Reason | None:
    """Why nothing at all may go here."""
    if not projects:
        return Reason(Why.NO_POLICY, "no policy names the repository")
    if len(projects) > 1:
        return Reason(Why.DISPUTED, f"policies of {' and '.join(projects)} name the repository")
    if repository.trouble is not None:
        return Reason(Why.TROUBLE, repository.trouble)
    if strange := [(one.digest, one.media_type) for one in repository.manifests if one.media_type not in KNOWN]:
        digest, media_type = min(strange)
        return Reason(Why.TROUBLE, f"{digest} has the media type {media_type[:100]!r}, which is not known")
    if len({tag.name for tag in repository.tags}) != len(repository.tags):
        return Reason(Why.TROUBLE, "a tag is listed twice")
    if unread := [tag.name for tag in repository.tags if tag.digest not in web.manifests]:
        return Reason(Why.TROUBLE, f"the manifest of {min(unread)} was not read")
    return None


def _all_kept(repository: Repository, web: Web, stop: Reason) -> RepositoryPlan:
    decisions = [_decided(tag, Action.KEEP, (stop,)) for tag in sorted(repository.tags, key=lambda tag: tag.name)]
    decisions += [_decided_alone(manifest.digest, Action.KEEP, (stop,)) for manifest in web.untagged()]
    return RepositoryPlan(name=repository.name, project=None, policy=None, decisions=tuple(decisions), review=(str(stop),))


def _untagged(web: Web, manifest: Stored, policy: Retention, now: datetime) -> tuple[Reason, ...]:
    """Why a manifest without a tag stays by itself."""
    if web.part_of(manifest) or manifest.subject is not None:
        return ()
    age, since = policy.untagged_age, credible(manifest.untagged_since, now)
    if age is None:
        return (Reason(Why.UNTAGGED, "the policy does not say when it goes"),)
    if since is None:
        return (Reason(Why.UNKNOWN_TIME, "since when it has no tag"),)
    return (Reason(Why.UNTAGGED, f"for less than {policy.delete_untagged_after}"),) if now - since < age else ()


def _hold_back(policy: Retention, web: Web, tags: Sequence[Tag], reasons: Tally, alone: _Alone, binned: Collection[str]) -> None:
    """Keep what would be more than one plan may delete: a digest goes with all its condemned tags or not at all, the oldest first."""
    condemned = reasons.without()
    free = [digest for digest, why in alone.items() if not why and digest not in binned]
    loose = {digest: web.manifests[digest] for digest in free if not web.part_of(web.manifests[digest])}
    share, count = int(policy.max_share * len(tags) + 1e-9), policy.max_count
    if len(condemned) <= share and len(condemned) + len(loose) <= count:
        return
    groups: dict[str, list[int]] = {}
    for place in condemned:
        groups.setdefault(tags[place].digest, []).append(place)
    waiting = [(tags[places[0]].pushed, digest, places) for digest, places in groups.items()]
    waiting += [(manifest.untagged_since, digest, []) for digest, manifest in loose.items()]
    back = Reason(Why.BLAST_RADIUS, f"one plan deletes at most {policy.max_share:.0%} of the tags, and {policy.max_count}")
    for _, digest, places in sorted(waiting):  # none is without a time, or it would stay
        cost = max(len(places), 1)
        if len(places) <= share and cost <= count:
            share, count = share - len(places), count - cost
        elif places:
            reasons.note(places, back)
        else:
            alone[digest] = (back,)


def _signing(repository: str, web: Web, policy: Retention, protected: Protected, held: Held) -> dict[str, tuple[Reason, ...]]:
    """Why each signature's tag stays although what it is about may go."""
    found = {}
    for subject, tags in web.signatures.items():
        guarded = first_matches(policy.protect, tags)
        for tag, pattern in zip(tags, guarded, strict=True):
            reasons = [*protected.reasons(f"{repository}:{tag.name}"), *held.get(tag.digest, ())]
            if pattern >= 0:
                reasons.append(Reason(Why.PROTECTED, f"protect: {policy.protect[pattern]}"))
            if subject not in web.manifests:
                reasons.append(Reason(Why.SIGNATURE, f"{subject}, which is not known here"))
            found[tag.name] = tuple(reasons)
    return found


def _decide(
    web: Web,
    policy: Retention,
    tags: Sequence[Tag],
    named: Sequence[int],
    reasons: Tally,
    alone: _Alone,
    signing: Mapping[str, tuple[Reason, ...]],
    *,
    untags: bool,
) -> tuple[list[Decision], list[str]]:
    """What becomes of everything once what hangs together is known, and the digests that go, oldest first."""
    signatures = [(tag, subject) for subject, about in web.signatures.items() for tag in about]
    condemned = {tags[place].digest for place in reasons.without()}
    stays = {tag.digest: tag.name for place, tag in enumerate(tags) if reasons[place]}
    seeds = {digest for digest, why in alone.items() if why} | {tag.digest for tag in web.quarantined} | stays.keys()
    kept = web.closure(seeds | {tag.digest for tag, _ in signatures if signing[tag.name]})
    goes = [(Reason(Why.CONDEMNED, f"delete: {pattern}"),) for pattern in policy.delete]
    untag = Action.UNTAG if untags else Action.KEEP

    def needed(digest: str) -> tuple[Reason, ...]:
        shared = [Reason(Why.SHARED, stays[digest])] if digest in stays else []
        return (*shared, *kept[digest]) or (Reason(Why.SHARED, "a tag of another kind"),)

    decisions = []
    for place, tag in enumerate(tags):
        if why := reasons[place]:
            decisions.append(_decided(tag, Action.KEEP, why))
        elif tag.digest in kept:
            decisions.append(_decided(tag, untag, needed(tag.digest)))
        else:
            decisions.append(_decided(tag, Action.DELETE, goes[named[place]]))
    for tag, subject in signatures:
        if subject in kept or signing[tag.name]:
            about = (Reason(Why.SIGNATURE, subject),) if subject in kept else ()
            decisions.append(_decided(tag, Action.KEEP, (*about, *signing[tag.name])))
        elif tag.digest in kept:
            decisions.append(_decided(tag, untag, needed(tag.digest)))
        else:
            decisions.append(_decided(tag, Action.DELETE, (Reason(Why.GOES_WITH, subject),)))
    decisions += [_decided(tag, Action.KEEP, (Reason(Why.QUARANTINE),)) for tag in web.quarantined]
    decisions.sort(key=lambda decision: decision.tag or "")
    for digest, why in alone.items():
        if digest in kept:
            decisions.append(_decided_alone(digest, Action.KEEP, (*why, *kept[digest])))
        else:
            decisions.append(_decided_alone(digest, Action.DELETE, _why_alone_goes(web, policy, digest)))
    gone = [*(tag.digest for tag in reversed(tags) if tag.digest in condemned), *(tag.digest for tag, _ in signatures), *alone]
    return decisions, list(dict.fromkeys(digest for digest in gone if digest not in kept))


def _why_alone_goes(web: Web, policy: Retention, digest: str) -> tuple[Reason, ...]:
    above = web.part_of(web.manifests[digest])
    return tuple(Reason(Why.GOES_WITH, one) for one in above) or (Reason(Why.UNTAGGED, f"for {policy.delete_untagged_after} or longer"),)


def _review(policy: Retention, protected: Protected) -> tuple[str, ...]:
    found = [] if policy.apply == "automatic" else ["the policy asks for it"]
    if not policy.used_by_no_cluster:
        found += [silence_of(name, why) for name, why in protected.silent.items()]
        if not protected.answered and not protected.silent:
            found.append("no cluster is listed that could say what runs there")
    return tuple(found)


def _decided(tag: Tag, action: Action, reasons: tuple[Reason, ...]) -> Decision:
    return Decision(tag=tag.name, digest=tag.digest, action=action, reasons=reasons, pushed=tag.pushed)


def _decided_alone(digest: str, action: Action, reasons: tuple[Reason, ...]) -> Decision:
    return Decision(tag=None, digest=digest, action=action, reasons=reasons)
