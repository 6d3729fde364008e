"""The chore `purge:<registry>`: deleting for good what is in the bin once its undo window has ended, unless something needs it by now.

The one place where a digest is deleted. It reads the repository first and looks at its tags again before each deletion; it reads it once
more afterwards, and puts back what turns out to be missed. The manifest's bytes leave the ledger only then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType

from ledger.bin import BinEntry, BinState, drop, put
from ledger.chores import Claim
from ledger.errors import RegistryError
from ledger.events import RegistryEvent, registry_event
from ledger.references import ImageReference
from worker.chores import GO_ON, Next, done, later
from worker.place import Place
from worker.registry.client import RegistryClient
from worker.retention.inquiries import NOW
from worker.retention.inventory import Repository
from worker.retention.planning import protected_now
from worker.retention.protection import Protected, Web, silence_of
from worker.retention.remembered import Remembered
from worker.retention.survey import survey
from worker.retention.untagging import bury, take_away

_PUT_OFF = timedelta(days=1)
"""What cannot be judged now is looked at again the next day."""
_FORGOTTEN = timedelta(days=60)


async def purge(place: Place, claim: Claim) -> Next:
    """One repository's due entries, or a part of them."""
    registry, now = claim.chore.subject, await place.ledger.now()
    untils: list[datetime] = []
    for name in await place.ledger.bin.repositories(registry):
        entries = await place.ledger.bin.entries(name)
        if not entries:
            await claim.write(commands=[("SREM", place.ledger.connection.keys.bins(registry), name)])
        if any(is_due(entry, now) for entry in entries):
            try:
                await _Purging(place, claim, name, entries, now).some()
            except RegistryError as error:
                await _put_off(
                    place, claim, [entry for entry in entries if entry.state is BinState.BINNED and is_due(entry, now)], str(error)
                )
                if any(entry.state is BinState.PURGING for entry in entries):
                    raise
            return GO_ON
        untils += [entry.until for entry in entries]
    while await place.ledger.shelf.prune(now, _FORGOTTEN):
        await claim.hold()
    if untils:
        return later(max(timedelta(seconds=1), min(untils) - now), f"{len(untils)} wait for the end of their undo window", gives_way=True)
    return done("the bin is empty")


def is_due(entry: BinEntry, now: datetime) -> bool:
    return entry.until <= now or entry.state is BinState.PURGING


async def _put_off(place: Place, claim: Claim, entries: Sequence[BinEntry], why: str) -> None:
    keys, until = place.ledger.connection.keys, await place.ledger.now() + _PUT_OFF
    for entry in entries:
        told = place.ledger.plans.reported(
            entry.plan, {f"{entry.repository}@{entry.digest}": f"binned until {until:%Y-%m-%d %H:%M} UTC: {why}"}
        )
        await claim.write(commands=[*put(keys, entry.model_copy(update={"until": until, "state": BinState.BINNED})), *told])


