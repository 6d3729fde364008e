"""From an inventory, the policies and what is protected to a plan. Pure: it reads no clock and asks nobody.

Fail closed. A repository that was not wholly read or understood keeps everything; so does one that no policy names, or that two projects
claim. What stays is found first, then everything that hangs together with it; only what nothing holds may go, oldest first and no more than
one plan may delete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from ledger.retention import Retention
from worker.retention.decisions import Action, Decision, Plan, Reason, RepositoryPlan, Why
from worker.retention.inventory import Inventory, Repository, Stored, Tag, credible
from worker.retention.keeping import Held, held_outside, missing_time, newest_first, reasons_to_stay
from worker.retention.policy import Policies, first_match
from worker.retention.protection import Protected, Web
from worker.retention.weighing import freed_bytes


def plan(inventory: Inventory, policies: Policies, protected: Protected, now: datetime) -> Plan:
    """Decide about every tag, and every digest without one, of an inventory at a moment. Equal arguments give equal plans."""
    repositories = sorted(inventory.repositories, key=lambda repository: repository.name)
    judged = [_judge(repository, policies, protected, now, untags=inventory.untags) for repository in repositories]
    freed = freed_bytes([(repository, made.deletions) for repository, made in zip(repositories, judged, strict=True)])
    return Plan(
        registry=inventory.registry,
        made=now,
        inventory_taken=inventory.taken,
        repositories=tuple(replace(made, freed=size) for made, size in zip(judged, freed, strict=True)),
    )


def _judge(repository: Repository, policies: Policies, protected: Protected, now: datetime, *, untags: bool) -> RepositoryPlan:
    web, named = Web.of(repository), policies.naming(repository.name)
    if stop := _stop(repository, web, [project for project, _ in named]):
        return _all_kept(repository, web, stop)
    [(project, policy)] = named
    held, tags = held_outside(web, protected), newest_first(web, now)
    if unsure := missing_time(policy, tags):
        return _all_kept(repository, web, Reason(Why.TROUBLE, f"nobody knows when {unsure.name} was pushed"))
    reasons = reasons_to_stay(policy, tags, repository.name, protected, held, now)
    alone = _alone(web, policy, held, now)
    _hold_back(policy, web, tags, reasons, alone)
    signing = _signing(repository.name, web, policy, protected, held)
    decisions, gone = _decide(web, policy, tags, reasons, alone, signing, untags=untags)
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
    for manifest in repository.manifests:
        if not manifest.known:
            return Reason(Why.TROUBLE, f"{manifest.digest} has the media type {manifest.media_type[:100]!r}, which is not known")
    if len({tag.name for tag in repository.tags}) != len(repository.tags):
        return Reason(Why.TROUBLE, "a tag is listed twice")
    for tag in repository.tags:
        if tag.digest not in web.manifests:
            return Reason(Why.TROUBLE, f"the manifest of {tag.name} was not read")
    return None


def _all_kept(repository: Repository, web: Web, stop: Reason) -> RepositoryPlan:
    decisions = [_decided(tag, Action.KEEP, (stop,)) for tag in sorted(repository.tags, key=lambda tag: tag.name)]
    tagged = web.tagged()
    decisions += [
        Decision(tag=None, digest=digest, action=Action.KEEP, reasons=(stop,)) for digest in sorted(web.manifests) if digest not in tagged
    ]
    return RepositoryPlan(name=repository.name, project=None, policy=None, decisions=tuple(decisions), review=(str(stop),))


def _alone(web: Web, policy: Retention, held: Held, now: datetime) -> dict[str, list[Reason]]:
    """The digests without a tag, and why each stays by itself. What is part of something else stays and goes with that."""
    tagged = web.tagged()
    return {
        digest: [*held.get(digest, ()), *(() if _attached(web, manifest) else _untagged(manifest, policy, now))]
        for digest, manifest in sorted(web.manifests.items())
        if digest not in tagged
    }


def _attached(web: Web, manifest: Stored) -> bool:
    return manifest.digest in web.parents or (manifest.subject is not None and manifest.subject in web.manifests)


def _untagged(manifest: Stored, policy: Retention, now: datetime) -> tuple[Reason, ...]:
    if manifest.subject is not None:
        return (Reason(Why.REFERRER, f"of {manifest.subject}, which is not known here"),)
    age = policy.untagged_age
    if age is None:
        return (Reason(Why.UNTAGGED, "the policy does not say when it goes"),)
    since = credible(manifest.untagged_since, now)
    if since is None:
        return (Reason(Why.UNKNOWN_TIME, "since when it has no tag"),)
    return (Reason(Why.UNTAGGED, f"for less than {policy.delete_untagged_after}"),) if now - since < age else ()


def _hold_back(policy: Retention, web: Web, tags: Sequence[Tag], reasons: Sequence[list[Reason]], alone: dict[str, list[Reason]]) -> None:
    """Keep what would be more than one plan may delete: a digest goes with all its condemned tags or not at all, the oldest first."""
    groups: dict[str, list[int]] = {}
    for place, why in enumerate(reasons):
        if not why:
            groups.setdefault(tags[place].digest, []).append(place)
    waiting = [(tags[places[0]].pushed, digest, places) for digest, places in groups.items()]
    loose = [digest for digest, why in alone.items() if not why and not _attached(web, web.manifests[digest])]
    waiting += [(web.manifests[digest].untagged_since, digest, []) for digest in loose]
    share, count = int(policy.max_share * len(tags) + 1e-9), policy.max_count
    back = Reason(Why.BLAST_RADIUS, f"one plan deletes at most {policy.max_share:.0%} of the tags, and {policy.max_count}")
    for _, digest, places in sorted(waiting):  # none is without a time, or it would stay
        cost = max(len(places), 1)
        if len(places) <= share and cost <= count:
            share, count = share - len(places), count - cost
        elif places:
            for place in places:
                reasons[place].append(back)
        else:
            alone[digest].append(back)


def _decide(
    web: Web,
    policy: Retention,
    tags: Sequence[Tag],
    reasons: Sequence[Sequence[Reason]],
    alone: Mapping[str, Sequence[Reason]],
    signing: Mapping[str, Sequence[Reason]],
    *,
    untags: bool,
) -> tuple[list[Decision], list[str]]:
    """What becomes of everything once what hangs together is known, and the digests that go, oldest first."""
    signatures = [(tag, subject) for subject, about in web.signatures.items() for tag in about]
    seeds = {digest for digest, why in alone.items() if why} | {tag.digest for tag in web.quarantined}
    seeds |= {tag.digest for tag, _ in signatures if signing[tag.name]}
    named = {tag.digest: tag.name for tag, why in zip(tags, reasons, strict=True) if why}
    kept = web.closure(sorted(seeds | set(named)))

    def needed(digest: str) -> list[Reason]:
        return [*([Reason(Why.SHARED, named[digest])] if digest in named else []), *kept[digest]] or [Reason(Why.SHARED)]

    decisions = []
    for tag, why in zip(tags, reasons, strict=True):
        if why:
            decisions.append(_decided(tag, Action.KEEP, why))
        elif tag.digest in kept:
            decisions.append(_decided(tag, Action.UNTAG if untags else Action.KEEP, needed(tag.digest)))
        else:
            decisions.append(_decided(tag, Action.DELETE, (Reason(Why.CONDEMNED, f"delete: {first_match(policy.delete, tag.name)}"),)))
    for tag, subject in signatures:
        if signing[tag.name] or subject in kept:
            why = [*([Reason(Why.SIGNATURE, subject)] if subject in kept else []), *signing[tag.name]]
            decisions.append(_decided(tag, Action.KEEP, why))
        elif tag.digest in kept:
            decisions.append(_decided(tag, Action.UNTAG if untags else Action.KEEP, needed(tag.digest)))
        else:
            decisions.append(_decided(tag, Action.DELETE, (Reason(Why.GOES_WITH, subject),)))
    decisions += [_decided(tag, Action.KEEP, (Reason(Why.QUARANTINE),)) for tag in web.quarantined]
    decisions.sort(key=lambda decision: decision.tag or "")
    for digest, why in alone.items():
        action, because = (Action.KEEP, (*why, *kept[digest])) if digest in kept else (Action.DELETE, _why_alone_goes(web, policy, digest))
        decisions.append(Decision(tag=None, digest=digest, action=action, reasons=because))
    gone = [*(tag.digest for tag in reversed(tags)), *(tag.digest for tag, _ in signatures), *alone]
    return decisions, list(dict.fromkeys(digest for digest in gone if digest not in kept))


def _signing(repository: str, web: Web, policy: Retention, protected: Protected, held: Held) -> dict[str, list[Reason]]:
    """Why each signature's tag stays although what it is about may go."""
    found: dict[str, list[Reason]] = {}
    for subject, signatures in web.signatures.items():
        for tag in signatures:
            reasons = found[tag.name] = [*protected.reasons(f"{repository}:{tag.name}"), *held.get(tag.digest, ())]
            if pattern := first_match(policy.protect, tag.name):
                reasons.append(Reason(Why.PROTECTED, f"protect: {pattern}"))
            if subject not in web.manifests:
                reasons.append(Reason(Why.SIGNATURE, f"{subject}, which is not known here"))
    return found


def _why_alone_goes(web: Web, policy: Retention, digest: str) -> tuple[Reason, ...]:
    manifest = web.manifests[digest]
    holders = [*web.parents.get(digest, ()), *([manifest.subject] if manifest.subject else [])]
    if holders:
        return tuple(Reason(Why.GOES_WITH, holder) for holder in holders)
    return (Reason(Why.UNTAGGED, f"for {policy.delete_untagged_after} or longer"),)


def _review(policy: Retention, protected: Protected) -> tuple[str, ...]:
    found = [] if policy.apply == "automatic" else ["the policy asks for it"]
    if not policy.used_by_no_cluster:
        found += [f"the cluster {name} did not say what runs there" for name in protected.silent]
        if not protected.answered and not protected.silent:
            found.append("no cluster is listed that could say what runs there")
    return tuple(found)


def _decided(tag: Tag, action: Action, reasons: Sequence[Reason]) -> Decision:
    return Decision(tag=tag.name, digest=tag.digest, action=action, reasons=tuple(reasons), pushed=tag.pushed)
