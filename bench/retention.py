"""Retention: requests and time of a plan over 10,000 tags against bare HEADs, its memory, and the pure part over 100,000 tags."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import httpx

from bench.figure import Figure, interleaved, spread
from bench.retention_registry import REPOSITORIES, TAGS, registry_of_many, tag_names
from bench.retention_work import AT_ONCE, judge, made_up, make_plan
from bench.servers import redis_with_aof
from worker.registry.manifests import ACCEPT
from worker.registry.wire import Wire
from worker.retention.decisions import Action

ALL = REPOSITORIES * TAGS
PAIRS = 5
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""As in our image."""
SMALL, LARGE = 1_000, 100_000


def measure() -> list[Figure]:
    with registry_of_many() as (host, names), redis_with_aof() as redis:
        figures = [*_requests(host, redis), _wall(host, redis, names), _memory(host)]
    return [*figures, *_pure()]


def _requests(host: str, redis: str) -> list[Figure]:
    found = []
    for name, bound, age in (
        ("requests a tag, first plan", 2.1, timedelta(0)),
        ("requests a tag, manifests known", 1.05, timedelta(0)),
        ("requests a tag, within the tag cache's age", 0.05, timedelta(hours=1)),
    ):
        with _counted() as sent:
            made = asyncio.run(make_plan(host, redis, age))
        detail = f"{len(sent)} for {ALL} tags of {REPOSITORIES} repositories; {made.count(Action.DELETE)} would go"
        found.append(Figure(name, len(sent) / ALL, bound, detail=detail))
    return found


def _wall(host: str, redis: str, names: list[str]) -> Figure:
    def ours() -> float:
        began = time.perf_counter()
        asyncio.run(make_plan(host, redis))
        return time.perf_counter() - began

    ratio, mine, theirs = interleaved(PAIRS, ours, lambda: asyncio.run(_heads(host, names)))
    detail = f"{spread(mine)} against {spread(theirs)} s, {AT_ONCE} at once"
    return Figure("plan over 10,000 known tags, against a bare loop of HEADs", ratio, 1.25, detail=detail)


async def _heads(host: str, names: list[str]) -> float:
    ahead = iter([f"http://{host}/v2/{name}/manifests/{tag}" for name in names for tag in tag_names()])
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)

    async def some(http: httpx.AsyncClient) -> None:
        for url in ahead:
            answer = await http.head(url, headers={"Accept": ACCEPT})
            assert answer.headers["docker-content-digest"]

    began = time.perf_counter()
    async with httpx.AsyncClient(limits=limits) as http:
        await asyncio.gather(*(some(http) for _ in range(AT_ONCE)))
    return time.perf_counter() - began


def _memory(host: str) -> Figure:
    command = [sys.executable, "-m", "bench.retention_work", "memory", host]
    told = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True).stdout
    detail = "in a process of its own with our image's malloc settings, while both are held"
    return Figure("memory of survey and plan a tag", float(told) / 1024, 2, "KiB", detail=detail)


def _pure() -> list[Figure]:
    small, large = _seconds(SMALL, 30), _seconds(LARGE, 3)
    growth = (large / LARGE) / (small / SMALL)
    took = Figure(f"plan of {LARGE} tags with its hash, pure part", large, 2, "s", detail=f"{large / LARGE * 1e6:.1f} us a tag")
    if shutil.which("valgrind") is None:
        return [took, Figure(f"time a tag, {LARGE} tags against {SMALL}", growth, 1.2)]
    few, many = _instructions(SMALL, 20) / SMALL, _instructions(LARGE, 1) / LARGE
    detail = f"{many:.0f} against {few:.0f}; in time, with the processor's caches too small for one of them, {growth:.2f}"
    return [took, Figure(f"instructions a tag, {LARGE} tags of one repository against {SMALL}", many / few, 1.2, detail=detail)]


def _seconds(tags: int, times: int) -> float:
    """Of one core for a plan, the least of several."""
    inventory = made_up(tags)
    took = []
    for _ in range(times):
        began = time.process_time()
        judge(inventory)
        took.append(time.process_time() - began)
    return min(took)


def _instructions(tags: int, times: int) -> float:
    """For a plan: what a process with so many plans executes above one that only makes the inventory."""
    totals = []
    for plans in (0, times):
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable]
        told = subprocess.run(
            [*command, "-m", "bench.retention_work", "plan", str(tags), str(plans)], capture_output=True, text=True, check=True
        )
        match = re.search(r"I +refs: +([\d,]+)", told.stderr)
        assert match, told.stderr
        totals.append(int(match[1].replace(",", "")))
    return (totals[1] - totals[0]) / times


@contextmanager
def _counted() -> Iterator[list[str]]:
    """Every request that a client of ours sends meanwhile."""
    sent: list[str] = []
    send = Wire.send

    async def counted(self, method, url, **named):
        sent.append(method)
        return await send(self, method, url, **named)

    Wire.send = counted  # type: ignore[method-assign, assignment]
    try:
        yield sent
    finally:
        Wire.send = send  # type: ignore[method-assign]


if __name__ == "__main__":
    for figure in measure():
        print(figure.say(), flush=True)
