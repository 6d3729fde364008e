"""Admission and submission beside long and blocked queues, each against the same with a short or unblocked one; and a queued build's memory.

Both sides of a ratio are ledgers of their own (a prefix each) in one Redis, asked in turns of a few hundred calls.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import redis.asyncio

from bench.figure import Figure, spread
from bench.servers import redis_with_aof
from ledger.build import Build, State
from ledger.limits import Scope
from ledger.projects import parse_projects
from ledger.request import BuildRequest
from ledger.settings import Settings
from ledger.store import Ledger
from ledger.submission import draft
from producer.submit import submit_drafts

LONG, SHORT, BLOCKED = 100_000, 1_000, 50_000
ROUNDS, CALLS, IN_FLIGHT = 9, 200, 4
HOUR = timedelta(hours=1)
_COMMITS = count(1)


def measure() -> list[Figure]:
    with redis_with_aof() as url:
        figures = asyncio.run(_measure(url))
    with redis_with_aof() as url:
        return [*figures, asyncio.run(_memory(url)), asyncio.run(_rate(url)), asyncio.run(_share(url))]


async def _measure(url: str) -> list[Figure]:
    async with _ledger(url, "long", 1000) as long, _ledger(url, "short", 10) as short:
        await _fill(long, 1000, LONG)
        await _fill(short, 10, SHORT)
        figures = [
            await _compared("admit with 100,000 queued over 1,000 projects", 1.2, _admits(long), _admits(short)),
            await _submits_compared(url, long),
        ]
    async with _ledger(url, "blocked", 600) as blocked, _ledger(url, "free", 100) as free:
        await _block(blocked)
        await _fill(free, 100, 5000)
        figures.append(
            await _compared(
                "admit with 50,000 behind a full key, 500 projects paused or full, limits changing",
                1.2,
                _admits(blocked, meanwhile=_change_limits(blocked)),
                _admits(free),
            )
        )
    return figures


def _projects(number: int) -> str:
    return json.dumps(
        {
            "version": 1,
            "limits": {"max_builds": 1_000_000},
            "projects": {
                f"p{each}": {
                    "repository": f"https://git.example.com/team/p{each}.git",
                    "policy": {"destinations": ["registry.example.com/**"]},
                }
                for each in range(number)
            },
        }
    )


@asynccontextmanager
async def _ledger(url: str, prefix: str, projects: int) -> AsyncIterator[Ledger]:
    ledger = Ledger.open(Settings(redis_url=url, prefix=prefix, event_stream_length=1000))
    await ledger.store_projects(parse_projects(_projects(projects)))
    yield ledger
    await ledger.close()


def request(project: int, padding: int = 0, **fields: Any) -> BuildRequest:
    """A build of a commit of its own."""
    commit = f"{next(_COMMITS):040x}"
    given = {
        "project": f"p{project}",
        "source": {"kind": "git", "url": f"https://git.example.com/team/p{project}.git", "ref": "refs/heads/main", "commit": commit},
        "destinations": [f"registry.example.com/team/p{project}:{commit}", f"registry.example.com/team/p{project}:latest"],
        **({"build_args": {"PADDING": "x" * padding}} if padding else {}),
        **fields,
    }
    return BuildRequest.parse(given)


async def _fill(ledger: Ledger, projects: int, builds: int, first: int = 0, **fields: Any) -> None:
    each = builds // projects
    for project in range(first, first + projects):
        for start in range(0, each, 100):
            await submit_drafts(ledger, [draft(request(project, **fields)) for _ in range(min(100, each - start))])


async def _block(ledger: Ledger) -> None:
    """100 projects with builds to admit, one of them with 50,000 more behind a full key; 250 paused and 250 at their limit."""
    await _fill(ledger, 1, BLOCKED, concurrency_key="deploy")
    assert await ledger.admit(HOUR)
    await _fill(ledger, 100, 5000)
    await _fill(ledger, 500, 5000, first=100)
    for project in range(100, 350):
        await ledger.limits.pause(Scope("project", f"p{project}"))
    for project in range(350, 600):
        await ledger.limits.set(Scope("project", f"p{project}"), 0)


def _change_limits(ledger: Ledger) -> Callable[[], Awaitable[None]]:
    numbers = count()

    async def change() -> None:
        number = next(numbers)
        await ledger.limits.set(Scope("project", f"p{350 + number % 250}"), 0)
        await ledger.limits.set(Scope("all"), 1_000_00 - number % 10)

    return change


def _admits(ledger: Ledger, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Callable[[], Awaitable[float]]:
    """Seconds that an admission takes; what is admitted is replaced, so that the queue stays as long as it was."""

    async def measure() -> float:
        took, admitted = 0.0, []
        for number in range(CALLS):
            if meanwhile and number % 10 == 0:
                await meanwhile()
            start = time.perf_counter()
            build = await ledger.admit(HOUR)
            took += time.perf_counter() - start
            assert build is not None
            admitted.append(build)
        for build in admitted:
            await submit_drafts(ledger, [draft(request(int(build.project[1:])))])
        return took / CALLS

    return measure


async def _submits_compared(url: str, long: Ledger) -> Figure:
    async with _ledger(url, "empty", 1000) as empty:

        def submits(ledger: Ledger) -> Callable[[], Awaitable[float]]:
            async def measure() -> float:
                drafts = [draft(request(number % 1000)) for number in range(CALLS)]
                start = time.perf_counter()
                for each in drafts:
                    await submit_drafts(ledger, [each])
                took = time.perf_counter() - start
                if ledger is empty:
                    while await ledger.admit(HOUR):
                        pass
                return took / CALLS

            return measure

        for ledger in (long, empty):  # the policies are fetched once
            for number in range(1000):
                await submit_drafts(ledger, [draft(request(number))])
        while await empty.admit(HOUR):
            pass
        return await _compared("submit with 100,000 queued", 1.1, submits(long), submits(empty))


async def _compared(name: str, bound: float, ours: Callable[[], Awaitable[float]], baseline: Callable[[], Awaitable[float]]) -> Figure:
    mine, theirs = [], []
    for _ in range(ROUNDS + 1):
        theirs.append(await baseline() * 1e6)
        mine.append(await ours() * 1e6)
    mine, theirs = mine[1:], theirs[1:]  # the first is for the caches
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    return Figure(name, ratio, bound, detail=f"{spread(mine)} against {spread(theirs)} µs")


async def _memory(url: str) -> Figure:
    """Bytes of Redis beyond the request for a queued build whose request has 1 KiB; the event stream is left out."""
    async with _ledger(url, "memory", 20) as ledger:

        async def used() -> int:
            told = await ledger.connection.command("INFO", "memory")
            stream = await ledger.connection.command("MEMORY", "USAGE", ledger.connection.keys.events, "SAMPLES", 0)
            return int(told["used_memory"]) - int(stream or 0)

        size = len(request(0).to_json())
        builds = 10_000
        before = await used()
        await _fill(ledger, 20, builds, padding=1024 - size - len(',"build_args":{"PADDING":""}'))
        extra = (await used() - before) / builds - 1024
    return Figure("Redis memory a queued build beyond its request of 1 KiB", extra / 1024, 2, "KiB")


async def _rate(url: str) -> Figure:
    """Admissions a second of one client, against redis-py's asyncio client calling an empty script; so many calls in flight on both sides.

    With one alone, what is measured is mostly how long this machine's processors take to wake up between two calls.
    """
    client = redis.asyncio.Redis.from_url(url)
    empty = client.register_script("return 1")

    async def rate(call: Callable[[], Awaitable[object]], at_once: int) -> float:
        async def work() -> None:
            for _ in range(CALLS):
                await call()

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return at_once * CALLS / (time.perf_counter() - start)

    found = {}
    for at_once in (1, IN_FLIGHT):
        mine, theirs = [], []
        async with _ledger(url, f"rate{at_once}", 10) as ledger:
            await _fill(ledger, 10, CALLS * at_once * (ROUNDS + 1))
            for _ in range(ROUNDS + 1):
                theirs.append(await rate(lambda: empty(args=["rate", 1000]), at_once))
                mine.append(await rate(lambda ledger=ledger: ledger.admit(HOUR), at_once))  # type: ignore[misc]
        found[at_once] = statistics.median(a / b for a, b in zip(mine[1:], theirs[1:], strict=True)), mine[1:], theirs[1:]
    await client.aclose()
    ratio, mine, theirs = found[IN_FLIGHT]
    detail = f"{spread(mine)} against {spread(theirs)} a second; with one call in flight {found[1][0]:.2f}"
    return Figure(f"admissions a second, one client, {IN_FLIGHT} calls in flight", ratio, 0.4, more_is_better=True, detail=detail)


async def _share(url: str) -> Figure:
    """Slots got by the project with 200 builds waiting beside one of equal weight with 10,000, until the 200 are done: half of them."""
    async with _ledger(url, "share", 2) as ledger:
        await ledger.limits.set(Scope("all"), 10)
        await _fill(ledger, 1, 10_000)
        await _fill(ledger, 1, 200, first=1)
        slots, small, running = 0, 0, deque[Build]()
        while small < 200:
            while build := await ledger.admit(HOUR):
                running.append(build)
                slots += 1
                small += build.project == "p1"
            ended = running.popleft()  # each build takes as long as any other: the oldest ends first
            await ledger.transition(ended, State.CANCELLED, due=None)
    share = small / slots
    return Figure(
        "share of slots, 200 builds beside 10,000 of a project of equal weight",
        abs(share - 0.5),
        0.05,
        "off a half",
        detail=f"{share:.3f} of {slots}",
    )


if __name__ == "__main__":
    for figure in measure():
        print(figure.say())
