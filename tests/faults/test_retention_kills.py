"""Each chore of retention killed with -9 on both sides of its effects, or stopped there and resumed when all is over: it ends where it would
have, and loses nothing.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from ledger.chores import ChoreState
from ledger.settings import Settings
from tests.faults.forks import Child, Forks
from tests.faults.points import Point, Side, points
from tests.faults.promises import side_by_side
from tests.integration.registry_server import OCI_INDEX, RegistryServer, digest_of
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.chores import go_on
from worker.kinds import KINDS

CHORES = ("apply", "undo", "purge")
_EVERY = 9
_numbers = itertools.count()


class Scene:
    """A repository at the moment before a chore, with a ledger of its own: an index and its part, an image and its signature go, one stays."""

    def __init__(self, site: RetentionSite, settings: Settings, pushed: dict[str, bytes], kind: str, chore: str) -> None:
        self.site, self.settings, self.pushed, self.kind, self.chore = site, settings, pushed, kind, chore

    async def run(self) -> None:
        await go_on(self.site.place, self.chore, KINDS)

    async def start(self, forks: Forks, injection: tuple[Point, str]) -> Child:
        """The chore in a process of its own, a worker's."""
        environment = {
            "CRABPOT_REDIS_URL": self.settings.redis_url,
            "CRABPOT_PREFIX": self.settings.prefix,
            "CRABPOT_STATE": str(self.settings.state),
            "CRABPOT_CLUSTER": self.settings.cluster,
        }
        return await forks.start("chore", environment, {"name": self.chore}, injection)

    async def check(self) -> None:
        """Everything is as after a chore that nobody disturbed."""
        site = self.site
        assert (await site.ledger.chores.read(self.chore)).state is ChoreState.DONE
        gone = {key for key, raw in self.pushed.items() if site.has(digest_of(raw)) is None}
        everything = {"new", "old", "index", self.signature}
        assert gone == ({"old", "index", "part", "signature"} if self.kind == "purge" else set())
        assert set(site.people_see()) == (everything if self.kind == "undo" else {"new"})
        assert site.has("new") == digest_of(self.pushed["new"])
        if self.kind == "apply":
            assert {entry.digest for entry in await site.ledger.bin.entries(site.name)} == {
                digest_of(raw) for key, raw in self.pushed.items() if key != "new"
            }
            assert (await site.ledger.chores.read(f"purge:{site.registry.host}")).due
        told = await site.events({"apply": "registry.applied", "undo": "registry.undone", "purge": "artifact.deleted"}[self.kind])
        assert len(told) == (4 if self.kind == "purge" else 1)

    @property
    def signature(self) -> str:
        return digest_of(self.pushed["old"]).replace(":", "-") + ".sig"


class MakeScene(Protocol):
    def __call__(self, kind: str) -> AbstractAsyncContextManager[Scene]: ...


@pytest.fixture
def make_scene(settings: Settings, registry: RegistryServer, tmp_path: Path) -> MakeScene:
    @asynccontextmanager
    async def make(kind: str) -> AsyncIterator[Scene]:
        number = next(_numbers)
        own = settings.model_copy(update={"prefix": f"kill{number}"})
        async with retention_site(own, registry, f"kill{number}/app") as site:
            await site.settle()
            push: Any = registry.push_image
            pushed = {
                "new": push(site.repository, "new", layers=(b"new",), created=RECENT),
                "old": push(site.repository, "old", layers=(b"old",), created=OLD),
                "part": push(site.repository, None, layers=(b"part",), created=OLD),
            }
            pushed["index"] = registry.push_index(site.repository, "index", {"linux/amd64": pushed["part"]}, media_type=OCI_INDEX)
            pushed["signature"] = push(site.repository, digest_of(pushed["old"]).replace(":", "-") + ".sig", layers=(b"signature",))
            sha = await site.plan()
            await site.approve(sha)
            chore = f"apply:{sha}"
            if kind != "apply":
                await site.run(chore)
                chore = f"undo:{sha}" if kind == "undo" else f"purge:{registry.host}"
                if kind == "purge":
                    await site.window_ends()
                await site.ledger.chores.start(chore, registry.host)
            yield Scene(site, own, pushed, kind, chore)

    return make


async def effects_of(make_scene: MakeScene, kind: str) -> list[Point]:
    """The effects of a chore that nobody disturbs, on both sides: all on the registry, and some of those on the ledger, as each of these
    is one call that is repeated.
    """
    passed: list[Point] = []
    async with make_scene(kind) as scene:
        with points(passed.append):
            await scene.run()
        await scene.check()
    effects = [point for point in passed if point.is_effect]
    return [point for place, point in enumerate(effects) if point.name.startswith("registry.") or place % _EVERY == len(effects) % _EVERY]


@pytest.mark.parametrize("kind", CHORES)
async def test_a_chore_that_is_killed(make_scene, forks, kind):
    async def kill(point: Point) -> None:
        async with make_scene(kind) as scene:
            child = await scene.start(forks, (point, "kill"))
            assert await child.ended() == -signal.SIGKILL, child.failure
            await scene.site.claim_is_over(scene.chore)
            await scene.site.run(scene.chore)
            await scene.check()

    await side_by_side(await effects_of(make_scene, kind), kill)


@pytest.mark.parametrize("kind", CHORES)
async def test_a_chore_that_is_stopped_and_resumed_when_all_is_over(make_scene, forks, kind):
    """Before a request to the registry, which goes out then: no fence of ours holds it back. Another worker has taken the chore on meanwhile. All
    that a late request can do is to put a tombstone on a tag where the registry has no other way to take one away: the purge takes that away.
    """

    async def stop(point: Point) -> None:
        async with make_scene(kind) as scene:
            child = await scene.start(forks, (point, "stop"))
            assert await child.stopped(), child.failure
            await scene.site.claim_is_over(scene.chore)
            await scene.site.run(scene.chore)
            await scene.check()
            child.signal(signal.SIGCONT)
            await child.ended()
            if kind == "apply":
                await scene.site.window_ends()
                await scene.site.purge()
                scene.kind = "purge"
            await scene.check()

    found = await effects_of(make_scene, kind)
    await side_by_side([point for point in found if point.side is Side.BEFORE and point.name.startswith("registry.")], stop)
