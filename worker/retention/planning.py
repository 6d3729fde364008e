"""Making a plan: reading what policies name, asking what is used, deciding, and storing it. The chore `plan:<registry>` does that.

The same is done again, for one repository, at the moment that a plan is applied there: what was decided before is then held against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from ledger.chores import Claim
from ledger.errors import NotFound, RegistryError
from ledger.events import RegistryEvent, registry_event
from ledger.plans import AUTOMATIC
from ledger.site import ClusterSource, Site
from ledger.store import Ledger
from worker.chores import Next, done
from worker.place import Place
from worker.retention import flights
from worker.retention.decisions import Action, Plan, RepositoryPlan
from worker.retention.flights import Flights
from worker.retention.inquiries import LATELY, Answer, Inquiries, Silence
from worker.retention.inventory import Inventory, Repository
from worker.retention.plan import plan
from worker.retention.policy import Policies
from worker.retention.protection import Protected
from worker.retention.pulled import ask_pulls, with_pulls
from worker.retention.remembered import Remembered
from worker.retention.running import under_all_names
from worker.retention.scope import find_repositories, referrers_of
from worker.retention.survey import survey

_TAG_AGE = timedelta(minutes=10)
"""A plan that is begun again after a kill asks for no tag twice within this time."""


async def make_plan(place: Place, claim: Claim) -> Next:
    """The chore `plan:<registry>`: plan all of it, and let apply begin what the policies let go without a person. NotFound: no policy is
    about it; RegistryError.
    """
    registry = claim.chore.subject
    named = Policies.of(await place.projects()).registries()
    if registry not in named:
        raise NotFound(f"no policy names a repository of {registry}; those of the projects file name {', '.join(named) or 'none'}")
    made, _ = await look(place, registry, tag_age=_TAG_AGE)
    text, sha256 = made.text(), made.sha256
    await place.ledger.plans.store(sha256, text, registry, made.made, totals_of(made))
    event = registry_event(RegistryEvent.PLANNED, registry, sha256, **totals_of(made))
    if any(goes_by_itself(repository) for repository in made.repositories):
        await place.ledger.plans.approve(sha256, AUTOMATIC, await place.ledger.now())
    return done(sha256, events=[event])


async def look(
    place: Place,
    registry: str,
    *,
    only: str | None = None,
    tag_age: timedelta = timedelta(0),
    binned: Mapping[str, str | None] | None = None,
) -> tuple[Plan, dict[str, Repository]]:
    """Plan a registry, or only one repository of it (by its path), as things are now; and what was found, by name. RegistryError.

    `binned` are digests that the bin has, with their quarantine tags, which are taken for gone: what they hold goes with them.
    """
    projects, now = await place.projects(), await place.ledger.now()
    policies, memory = Policies.of(projects), Remembered(place.ledger.shelf)
    owners: dict[str, str] = {}
    for name, project in projects.items():
        own = Policies.of({name: project})
        if only is not None:
            paths: Collection[str] = (only,) if own.naming(f"{registry}/{only}") else ()
        elif registry in own.registries():
            paths = await find_repositories(place.long_work.reader(name, project, registry), registry, own)
        else:
            paths = ()
        for path in paths:
            owners.setdefault(path, name)
    protected = await protected_now(place.ledger, place.flights, place.inquiries, LATELY)
    found: list[Repository] = []
    for name in dict.fromkeys(owners.values()):
        reader = place.long_work.reader(name, projects[name], registry)
        paths = sorted(path for path, owner in owners.items() if owner == name)
        pulls = await ask_pulls(reader, registry, [path for path in paths if policies.asks_for_pulls(f"{registry}/{path}")], now)
        inventory = with_pulls(await survey(reader, registry, paths, memory, now, tag_age=tag_age), pulls)
        first = plan(inventory, policies, protected, now)
        try:
            also = await referrers_of(reader, first)
        except RegistryError as error:
            found += [replace(one, trouble=str(error)) for one in inventory.repositories]
            continue
        if also:
            lately = max(tag_age, timedelta(minutes=1))
            inventory = with_pulls(await survey(reader, registry, paths, memory, now, tag_age=lately, also=also), pulls)
        found += inventory.repositories
    if binned:
        hidden = set(binned.values())
        found = [replace(one, tags=tuple(tag for tag in one.tags if tag.name not in hidden)) for one in found]
    inventory = Inventory(registry=registry, taken=now, repositories=tuple(sorted(found, key=lambda one: one.name)))
    return plan(inventory, policies, protected, now, binned=binned or ()), {one.name: one for one in found}


async def protected_now(ledger: Ledger, flying: Flights, inquiries: Inquiries, age: timedelta) -> Protected:
    """What is used outside of the registry: what is pinned at this moment, what clusters run and builds push at most so long ago."""
    site, builds = await ledger.site(), await flying.marks(ledger, min(age, flights.LATELY))
    answered, silent, runs = await _running(ledger, inquiries, site, age)
    names = [one.names for one in site.collect]
    running, pinned, in_flight = (under_all_names(marks, names) for marks in (runs, await ledger.shelf.pins(), builds))
    return Protected(running=running, pinned=pinned, in_flight=in_flight, answered=answered, silent=silent)


async def _running(
    ledger: Ledger, inquiries: Inquiries, site: Site, age: timedelta
) -> tuple[tuple[str, ...], dict[str, str], dict[str, str]]:
    """The clusters that say what they run, those that do not and why, and what they run."""
    now, names = await ledger.now(), sorted(site.clusters)
    found = await asyncio.gather(*(_answer(ledger, inquiries, name, site.clusters[name], now, age) for name in names))
    answered: list[str] = []
    silent: dict[str, str] = {}
    running: dict[str, str] = {}
    for name, answer in zip(names, found, strict=True):
        if isinstance(answer, Silence):
            silent[name] = answer.why
        else:
            answered.append(name)
            running |= {mark: f"{who} of the cluster {name}" for mark, who in answer.items()}
    return tuple(answered), silent, running


async def _answer(ledger: Ledger, inquiries: Inquiries, name: str, source: ClusterSource, now: datetime, age: timedelta) -> Answer:
    if not source.reports:
        return await inquiries.ask(name, source, age)
    report = await ledger.usage.report(name, now)
    return Silence(f"it has not reported for an hour (PUT /v1/clusters/{name}/images)") if report is None else report


def goes_by_itself(repository: RepositoryPlan) -> bool:
    """Whether something goes there for which no person need be asked."""
    return not repository.review and any(decision.action is not Action.KEEP for decision in repository.decisions)


def totals_of(made: Plan) -> dict[str, Any]:
    """What a list of plans tells of one."""
    return {
        "repositories": len(made.repositories),
        "keep": made.count(Action.KEEP),
        "untag": made.count(Action.UNTAG),
        "delete": made.count(Action.DELETE),
        "digests": sum(len(repository.deletions) for repository in made.repositories),
        "freed": made.freed,
        "review": sorted({why for repository in made.repositories if repository.policy for why in repository.review}),
    }
