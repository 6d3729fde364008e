"""The chore `adopt:<registry>` or `adopt:<repository>`: learning a registry that was there before us, of whose pushes nobody has a record.

Most images say themselves when they were made. A tag of whose time nobody knows keeps its whole repository for ever; once it is adopted it counts
from then on, which is certainly not too old. What was learned in any other way stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import monotonic

from ledger.ages import credible
from ledger.build import milliseconds
from ledger.chores import Claim
from ledger.errors import ManifestUnknown, NotFound, RegistryConfused, RegistryDenied, RegistryUnsupported
from ledger.events import adoption_event
from ledger.fields import Frozen
from ledger.projects import ProjectSettings
from worker.chores import Next, done, later
from worker.place import Place
from worker.registry.reader import RegistryReader
from worker.retention.inventory import Origin, Repository, Tag
from worker.retention.memory import Recalled
from worker.retention.policy import Policies
from worker.retention.remembered import Remembered
from worker.retention.survey import has_an_age, survey

_TOGETHER = 16
"""Repositories between two times that it is written down how far it has come."""
_BIT = 45.0
"""Seconds after which other chores of the registry may go on, and the list of repositories is read anew."""
_LEARNED = (Origin.PUSH, Origin.SEEN)
"""By crabpot itself: nobody knows better."""
_TOLD = {"repositories", "empty", "tags", "ageless", "untagged", "strays", "unread", "listed"}
"""What its event says of it: counts."""
_WORDS = {
    Origin.PUSH: "pushed by crabpot",
    Origin.SEEN: "seen to be set",
    Origin.TOLD: "told",
    Origin.IMAGE: "dated by their images",
    Origin.ADOPTED: "of unknown time, which count from their adoption on",
}


class Adoption(Frozen):
    """How far an adoption has come, and what it found: what the chore keeps of it."""

    cursor: str = ""
    """The repository up to which it has come."""
    of: int = 0
    """How many repositories there are."""
    repositories: int = 0
    empty: int = 0
    """How many of them have no tag: all are gone, or there was never such a repository."""
    tags: dict[str, int] = {}
    """Where the times of tags are from (`Origin`) -> how many tags."""
    ageless: int = 0
    """Tags that need no time: signatures, and what is in the bin."""
    untagged: int = 0
    """Images that lost their tag while crabpot looked; no registry lists any others."""
    strays: int = 0
    """Times that were told of tags that are not there."""
    unread: int = 0
    trouble: str | None = None
    """Of the first repository that could not be read."""
    listed: bool = True
    """Whether the registry lists its repositories; else they are those that policies name."""


async def adopt(place: Place, claim: Claim) -> Next:
    """Some repositories, one after another by name. NotFound: no project leads there; RegistryError."""
    registry, (_, _, path) = claim.chore.registry, claim.chore.subject.partition("/")
    readers = _Readers.of(place, await place.projects(), registry)
    paths, listed = ([path], True) if path else await readers.repositories()
    state = Adoption.model_validate({**claim.progress, "of": len(paths), "listed": listed})
    ahead, end = [one for one in paths if one > state.cursor], monotonic() + _BIT
    for start in range(0, len(ahead), _TOGETHER):
        some = ahead[start : start + _TOGETHER]
        state, read = await _adopted(place, readers, some, state)
        commands = [place.ledger.shelf.taken(name) for name in read]
        await claim.write(state.model_dump(mode="json"), commands=commands)
        if monotonic() > end and start + _TOGETHER < len(ahead):
            said = f"{state.repositories + state.unread} of {state.of} repositories"
            return later(timedelta(0), said, gives_way=True)  # what else the registry has to do need not wait for hours
    # A chore that is done is made anew when it is asked for again: its name and when it was made are those of this one run.
    run = f"{claim.chore.name}.{milliseconds(claim.chore.created)}"
    return done(said_of(state), events=[adoption_event(claim.chore.subject, run, state.model_dump(mode="json", include=_TOLD))])


async def _adopted(place: Place, readers: _Readers, paths: Sequence[str], state: Adoption) -> tuple[Adoption, list[str]]:
    """The state after these repositories, and the names of those that could be read."""
    memory, shelf, now = Remembered(place.ledger.shelf), place.ledger.shelf, await place.ledger.now()
    read: list[str] = []
    for reader, own in readers.of_each(paths):
        found = await survey(reader, readers.registry, own, memory, now)
        if any(repository.trouble is not None for repository in found.repositories):
            with suppress(
                RegistryDenied, RegistryConfused
            ):  # it is there, and lets nobody see its door; some repositories answer all the same
                await reader.ping(readers.registry)  # where it is away altogether, the chore comes again
        for repository in found.repositories:
            if repository.trouble is not None:
                trouble = state.trouble or f"{repository.name}: {repository.trouble}"
                state = state.model_copy(update={"unread": state.unread + 1, "trouble": trouble})
                continue
            told = await shelf.told(repository.name)
            learned, origins = learn(repository, await memory.recall(repository.name), told, now)
            if learned is not None:
                await memory.remember(repository.name, learned)
            state = counted(state, repository, origins, told)
            read.append(repository.name)
    return state.model_copy(update={"cursor": paths[-1]}), read


def learn(
    repository: Repository, recalled: Recalled, told: Mapping[str, datetime], now: datetime
) -> tuple[Recalled | None, Mapping[Origin, int]]:
    """What is to be remembered of a repository that is adopted (None: nothing is new), and where its tags' times are from by then. Pure."""
    tags, origins = dict(recalled.tags), Counter[Origin]()
    for tag in repository.tags:
        if has_an_age(tag.name):
            since, origin = _learned(tag, told.get(tag.name), now)
            origins[origin] += 1
            if since is not None:
                tags[tag.name] = replace(tags[tag.name], since=since, origin=origin)
    return (None if tags == recalled.tags else replace(recalled, tags=tags)), origins


