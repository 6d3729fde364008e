"""The chore `undo:<plan>`: putting back what a plan took away and the bin still has."""

from __future__ import annotations

from typing import Any

from ledger.bin import BinEntry, BinState, drop, put
from ledger.chores import Claim
from ledger.errors import ManifestUnknown
from ledger.events import RegistryEvent, registry_event
from ledger.plans import PlanState
from ledger.references import ImageReference
from ledger.shelf import Pushed
from worker.chores import GO_ON, Next, done
from worker.place import Place
from worker.registry.client import RegistryClient
from worker.registry.manifests import digest_of
from worker.retention.untagging import take_away, tombstone


async def undo(place: Place, claim: Claim) -> Next:
    """One entry: what an index holds comes before it, so that a registry that looks for the parts finds them."""
    sha256, registry = claim.chore.subject, claim.chore.registry
    for name in await place.ledger.bin.repositories(registry):
        entries = await place.ledger.bin.entries(name)
        mine = [entry for entry in entries if entry.plan == sha256]
        if mine:
            await _put_back(place, claim, mine[-1], [entry for entry in entries if entry is not mine[-1]])
            return GO_ON
    report = await place.ledger.plans.report(sha256)
    counts: dict[str, Any] = {
        word: sum(1 for outcome in report.values() if outcome.startswith(word)) for word in ("returned", "left", "lost")
    }
    event = registry_event(RegistryEvent.UNDONE, registry, sha256, **counts)
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return done(said, commands=[place.ledger.plans.marked(sha256, PlanState.UNDONE)], events=[event])


async def _put_back(place: Place, claim: Claim, entry: BinEntry, others: list[BinEntry]) -> None:
    keys, image = place.ledger.connection.keys, ImageReference.parse(entry.repository)
    client = place.long_work.client(entry.project, await place.project(entry.project), image.registry)
    await claim.write(commands=put(keys, entry.model_copy(update={"state": BinState.RETURNING})))
    told: dict[str, str] = {}
    try:
        if await client.resolve(image.with_digest(entry.digest)) is None:
            await claim.hold()
            await client.put_manifest(image.with_digest(entry.digest), entry.body, entry.media_type)
        for tag in entry.tags:
            told[str(image.with_tag(tag))] = await _tag(place, claim, client, image.with_tag(tag), entry)
        if not entry.tags:
            told[str(image.with_digest(entry.digest))] = "returned"
    except ManifestUnknown as error:
        told[str(image.with_digest(entry.digest))] = f"lost: parts of it are gone from the registry ({error})"
    else:
        if entry.quarantine and not any(one.quarantine == entry.quarantine for one in others):
            await take_away(client, image.with_tag(entry.quarantine), entry.digest, entry.plan, claim.hold)
        if entry.goes and entry.tags:
            told[str(image.with_digest(entry.digest))] = "returned"
    await claim.write(commands=[*drop(keys, entry), *place.ledger.plans.reported(entry.plan, told)])


async def _tag(place: Place, claim: Claim, client: RegistryClient, image: ImageReference, entry: BinEntry) -> str:
    """Put a tag back where it is absent; what became of it."""
    found = await client.resolve(image)
    if found is not None and found.digest not in (entry.digest, digest_of(tombstone(entry.plan, image))):
        return f"left: it stands for {found.digest} by now"
    if found is None or found.digest != entry.digest:
        await claim.hold()
        await client.put_manifest(image, entry.body, entry.media_type)
    # It is as old as it was, or it would push newer ones out of `last`; and pinned, or tonight's plan would take it away again.
    if image.reference in entry.pushed:
        await place.ledger.shelf.record_push([image], Pushed(entry.digest, entry.pushed[image.reference], None))
    await place.ledger.shelf.repin(image.mark, f"put back: the plan {entry.plan[:12]} was undone", image=str(image))
    return "returned"
