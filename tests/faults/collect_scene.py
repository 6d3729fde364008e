"""A registry with garbage at the moment before its collection, with a ledger of its own; set back there for each case.

The registry is a docker-registry that is started again whenever it ends. What it holds is kept once: its files, and the ledger's keys. Cases
follow one another on a few such scenes, each as if it were the first.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ledger.chores import ChoreState
from ledger.projects import Projects, parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from tests.collect_runs import stands_still, to_its_end
from tests.conftest import PROJECTS
from tests.faults.forks import Child, Forks, Injection
from tests.faults.points import Point, points
from tests.faults.set_back import Scenes, keys_of, put_back
from tests.integration.kept_registry import KeptRegistry, kept_registry
from tests.scripted_cluster import ScriptedCluster
from worker.collect.steps import Step
from worker.place import Place
from worker.registries import Registries

_AT_ONCE = 6
_SLOW = """#!/bin/sh
# As docker-registry, but a sweep waits for somebody who opens the pipe, where there is one.
[ "$2" = --dry-run ] || [ ! -p {folder}/pipe ] || read -r _ <{folder}/pipe
exec docker-registry "$@"
"""


@dataclass
class Kept:
    """What a scene is set back to, by its clients of whichever test."""

    registry: KeptRegistry
    folder: Path
    garbage: str = ""
    keys: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def files(self) -> Path:
        return self.registry.data / "docker"

    @property
    def copy(self) -> Path:
        return self.folder / "copy"


class Scene:
    """Two images that stay, and the layer of one that is deleted."""

    def __init__(self, place: Place, settings: Settings, kept: Kept) -> None:
        self.place, self.ledger, self.settings, self.registry, self._kept = place, place.ledger, settings, kept.registry, kept
        self.garbage: set[str] = set()

    @property
    def host(self) -> str:
        return self.registry.settings.registry

    @property
    def chore(self) -> str:
        return f"collect:{self.host}"

    @property
    def pipe(self) -> Path:
        """While it is there a sweep waits."""
        return self._kept.folder / "pipe"

    async def prepare(self) -> None:
        """All that comes before the run, and keep it."""
        projects = {**dict(parse_projects(PROJECTS)), "collect": (self.registry.settings,)}
        await self.ledger.store_projects(Projects.model_validate(projects))
        self._kept.garbage = self.registry.fill()
        await self.ledger.chores.start(self.chore, self.host)
        shutil.copytree(self._kept.files, self._kept.copy)
        self._kept.keys = await keys_of(self.ledger.connection)

    async def set_back(self) -> None:
        """Everything as `prepare` left it. No child of an earlier case may live."""
        for name in (self.registry.settings.marker, self.pipe):
            name.unlink(missing_ok=True)
        shutil.rmtree(self._kept.files)
        shutil.copytree(self._kept.copy, self._kept.files)
        self.garbage = {self._kept.garbage}
        with suppress(ProcessLookupError):
            self.registry.kill()  # it forgets what it knew of its files
        await put_back(self.ledger.connection, self._kept.keys)
        await stands_still(self.registry.settings)

    # Who works

    async def start(self, forks: Forks, injection: Injection | None) -> Child:
        """The run in a process of its own, a worker's."""
        environment = {
            "CRABPOT_REDIS_URL": self.settings.redis_url,
            "CRABPOT_PREFIX": self.settings.prefix,
            "CRABPOT_STATE": str(self.settings.state),
            "CRABPOT_CLUSTER": self.settings.cluster,
            "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", ""),
        }
        return await forks.start("collect", environment, {"name": self.chore}, injection)

    async def goes_on(self, until: Step | None = None) -> None:
        """Another worker comes to the run as the leader would send it, once the time of the claim that nobody gave back has passed."""
        await self.ledger.connection.command("HDEL", self.ledger.connection.keys.chore(self.chore), "held")
        async with asyncio.timeout(30):
            await to_its_end(self.place, self.chore, until=until)

    async def again(self, until: Step) -> None:
        """The next run, with garbage of its own, up to a step."""
        before = self.registry.blobs()
        self.registry.litter(len(self.garbage))
        self.garbage |= self.registry.blobs() - before
        await self.ledger.chores.start(self.chore, self.host)
        await self.goes_on(until)

    async def passed(self) -> list[Point]:
        """What a worker passes that nobody disturbs."""
        passed: list[Point] = []
        with points(passed.append):
            await to_its_end(self.place, self.chore)
        await self.check()
        return passed

    # What must be

    def is_readable(self) -> None:
        """In the middle of a run: every image that was pushed."""
        self.registry.read_all()

    async def check(self, *, runs: int = 1) -> None:
        """All is as after runs that nobody disturbed."""
        chore = await self.ledger.chores.read(self.chore)
        assert chore.state is ChoreState.DONE
        assert (chore.said or "").startswith("freed"), chore.said
        assert not self.garbage & self.registry.blobs()
        await self.is_left_alone()
        kinds = [json.loads(event)["type"] for _, event in await self.ledger.events("0-0", count=1000, block=0.01)]
        told = Counter(kind.split(".")[3] for kind in kinds if kind.startswith("dev.crabpot.collection."))
        assert told == {"started": runs, "finished": runs}

    async def is_left_alone(self) -> None:
        """Nothing of a run is left: it takes pushes, builds go on, no sweep lives, and every image can be read."""
        await stands_still(self.registry.settings)
        assert not self.registry.settings.marker.exists()
        assert await self.ledger.holds.all() == []
        assert not self.sweeps()
        assert not await self.ledger.connection.command("EXISTS", self.ledger.connection.keys.evidence(self.host))
        assert {path.name for path in self.registry.settings.marker.parent.glob("read-only*")} <= {"read-only.lock"}
        self.registry.check()

    def sweeps(self) -> list[str]:
        """The processes of sweeps that live."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and b"CRABPOT_SWEEP=1" in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes().decode().replace("\0", " ")
                    found += [command] if self.registry.settings.config in command else []
        return found


@contextmanager
def kept_registries(folder: Path) -> Iterator[list[Kept]]:
    """The registries of a few scenes."""
    with ExitStack() as stack:
        made = []
        for number in range(_AT_ONCE):
            own = folder / str(number)
            own.mkdir()
            program = own / "sweeper"
            program.write_text(_SLOW.format(folder=own))
            program.chmod(0o700)
            made.append(Kept(stack.enter_context(kept_registry(own, program=str(program))), own))
        yield made


@asynccontextmanager
async def collect_scenes(settings: Settings, kept: list[Kept]) -> AsyncIterator[Scenes[Scene]]:
    """A scene on each registry; made when a test first asks for it."""
    async with AsyncExitStack() as stack:
        made = []
        for one in kept:
            own = settings.model_copy(update={"prefix": f"gc{one.folder.name}"})
            ledger, cluster = Ledger.open(own), ScriptedCluster()
            place = Place(own, ledger, cluster, Registries(cluster, own))
            stack.push_async_callback(place.close)
            made.append(Scene(place, own, one))
            if not one.keys:
                await made[-1].prepare()
        yield Scenes(made)