class _Purging:
    """One repository at work."""

    def __init__(self, place: Place, claim: Claim, name: str, entries: Sequence[BinEntry], now: datetime) -> None:
        self._place, self._claim, self._entries, self._now = place, claim, entries, now
        self._image = ImageReference.parse(name)
        self._due = [entry for entry in entries if is_due(entry, now)]
        self._keys = place.ledger.connection.keys

    async def some(self) -> None:
        """Judge what is due on one look at the repository. RegistryError."""
        place, first = self._place, self._due[0]
        project = await place.project(first.project)
        client = place.long_work.client(first.project, project, self._image.registry)
        # Asked here, since a survey takes a manifest that it remembers for one that is there.
        goes = sorted({entry.digest for entry in self._due if entry.goes})
        there = {digest for digest in goes if await client.resolve(self._image.with_digest(digest)) is not None}
        also = {self._image.name: sorted(there)}
        inventory = await survey(
            client, self._image.registry, [self._image.repository], Remembered(place.ledger.shelf), self._now, also=also
        )
        [found] = inventory.repositories
        if found.trouble is not None:
            await self._restore(client, found.trouble)
            return
        await self._bury(client, found)
        web = Web.of(found)
        # Nobody is asked who uses what is gone already, as it is on the look after each deletion.
        protected = await protected_now(place.ledger, place.flights, place.inquiries, NOW) if there else Protected()
        await self._verify(client, web, there)
        await self._delete(client, found, web, protected, there)

    async def _bury(self, client: RegistryClient, found: Repository) -> None:
        """A worker that was stopped in the middle of an application, and woke up when others had ended it, may have left tombstones."""
        present = {tag.name for tag in found.tags}
        for entry in self._due:
            for tag in present.intersection(entry.tags):
                await bury(client, self._image.with_tag(tag), entry.plan, self._claim.hold)

    async def _restore(self, client: RegistryClient, why: str) -> None:
        """The repository is not whole. What was deleted there lately is put back, in case that is what it misses; the rest waits."""
        for entry in self._due:
            if entry.state is BinState.PURGING and await client.resolve(self._image.with_digest(entry.digest)) is None:
                await self._claim.hold()
                await client.put_manifest(self._image.with_digest(entry.digest), entry.body, entry.media_type)
        await _put_off(self._place, self._claim, self._due, why)

    async def _verify(self, client: RegistryClient, web: Web, there: set[str]) -> None:
        """What was deleted leaves the bin, unless an index that came meanwhile holds it."""
        for entry in self._due:
            if entry.state is BinState.PURGING and entry.digest not in there:
                image = self._image.with_digest(entry.digest)
                if entry.digest in web.parents:
                    await self._claim.hold()
                    await client.put_manifest(image, entry.body, entry.media_type)
                    await self._out(entry, f"rescued: {web.parents[entry.digest][0]} holds it")
                else:
                    event = registry_event(RegistryEvent.DELETED, image.registry, entry.plan, image=image, tags=list(entry.tags))
                    await self._out(entry, "deleted", event)

    async def _delete(self, client: RegistryClient, found: Repository, web: Web, protected: Protected, there: set[str]) -> None:
        open_entries = {entry.digest: entry for entry in self._due if entry.goes and entry.digest in there}
        waiting = {entry.digest for entry in self._entries if entry.goes and entry not in self._due}
        kept, used = _needed(web, set(open_entries) - waiting, protected, self._named(protected))
        for entry in self._due:
            if not entry.goes:
                await self._out(entry, None)
            elif entry.digest not in there:
                if entry.state is not BinState.PURGING:
                    await self._out(entry, "deleted: by somebody else")
            elif entry.digest in waiting:
                await self._out(entry, None)  # a later plan has binned it again
            elif entry.digest in used:
                await _put_off(self._place, self._claim, [entry], used[entry.digest])
            elif entry.digest in kept:
                await self._rescue(client, entry, kept[entry.digest])
            elif silent := [] if not entry.asks_clusters else [one for one in protected.silent if one not in entry.despite]:
                await _put_off(self._place, self._claim, [entry], silence_of(silent[0], protected.silent[silent[0]]))
        tags = {tag.name for tag in found.tags}
        free = [digest for digest in open_entries if digest not in kept and digest not in used and digest not in waiting]
        for digest in web.in_order(free):
            entry = open_entries[digest]
            if entry.asks_clusters and any(one not in entry.despite for one in protected.silent):
                continue
            gone = {entry.quarantine for entry in self._due}
            present = {tag async for tag in client.tags(self._image.registry, self._image.repository)}
            if (present ^ tags) - gone or not await self._is_bare(client, entry, present):
                return  # something has come or gone meanwhile: look again
            await self._claim.write(commands=put(self._keys, entry.model_copy(update={"state": BinState.PURGING})))
            await self._claim.hold()
            await client.delete(self._image.with_digest(digest))

    def _named(self, protected: Protected) -> dict[str, str]:
        """The due digests that somebody means by a tag that they had, and who: a deployment that came when the tag was gone, a pin."""
        marks = {self._image.with_tag(tag).mark: entry.digest for entry in self._due for tag in entry.tags}
        return {digest: str(protected.reasons(mark)[0]) for mark, digest in marks.items() if mark in protected.marks}

    async def _is_bare(self, client: RegistryClient, entry: BinEntry, present: set[str]) -> bool:
        """Whether none of the tags that the digest had stands for it again."""
        for tag in present.intersection(entry.tags):
            found = await client.resolve(self._image.with_tag(tag))
            if found is not None and found.digest == entry.digest:
                return False
        return True

    async def _rescue(self, client: RegistryClient, entry: BinEntry, why: str) -> None:
        """Something in the registry holds it again: it needs the bin no more."""
        if entry.quarantine is not None:
            await take_away(client, self._image.with_tag(entry.quarantine), entry.digest, entry.plan, self._claim.hold)
        await self._out(entry, f"rescued: {why}")

    async def _out(self, entry: BinEntry, said: str | None, *events: str) -> None:
        told = {} if said is None else {f"{entry.repository}@{entry.digest}": said}
        await self._claim.write(commands=[*drop(self._keys, entry), *self._place.ledger.plans.reported(entry.plan, told)], events=events)


def _needed(
    web: Web, due: set[str], protected: Protected, named: Mapping[str, str] = MappingProxyType({})
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Of a repository's digests those that the registry's own content needs, and of the due ones those that somebody outside uses; and why.
    `named` are those that somebody means by a tag which went, and who.

    Whatever is there and is not due counts as content, whether it has a tag or not.
    """
    quarantined = {tag.digest for tag in web.quarantined} & due
    tagged = {tag.digest for tag in web.tags} | {tag.digest for tags in web.signatures.values() for tag in tags}
    seeds = (set(web.manifests) - due) | tagged | {tag.digest for tag in web.quarantined} - quarantined
    kept = {digest: str(reasons[0]) if reasons else "it has a tag again" for digest, reasons in web.closure(seeds).items()}
    marked = web.meant(protected.marks)
    roots = {digest: str(protected.reasons(mark)[0]) for mark, meant in marked for digest in (meant, *web.holders(meant))} | {**named}
    used = {digest: roots.get(digest, "it hangs together with something that is used") for digest in web.closure(roots)}
    return kept, {digest: why for digest, why in used.items() if digest not in kept}
