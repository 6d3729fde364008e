"""`submit_build()` in one process against redis-py calling an empty Lua script with the same payload, the same Redis, the same fsync."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import redis

from bench.figure import Figure, interleaved, spread
from bench.servers import redis_with_aof
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger

COUNT = 3000
PROJECTS = """
version: 1
projects:
  bench:
    repository: https://git.example.com/team/bench.git
    rules: [{ref: refs/heads/main, image: registry.example.com/team/bench, tags: ["{sha}", latest]}]
"""


def measure() -> list[Figure]:
    with redis_with_aof() as url:
        import producer.submit

        projects = parse_projects(PROJECTS)
        asyncio.run(_store(url, projects))
        producer.submit.settings.cache_clear()
        project = projects.projects["bench"]
        request = project.request("bench", project.rules[0], "refs/heads/main", "a" * 40)
        given = request.model_dump(mode="json", exclude_unset=True)
        client = redis.Redis.from_url(url)
        empty = client.register_script("return 1")
        payload = request.to_json()
        commits = count(1)

        def ours(threads: int) -> float:
            return _rate(threads, lambda: producer.submit_build(_at(next(commits), given)))

        def baseline(threads: int) -> float:
            return _rate(threads, lambda: empty(args=[payload]))

        producer.submit_build(given)
        empty(args=[payload])
        figures = []
        for threads in (1, 8):
            ratio, mine, theirs = interleaved(5, partial(ours, threads), partial(baseline, threads))
            name = f"submit_build() a second, {threads} {'thread' if threads == 1 else 'threads'}"
            figures.append(Figure(name, ratio, 0.5, more_is_better=True, detail=f"{spread(mine)} against {spread(theirs)} a second"))
    return figures


def _rate(threads: int, call: Callable[[], object]) -> float:
    """Calls a second of so many threads of this process."""

    def work(_: int) -> None:
        for _ in range(COUNT // threads):
            call()

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(work, range(threads)))
        return COUNT / (time.perf_counter() - start)


def _at(number: int, given: dict[str, Any]) -> dict[str, Any]:
    """Every submit is of another commit, as in life: nothing may be won by remembering the last one."""
    commit = f"{number:040x}"
    image = given["destinations"][1].rpartition(":")[0]
    return {**given, "source": {**given["source"], "commit": commit}, "destinations": [f"{image}:{commit}", f"{image}:latest"]}


async def _store(url: str, projects: object) -> None:
    ledger = Ledger.open(Settings(redis_url=url))
    await ledger.store_projects(projects)  # type: ignore[arg-type]
    await ledger.close()


if __name__ == "__main__":
    for figure in measure():
        print(figure.say())
