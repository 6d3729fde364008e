"""Each chore of retention killed before and after its effects, and gone on with: it ends where it would have, and loses nothing."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.faults.points import Point, points
from tests.integration.registry_server import digest_of
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.chores import go_on
from worker.kinds import KINDS

_numbers = itertools.count()
_EVERY = 4
"""One point of so many is tried; another one each time that a number of points changes."""


class Killed(BaseException):
    """As SIGKILL: nothing catches it, and what it interrupts cleans nothing up."""


MakeSite = Callable[[], Awaitable[tuple[RetentionSite, dict[str, bytes]]]]


@pytest.fixture
async def make_site(settings, registry, redis_server) -> AsyncIterator[MakeSite]:
    async with retention_site(settings, registry, "none") as first:

        async def make() -> tuple[RetentionSite, dict[str, bytes]]:
            site = RetentionSite(first.place, registry, f"kill{next(_numbers)}/app")
            await site.ledger.connection.command("FLUSHALL")
            await site.settle()
            pushed = {
                "new": registry.push_image(site.repository, "new", layers=(b"new",), created=RECENT),
                "old": registry.push_image(site.repository, "old", layers=(b"old",), created=OLD),
                "part": registry.push_image(site.repository, None, layers=(b"part",), created=OLD),
            }
            pushed["index"] = registry.push_index(site.repository, "index", {"linux/amd64": pushed["part"]})
            return site, pushed

        yield make


async def killed(site: RetentionSite, chore: str, at: int | None) -> list[Point]:
    """Run a chore and kill it at the n-th point; its claim is over then. The effects that it passed."""
    passed: list[Point] = []

    def act(point: Point) -> None:
        if point.is_effect:
            passed.append(point)
            if len(passed) - 1 == at:
                raise Killed

    with points(act):
        try:
            for _ in range(20):
                await go_on(site.place, chore, KINDS)
                if (await site.ledger.chores.read(chore)).state != "waiting":
                    break
        except* Killed:  # also from within a task group
            pass
    await site.ledger.connection.command("HDEL", site.ledger.connection.keys.chore(chore), "held")
    return passed


async def begin(site: RetentionSite, chore: str) -> str:
    """A site at the moment before the chore."""
    sha = await site.plan()
    await site.approve(sha)
    if chore == "apply":
        return f"apply:{sha}"
    await site.run(f"apply:{sha}")
    if chore == "undo":
        await site.ledger.chores.start(f"undo:{sha}", site.registry.host)
        return f"undo:{sha}"
    await site.window_ends()
    await site.ledger.chores.start(f"purge:{site.registry.host}", site.registry.host)
    return f"purge:{site.registry.host}"


@pytest.mark.parametrize("chore", ["apply", "undo", "purge"])
async def test_a_chore_that_is_killed_anywhere_goes_on_to_the_same_end(make_site, chore) -> None:
    site, _ = await make_site()
    registry = site.registry.host
    effects = len(await killed(site, await begin(site, chore), None))
    assert effects > 10
    for at in range(effects % _EVERY, effects, _EVERY):
        site, pushed = await make_site()
        name = await begin(site, chore)
        await killed(site, name, at)
        assert site.has("new") == digest_of(pushed["new"])
        await site.run(name)
        assert (await site.ledger.chores.read(name)).state == "done", at
        if chore == "apply":
            assert (await site.ledger.chores.read(f"purge:{registry}")).due, at
            assert len(await site.events("registry.applied")) == 1, at
        gone = {key for key, raw in pushed.items() if site.has(digest_of(raw)) is None}
        seen = set(site.people_see())
        assert gone == ({"old", "index", "part"} if chore == "purge" else set()), at
        assert seen == ({"new", "old", "index"} if chore == "undo" else {"new"}), at
