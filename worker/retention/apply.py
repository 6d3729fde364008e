"""The chore `apply:<plan>`: taking away what an approved plan decided, as far as it would be decided again at this moment.

Each repository is read anew and planned again; only what both plans say goes. Nothing is deleted here: tags go into the bin with their
manifest's bytes, a digest that loses all of them gets a quarantine tag, and `purge` deletes it when its undo window has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import Any

from ledger.bin import BinEntry, BinState, put
from ledger.chores import Claim, Command
from ledger.errors import RateLimited, RegistryError, RegistryUnsupported
from ledger.events import RegistryEvent, registry_event
from ledger.plans import AUTOMATIC, LIFE, PlanState, StoredPlan
from ledger.references import ImageReference
from ledger.retention import Retention
from worker.chores import GO_ON, Next, done, later, stopped
from worker.place import Place
from worker.registry.client import RegistryClient
from worker.retention.agreement import WAITS, Agreement, agree
from worker.retention.decisions import Action, RepositoryPlan, read_plan
from worker.retention.planning import look
from worker.retention.protection import QUARANTINE
from worker.retention.untagging import bury, require_deletion, take_away
from worker.tagging import set_tags

_IN_A_ROW, _IN_ALL = 3, 5
"""Failures after which no more is tried."""
_BUSY = 30.0
"""Seconds that a registry is left alone which has enough of requests and does not say for how long."""
_FRESH = 30.0
"""Seconds after which a repository is read anew before more of it goes; or as long as that takes, else it would be all that is done. Each tag is
looked at once more just before it goes."""


async def apply(place: Place, claim: Claim) -> Next:
    """One repository, or a part of it."""
    sha256, at = claim.chore.subject, int(claim.progress.get("at", 0))
    stored = await place.ledger.plans.read(sha256)
    if stored.state is not PlanState.APPROVED:
        return stopped(f"the plan was {stored.state}, so it is not applied; approve one with `crabpot retention approve`")
    if await place.ledger.now() - stored.made > LIFE:
        return stopped(f"the plan is older than {LIFE.days} days; make a new one with `crabpot retention plan`")
    made = read_plan(await place.ledger.plans.text(sha256), sha256)
    work = [one for one in made.repositories if any(decision.action is not Action.KEEP for decision in one.decisions)]
    if at >= len(work):
        return await _finish(place, stored)
    failed = dict(claim.progress.get("failed", {"row": 0, "all": 0}))
    try:
        whole = await _Applying(place, claim, stored, work[at]).some()
    except RegistryUnsupported as error:
        return stopped(f"nothing can be taken away there: {error}")
    except RateLimited as error:  # a wish, and no failure: it is waited for as often as it comes
        return later(timedelta(seconds=max(1.0, error.retry_after or _BUSY)), str(error))
    except RegistryError as error:
        failed = {"row": failed["row"] + 1, "all": failed["all"] + 1}
        if failed["row"] >= _IN_A_ROW or failed["all"] >= _IN_ALL:
            await claim.write({"at": at})
            return stopped(f"stopped after {failed['all']} failures, the last: {error}; approve the plan again to go on")
        await claim.write({"at": at, "failed": failed})
        return later(timedelta(seconds=max(2.0 ** failed["all"], error.retry_after or 0.0)), str(error))
    await claim.write({"at": at + whole, "failed": {**failed, "row": 0}})
    return GO_ON


async def _finish(place: Place, stored: StoredPlan) -> Next:
    report = await place.ledger.plans.report(stored.sha256)
    counts: dict[str, Any] = {
        word: sum(1 for outcome in report.values() if outcome.startswith(word)) for word in ("untagged", "binned", "skipped")
    }
    event = registry_event(RegistryEvent.APPLIED, stored.registry, stored.sha256, approved_by=stored.approved_by, **counts)
    # What went by itself is done; a person may still approve the rest.
    left = stored.approved_by == AUTOMATIC and any(outcome.startswith(f"skipped: {WAITS}") for outcome in report.values())
    state = PlanState.PROPOSED if left else PlanState.APPLIED
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    await start_purge(place, stored.registry)
    return done(said, commands=[place.ledger.plans.marked(stored.sha256, state)], events=[event])


async def start_purge(place: Place, registry: str) -> None:
    """See to it that what is in the bin is deleted when its window ends."""
    now = await place.ledger.now()
    untils = [entry.until for name in await place.ledger.bin.repositories(registry) for entry in await place.ledger.bin.entries(name)]
    if untils:
        await place.ledger.chores.start(f"purge:{registry}", registry, after=max(timedelta(0), min(untils) - now))


class _Applying:
    """One repository at work."""

    def __init__(self, place: Place, claim: Claim, stored: StoredPlan, decided: RepositoryPlan) -> None:
        self._place, self._claim, self._plan, self._decided = place, claim, stored, decided
        self._image = ImageReference.parse(decided.name)
        self._keys = place.ledger.connection.keys
        self._binned: dict[str, BinEntry] = {}
        self._pins: Mapping[str, str] = {}

    async def some(self) -> bool:
        """Do what can be done on one look at the repository. Whether that was all. RegistryError.

        Who pins something meanwhile does not wait for the next look: it is taken at once.
        """
        decided, place, begun = self._decided, self._place, monotonic()
        assert decided.project is not None
        client = place.long_work.client(decided.project, await place.project(decided.project), self._image.registry)
        self._binned = {one.digest: one for one in await place.ledger.bin.entries(decided.name) if one.plan == self._plan.sha256}
        await self._mend(client)
        self._pins = await place.ledger.shelf.pins()
        binned = {digest: one.quarantine for digest, one in self._binned.items() if one.goes}
        made, found = await look(place, self._image.registry, only=self._image.repository, binned=binned)
        agreed = agree(decided, next(iter(made.repositories), None), found.get(decided.name), self._silence(), binned)
        await self._report(agreed.skipped)
        if agreed.digests or agreed.untag:
            await require_deletion(client, self._image, self._plan.sha256, self._claim.hold)
        end = monotonic() + max(_FRESH, monotonic() - begun)
        for digest in agreed.digests:
            if (before := self._binned.get(digest)) and before.goes and before.state is BinState.BINNED and not agreed.tags[digest]:
                continue
            if not await self._bin(client, digest, agreed) or monotonic() > end:
                return False
        for tag, digest in agreed.untag:
            if await self._pinned_more():
                return False
            await self._untag(client, tag, digest)
            if monotonic() > end:
                return False
        for entry in self._binned.values():
            if entry.state is BinState.LEAVING:
                await self._write(entry.model_copy(update={"state": BinState.BINNED}))
        return True

    async def _pinned_more(self) -> bool:
        """Asked before each tag that goes."""
        return not (await self._place.ledger.shelf.pins()).keys() <= self._pins.keys()

    def _silence(self) -> tuple[str, ...] | None:
        """The clusters whose silence does not matter; None: whatever asks for a person's approval keeps everything."""
        return None if self._plan.approved_by == AUTOMATIC else self._plan.despite

    async def _mend(self, client: RegistryClient) -> None:
        """A kill may have left tags on tombstones, a digest without the tag that is to hold it, or a tag that is gone and nobody was told."""
        leaving = [entry for entry in self._binned.values() if entry.state is BinState.LEAVING]
        told = await self._place.ledger.plans.report(self._plan.sha256) if leaving else {}
        for entry in leaving:
            for tag in entry.tags:
                await bury(client, self._image.with_tag(tag), entry.plan, self._claim.hold)
            await self._quarantine(client, entry)
            for image in map(self._image.with_tag, entry.tags):
                if str(image) not in told and await client.resolve(image) is None:
                    await self._taken(client, image, entry.digest)

    async def _bin(self, client: RegistryClient, digest: str, agreed: Agreement) -> bool:
        """A digest that goes loses its tags, once the bin and its quarantine tag hold it. False: somebody has pinned something meanwhile."""
        tags = agreed.tags[digest]
        if await self._pinned_more():
            return False
        entry = await self._entry(client, digest, tags, goes=True)
        await self._write(entry)
        await self._quarantine(client, entry)
        for tag in tags:
            if await self._pinned_more():
                return False
            await self._take(client, tag, digest)
        name = str(self._image.with_digest(digest))
        await self._write(entry.model_copy(update={"state": BinState.BINNED}), {name: f"binned until {entry.until:%Y-%m-%d %H:%M} UTC"})
        return True

    async def _untag(self, client: RegistryClient, tag: str, digest: str) -> None:
        """A tag goes, and its digest stays."""
        entry = await self._entry(client, digest, (tag,), goes=False)
        await self._write(entry)
        await self._take(client, tag, digest)
        await self._write(entry.model_copy(update={"state": BinState.BINNED}))

    async def _entry(self, client: RegistryClient, digest: str, tags: tuple[str, ...], *, goes: bool) -> BinEntry:
        before, decided = self._binned.get(digest), self._decided
        policy = Retention.model_validate_json(decided.policy or "")
        manifest = await client.manifest(self._image.with_digest(digest))
        all_tags = tuple(dict.fromkeys((*(before.tags if before else ()), *tags)))
        return BinEntry(
            plan=self._plan.sha256,
            repository=decided.name,
            project=decided.project or "",
            digest=digest,
            goes=goes,
            tags=all_tags,
            pushed={one.tag: one.pushed for one in decided.decisions if one.tag in all_tags and one.tag and one.pushed},
            quarantine=quarantine_tag(digest) if goes and all_tags else None,
            media_type=manifest.media_type,
            raw=BinEntry.packed(manifest.raw),
            until=before.until if before else await self._place.ledger.now() + policy.undo_time,
            order=decided.deletions.index(digest) if goes else len(decided.deletions),
            despite=self._plan.despite,
            asks_clusters=not policy.used_by_no_cluster,
        )

    async def _quarantine(self, client: RegistryClient, entry: BinEntry) -> None:
        if entry.quarantine is not None:
            tag = self._image.with_tag(entry.quarantine)
            found = await client.resolve(tag)
            if found is None or found.digest != entry.digest:
                await self._claim.hold()
                await client.put_manifest(tag, entry.body, entry.media_type)
                found = await client.resolve(tag)
            if found is None or found.digest != entry.digest:
                raise RegistryError(f"{tag} does not stand for {entry.digest} after it was put there, so its tags stay")

    async def _take(self, client: RegistryClient, tag: str, digest: str) -> None:
        """Take one tag away, unless it has moved or a build wants it to."""
        image, ledger = self._image.with_tag(tag), self._place.ledger
        if not await ledger.tags.retire(image.name, tag, digest):
            await self._report({str(image): "skipped: a build wants it to stand for something else by now"})
            return
        if not await take_away(client, image, digest, self._plan.sha256, self._claim.hold):
            await self._report({str(image): "skipped: it has moved"})
            return
        await self._taken(client, image, digest)

    async def _taken(self, client: RegistryClient, image: ImageReference, digest: str) -> None:
        """A tag is gone: told and written down in one call."""
        ledger, tag = self._place.ledger, image.reference
        if await ledger.tags.wanted(image.name, tag):  # a build has pushed it in this moment
            await set_tags(self._place, client, [image])
        event = registry_event(RegistryEvent.UNTAGGED, image.registry, self._plan.sha256, image=image, digest=digest)
        commands = [("HDEL", self._keys.pushes(image.name), tag), *ledger.plans.reported(self._plan.sha256, {str(image): "untagged"})]
        await self._claim.write(commands=commands, events=[event])

    async def _write(self, entry: BinEntry, told: Mapping[str, str] | None = None) -> None:
        self._binned[entry.digest] = entry
        commands: list[Command] = [*put(self._keys, entry), *self._place.ledger.plans.reported(self._plan.sha256, told or {})]
        await self._claim.write(commands=commands)

    async def _report(self, told: Mapping[str, str]) -> None:
        if told:
            await self._claim.write(commands=self._place.ledger.plans.reported(self._plan.sha256, told))


def quarantine_tag(digest: str) -> str:
    """The tag that holds a digest while it is in the bin."""
    return QUARANTINE + digest.partition(":")[2][:24]
