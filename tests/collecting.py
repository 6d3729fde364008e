"""A model of a registry that can be collected: its storage, its processes, a sweeper that lives beside them, and people who push at any time.

The sweeper does what distribution's does: it marks what manifests need at one moment, and then deletes the rest blob by blob, whatever is
pushed meanwhile. Whoever lets somebody push while it lives loses an image here as there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ledger.access import RegistryAccess
from ledger.collected import CollectedOnThisMachine
from ledger.errors import ClusterUnavailable, ManifestUnknown, RegistryUnavailable
from ledger.references import ImageReference
from worker.collect.running import Work, advance
from worker.collect.site import Door, Ours, Standing, Swept
from worker.collect.steps import Collection, Finding, Lost, Purpose, Step, Wait, Well, begin
from worker.registry.manifests import OCI_MANIFEST, Descriptor, Manifest

REGISTRY = "registry.example.com"
START = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
SETTINGS = CollectedOnThisMachine(registry=REGISTRY, kind="local", process="/p", marker="/m", access=RegistryAccess(insecure=True))


class Killed(BaseException):
    """The worker is no more; another goes on from what was written."""


class Broken(BaseException):
    """What must never be has been; no step takes it for a trouble of its own."""


def must(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


@dataclass
class Sweeper:
    """A sweep under way: what it has marked is all that it spares."""

    doomed: list[str]
    within: int | None
    """The process that it was executed in, and ends with; None: a job of its own."""
    run: str


@dataclass
class Registry:
    """The world."""

    job: bool
    """Sweeps are jobs, which outlive everything, or are executed within a process."""
    blobs: dict[str, int] = field(default_factory=dict)
    manifests: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: dict[int, bool] = field(default_factory=lambda: {1: False})
    """Number -> whether it is read-only."""
    mark: str | None = None
    closed: bool = False
    sweeper: Sweeper | None = None
    finished: dict[str, bool] = field(default_factory=dict)
    """Sweeps by run and number: whether they came to their end."""
    numbers: int = 1
    pushes: int = 0
    swept_open: int = 0
    """How often a push was taken while a sweeper lived."""
    garbage: list[str] = field(default_factory=list)

    def push(self, repository: str, tag: str, *layers: bytes) -> None:
        """Past all processes: as it was before."""
        config = json.dumps({"tag": tag}).encode()
        parts = [config, *layers]
        for part in parts:
            self.blobs[digest_of(part)] = len(part)
        described = [{"mediaType": "application/octet-stream", "digest": digest_of(part), "size": len(part)} for part in parts]
        raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described[1:]}).encode()
        self.manifests.setdefault(repository, {})[digest_of(raw)] = raw
        self.tags.setdefault(repository, {})[tag] = digest_of(raw)

    def litter(self, *layers: bytes) -> None:
        for layer in layers:
            self.blobs[digest_of(layer)] = len(layer)
            self.garbage.append(digest_of(layer))

    def somebody_pushes(self) -> None:
        """An image whose layer lies there already: its client asks for the layer, is told that it is there, and sends the manifest alone."""
        if all(self.processes.values()):
            return
        there = [digest for digest in self.garbage if digest in self.blobs]
        if not there:
            return
        if self.sweeper is not None:
            self.swept_open += 1
        self.pushes += 1
        raw = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": "x", "digest": there[0], "size": self.blobs[there[0]]},
                "layers": [],
            }
        ).encode()
        self.manifests.setdefault("team/new", {})[digest_of(raw)] = raw
        self.tags.setdefault("team/new", {})[f"push-{self.pushes}"] = digest_of(raw)

    def used(self) -> set[str]:
        found = set()
        for kept in self.manifests.values():
            for raw in kept.values():
                manifest = Manifest.parse(raw, OCI_MANIFEST)
                found |= {part.digest for part in (manifest.config, *manifest.layers) if part}
        return found

    def unreadable(self) -> set[str]:
        return self.used() - self.blobs.keys()

    def tick(self) -> None:
        """Time passes: the sweeper deletes one more, processes are replaced as they are wanted."""
        if self.sweeper is not None:
            if self.sweeper.doomed:
                self.blobs.pop(self.sweeper.doomed.pop(), None)
            if not self.sweeper.doomed:
                self.finished[self.sweeper.run] = True
                self.sweeper = None
        for number, is_closed in tuple(self.processes.items()):
            if is_closed is not self.closed:
                self.replace(number)
                return

    def replace(self, number: int) -> None:
        self.processes.pop(number, None)
        if self.sweeper is not None and self.sweeper.within == number:
            self.finished[self.sweeper.run] = False
            self.sweeper = None
        self.numbers += 1
        self.processes[self.numbers] = self.closed


@dataclass
class Model:
    """Every side of `Work`, on one registry. `around` is called before and after each call from outside."""

    world: Registry
    around: Callable[[str], None]
    builds: list[str] = field(default_factory=list)
    held: bool = False
    kept: dict[str, dict[str, object]] = field(default_factory=dict)
    asked_at: list[str] = field(default_factory=list)
    """Repositories whose uploads were asked for."""

    def work(self) -> Work:
        return Work(SETTINGS, _Site(self), _Doors(self), _Reader(self), _Holds(self), _Evidence(self), self)  # type: ignore[arg-type]

    async def hold(self) -> None:
        """As a claim does."""
        self.around("ours")


@dataclass
class _Site:
    model: Model

    async def look(self) -> Finding:
        self.model.around("look")
        return Well()

    async def standing(self) -> Standing:
        self.model.around("standing")
        world = self.model.world
        doors = tuple(Door(str(number), str(number)) for number in world.processes)
        waits = any(is_closed is not world.closed for is_closed in world.processes.values())
        return Standing(doors, "being replaced" if waits else None, world.mark, world.closed)

    async def close(self, run: str, ours: Ours) -> None:
        await ours()
        self.model.around("close before")
        self.model.world.mark, self.model.world.closed = run, True
        self.model.around("close after")

    async def dry_run(self, run: str) -> Swept | Finding:
        self.model.around("dry run")
        world = self.model.world
        doomed = sorted(world.blobs.keys() - world.used())
        marked = len(world.used() | {digest for kept in world.manifests.values() for digest in kept})
        return Swept(
            f"{marked} blobs marked, {len(doomed)} blobs and 0 manifests eligible for deletion\n"
            + "".join(f"blob eligible for deletion: {digest}\n" for digest in doomed)
        )

    async def sweep(self, run: str, number: int, *, resumed: bool) -> Swept | Finding:
        self.model.around("sweep before")
        world, name = self.model.world, f"{run}-{number}"
        if not world.job and resumed:
            return Lost("cut off")
        if name not in world.finished:
            if world.mark != run:
                return Lost("no process is closed by this run")
            must(all(world.processes.values()), "a sweep begins only while every process is read-only")
            must(world.sweeper is None, "there are never two")
            world.finished[name] = False
            world.sweeper = Sweeper(sorted(world.blobs.keys() - world.used()), None if world.job else max(world.processes), name)
            if not world.sweeper.doomed:
                world.finished[name], world.sweeper = True, None
        if world.job:
            self.model.around("sweep after")
            if world.sweeper is not None:
                return Wait("it goes on")
            return Swept("") if world.finished[name] else Lost("the job is gone")
        while world.sweeper is not None:
            self.model.around("sweeping")
            world.tick()
        return Swept("") if world.finished[name] else Lost("cut off")

    async def restart(self, ours: Ours) -> None:
        await ours()
        self.model.around("restart before")
        for number in tuple(self.model.world.processes):
            self.model.world.replace(number)
        self.model.around("restart after")

    async def settled(self, old: tuple[str, ...]) -> Finding:
        self.model.around("settled")
        world = self.model.world
        if world.sweeper is not None:  # ended as a job is: it takes a while
            world.finished[world.sweeper.run] = False
            world.sweeper = None
            return Wait("the sweep ends")
        standing = await self.standing()
        if standing.unsettled or any(door.process in old for door in standing.doors):
            return Wait("old ones live")
        return Well()

    async def open(self, ours: Ours) -> None:
        await ours()
        self.model.around("open before")
        must(self.model.world.sweeper is None, "it is opened only where no sweeper lives")
        self.model.world.mark, self.model.world.closed = None, False
        self.model.around("open after")


@dataclass
class _Doors:
    model: Model

    async def refusing(self, doors: list[Door], repository: str) -> list[bool]:
        self.model.around("doors")
        self.model.asked_at.append(repository)
        try:
            return [self.model.world.processes[int(door.address)] for door in doors]
        except KeyError:
            raise RegistryUnavailable("it was replaced") from None


@dataclass
class _Reader:
    model: Model

    async def collector(self, _: str) -> None:
        return None

    async def catalog(self, _: str, *, page: int | None = None) -> AsyncIterator[str]:
        self.model.around("catalog")
        for name in sorted(self.model.world.tags):
            yield name

    async def tags(self, _: str, repository: str) -> AsyncIterator[str]:
        self.model.around("tags")
        for tag in sorted(self.model.world.tags[repository]):
            yield tag

    async def manifest(self, image: ImageReference) -> Manifest:
        self.model.around("manifest")
        world = self.model.world
        digest = image.digest or world.tags[image.repository].get(image.tag or "")
        raw = world.manifests[image.repository].get(digest or "")
        if raw is None:
            raise ManifestUnknown(str(image))
        return Manifest.parse(raw, OCI_MANIFEST)

    async def resolve(self, image: ImageReference) -> Descriptor | None:
        try:
            return (await self.manifest(image)).descriptor
        except ManifestUnknown:
            return None

    async def config_blob(self, image: ImageReference, config: Descriptor) -> dict[str, object]:
        return {}

    async def can_read(self, image: ImageReference, digest: str) -> bool:
        self.model.around("blob")
        return digest in self.model.world.blobs

    async def blob_size(self, image: ImageReference, digest: str) -> int | None:
        return self.model.world.blobs.get(digest)


@dataclass
class _Holds:
    model: Model

    async def take(self, *_: object, **__: object) -> None:
        self.model.around("hold before")
        self.model.held = True
        self.model.around("hold after")

    async def release(self, *_: object) -> None:
        self.model.around("release before")
        self.model.held = False
        self.model.around("release after")

    async def writers(self, _: object) -> list[str]:
        self.model.around("writers")
        return self.model.builds.copy()


@dataclass
class _Evidence:
    model: Model

    async def begin(self, registry: str, run: str, claim: object) -> None:
        self.model.around("evidence")
        if self.model.kept.get("", {}).get("run") != run:
            self.model.kept = {"": {"run": run}}

    async def keep(self, registry: str, found: dict[str, dict[str, object]], claim: object) -> None:
        self.model.around("evidence")
        self.model.kept |= found

    async def read(self, registry: str, run: str, *repositories: str) -> dict[str, dict[str, object]] | None:
        self.model.around("evidence")
        if self.model.kept.get("", {}).get("run") != run:
            return None
        return {name: one for name, one in self.model.kept.items() if name and (not repositories or name in repositories)}

    async def names(self, registry: str, run: str) -> list[str] | None:
        found = await self.read(registry, run)
        return None if found is None else sorted(found)

    async def forget(self, registry: str, claim: object) -> None:
        self.model.kept = {}


async def run_to_its_end(model: Model, purpose: Purpose = Purpose.COLLECT, run: str = "r1", *, most: int = 4000) -> list[Collection]:
    """Go on with a run, from what was written, however often its worker is killed; every state that was written."""
    states = [begin(REGISTRY, purpose, run, START)]
    now = START

    async def save(state: Collection) -> None:
        model.around("save")
        states.append(state)

    for _ in range(most):
        if states[-1].step is Step.DONE:
            return states
        now += timedelta(seconds=20)
        model.world.tick()
        try:
            found = await advance(model.work(), states[-1], now, save)
            await save(found)
        except (Killed, ClusterUnavailable):  # what is written down fails as well
            continue
        except BaseExceptionGroup as group:  # killed in one of several things at once
            if not group.subgroup(Killed):
                raise
    raise AssertionError(f"it has no end: {states[-1]}")
