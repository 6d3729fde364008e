"""A collection as a chore: a step a bit, written down with the settings that the run began with, and told when it starts and ends."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

from pydantic import TypeAdapter

from ledger.chores import Claim
from ledger.collected import CHORES, AnyCollected, CollectedHere, CollectedInKubernetes, CollectedOnThisMachine, CollectsItself
from ledger.errors import ClusterError, InputInvalid, RegistryError
from ledger.events import CollectionEvent, collection_event
from ledger.evidence import Evidence
from ledger.projects import ProjectSettings
from worker.chores import GO_ON, Bit, Next, done, later
from worker.cluster.connection import Api
from worker.cluster.watching import Pace
from worker.collect.doors import Doors
from worker.collect.kubernetes import KubernetesSite
from worker.collect.local import LocalSite
from worker.collect.running import Work, advance
from worker.collect.site import Site
from worker.collect.steps import Collection, Purpose, Step, begin
from worker.place import Place
from worker.registry.reader import RegistryReader

_SETTINGS: TypeAdapter[AnyCollected] = TypeAdapter(AnyCollected)
_SOON, _LATER = timedelta(seconds=2), timedelta(seconds=30)


async def go_on(place: Place, claim: Claim, *, purpose: Purpose) -> Next:
    """The next step of a run. NotFound: the projects file says nothing of this registry."""
    registry = claim.chore.registry
    if claim.progress:
        settings = _SETTINGS.validate_python(claim.progress["settings"])
        state = Collection.model_validate(claim.progress["state"])
    else:
        settings = (await place.ledger.site()).collected(registry)
        state = begin(settings.registry, purpose, secrets.token_hex(5), await place.ledger.now())
    if isinstance(settings, CollectsItself):
        return done(f"{registry} collects its own garbage; retention works there all the same")

    if state.step is Step.DONE:
        return done(said_of(state))

    async def save(changed: Collection) -> None:
        progress = {"settings": settings.model_dump(mode="json"), "state": changed.model_dump(mode="json")}
        await claim.write(progress, events=list(_told(state, changed)))

    try:
        async with _opened(place, settings, claim) as work:
            if not claim.progress:
                await save(state)
            found = await advance(work, state, await place.ledger.now(), save)
    except (ClusterError, RegistryError, InputInvalid) as error:
        if not state.closed:
            raise
        # A chore that cannot be helped is stopped; one whose registry may be read-only never is.
        return later(_LATER, f"{state.step.value.replace('_', ' ')}: {error}")
    await save(found)
    if found.step is Step.DONE:
        return done(said_of(found))
    return later(_SOON, f"{found.step.value.replace('_', ' ')}: {found.waits}") if found.waits else GO_ON


COLLECTIONS: Final[Mapping[str, Bit]] = {
    CHORES["run"]: partial(go_on, purpose=Purpose.COLLECT),
    CHORES["plan"]: partial(go_on, purpose=Purpose.PLAN),
    CHORES["mend"]: partial(go_on, purpose=Purpose.MEND),
}
"""The kinds of chores: collect garbage; say how much there is; put right what a lost run has left."""


def said_of(state: Collection) -> str:
    """How a run ended, for people."""
    if state.trouble:
        return f"failed: {state.trouble}"
    if state.purpose is Purpose.MEND:
        return "nothing was left read-only"
    if state.dry is None or not state.dry.eligible:
        return "there is no garbage"
    size = f"{state.dry.bytes / 2**20:.1f} MiB in {state.dry.eligible} blobs"
    unsized = f" ({state.dry.unsized} of them of unknown size)" if state.dry.unsized else ""
    if state.purpose is Purpose.PLAN:
        return f"would free {size}{unsized}"
    read = state.verified
    return f"freed {size}{unsized}" + (f"; {read.manifests} manifests and {read.blobs} blobs were read back" if read else "")


def _told(old: Collection, new: Collection) -> list[str]:
    """What is told of a change."""
    counts: dict[str, Any] = {
        "dry": new.dry and new.dry.model_dump(mode="json"),
        "verified": new.verified and new.verified.model_dump(mode="json"),
        "swept": new.swept,
        "sweeps": new.sweeps,
    }
    if old.step is Step.LOOK and new.step in (Step.READ, Step.HOLD):
        return [collection_event(CollectionEvent.STARTED, new.registry, new.run, {})]
    if new.step is not Step.DONE or old.step is Step.DONE:
        return []
    if new.trouble:
        return [collection_event(CollectionEvent.FAILED, new.registry, new.run, {**counts, "trouble": new.trouble})]
    if new.purpose is Purpose.MEND:
        return []
    kind = CollectionEvent.PLANNED if new.purpose is Purpose.PLAN else CollectionEvent.FINISHED
    return [collection_event(kind, new.registry, new.run, counts)]


@asynccontextmanager
async def _opened(place: Place, settings: CollectedHere, claim: Claim) -> AsyncIterator[Work]:
    """What the steps work with; what was opened for them is closed."""
    access = settings.access
    project = ProjectSettings(registries={settings.registry: access})
    reader = place.long_work.opened(RegistryReader, f"collect {settings.registry}", project, settings.registry)
    doors = Doors(settings.registry, access, place.registries.credentials(project, access))
    api = Api(place.settings.kubeconfig, place.settings.context, Pace())
    try:
        yield Work(settings, _site(settings, api), doors, reader, place.ledger.holds, Evidence(place.ledger.connection), claim)
    finally:
        await api.close()


def _site(settings: CollectedHere, api: Api) -> Site:
    match settings:
        case CollectedInKubernetes():
            return KubernetesSite(settings, api)
        case CollectedOnThisMachine():
            return LocalSite(settings)
    raise TypeError(f"{type(settings).__name__} is no kind of site")