def _learned(tag: Tag, told: datetime | None, now: datetime) -> tuple[datetime | None, Origin]:
    """The time that is learned of a tag, where one is, and where its time is from. Who told it may tell it again; an image's later date counts more."""
    known = credible(tag.pushed, now)
    if known is None or tag.origin is None:
        return (now, Origin.ADOPTED) if told is None else (told, Origin.TOLD)
    if told is None or tag.origin in _LEARNED or (tag.origin is Origin.IMAGE and told <= known):
        return None, tag.origin
    return told, Origin.TOLD


def counted(state: Adoption, repository: Repository, origins: Mapping[Origin, int], told: Collection[str]) -> Adoption:
    """The state with one repository more."""
    names = {tag.name for tag in repository.tags}
    untagged = sum(1 for manifest in repository.manifests if manifest.untagged_since is not None)
    return state.model_copy(
        update={
            "repositories": state.repositories + 1,
            "empty": state.empty + (not names),
            "tags": dict(Counter(state.tags) + Counter({str(origin): count for origin, count in origins.items()})),
            "ageless": state.ageless + len(names) - sum(origins.values()),
            "untagged": state.untagged + untagged,
            "strays": state.strays + len(set(told) - names),
        }
    )


def said_of(state: Adoption) -> str:
    """What was found, for people."""
    parts = [f"{state.tags[origin]} {words}" for origin, words in _WORDS.items() if state.tags.get(origin)]
    said = [f"{state.repositories} repositories, {sum(state.tags.values())} tags{': ' if parts else ''}{', '.join(parts)}"]
    if state.empty:
        said.append(f"{state.empty} of the repositories have no tag, or are not there")
    if state.ageless:
        said.append(f"{state.ageless} signatures and the like, which need no time")
    said.append(f"{state.untagged} images without a tag are known; a registry lists no others, and they stay")
    if not state.listed:
        said.append("the registry does not list its repositories, so these are those that policies name")
    if state.strays:
        said.append(f"{state.strays} times were told of tags that are not there")
    if state.unread:
        said.append(f"{state.unread} repositories could not be read, as {state.trouble}; adopt again once they can")
    return "; ".join(said)


@dataclass(frozen=True, slots=True)
class _Readers:
    """Whose credentials read which repositories of a registry: those of the project whose policy names it, else of one that leads there."""

    place: Place
    registry: str
    projects: Mapping[str, ProjectSettings]
    leading: tuple[str, ...]
    """The projects that know the registry; those that say how to get in come first."""

    @classmethod
    def of(cls, place: Place, projects: Mapping[str, ProjectSettings], registry: str) -> _Readers:
        known = [name for name, one in projects.items() if registry in one.registries]
        known += [name for name, one in projects.items() if registry in Policies.of({name: one}).registries()]
        if not known:
            raise NotFound(f"no project says how workers get into {registry}; name it under `registries` of one in the projects file")
        return cls(place, registry, projects, tuple(dict.fromkeys(known)))

    async def repositories(self) -> tuple[list[str], bool]:
        """Paths by name, and whether the registry itself lists them; else those that policies name. RegistryUnsupported: neither is there."""
        for name in self.leading:
            try:
                return sorted([path async for path in self._reader(name).catalog(self.registry)]), True
            except (RegistryDenied, ManifestUnknown) as error:
                refused = str(error)
        hosts = (name.partition("/") for name in Policies.of(self.projects).plain_names())
        if named := sorted(path for host, _, path in hosts if host == self.registry):
            return named, False
        one_by_one = f"adopt them one by one, as `crabpot registry adopt {self.registry}/REPOSITORY`"
        raise RegistryUnsupported(f"{self.registry} does not list its repositories ({refused}); {one_by_one}")

    def of_each(self, paths: Iterable[str]) -> list[tuple[RegistryReader, list[str]]]:
        """The repositories by who reads them."""
        policies, owned = Policies.of(self.projects), dict[str, list[str]]()
        for path in paths:
            naming = policies.naming(f"{self.registry}/{path}")
            owned.setdefault(naming[0][0] if naming else self.leading[0], []).append(path)
        return [(self._reader(name), own) for name, own in owned.items()]

    def _reader(self, project: str) -> RegistryReader:
        return self.place.long_work.reader(project, self.projects[project], self.registry)
