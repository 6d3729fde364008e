"""Promise 12: what a submit, an admission and an end ask of Redis does not grow with the queue, nor with what is blocked, nor with history.

Commands are counted, not timed; the commands themselves are of logarithmic cost at most (no KEYS, no SMEMBERS of what waits).
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from ledger.build import State
from ledger.limits import Scope
from ledger.projects import parse_projects
from ledger.submission import draft
from producer.submit import submit_build_async, submit_drafts
from tests.requests import make_request

MINUTE = timedelta(minutes=1)
ANY = '{policy: {destinations: ["registry.example.com/**", "held.example.com/**"], sources: ["**"]}}'
FEW, MANY = 20, 2000


async def fill(ledger, builds, **fields):
    project = fields.get("project", "demo")
    for start in range(0, builds, 100):
        await submit_drafts(ledger, [draft(make_request(**{**fields, "project": project})) for _ in range(min(100, builds - start))])


async def commands_of(ledger, work) -> Counter[str]:
    """How often each command was called, by scripts too."""
    await ledger.connection.command("CONFIG", "RESETSTAT")
    await work()
    told = await ledger.connection.command("INFO", "commandstats")
    return Counter({name: int(stats["calls"]) for name, stats in told.items()}) - Counter({"cmdstat_config|resetstat": 1})


async def one_life(ledger) -> Counter[str]:
    """What one build's submit, admission and end take."""
    found = Counter()

    async def submit():
        await submit_build_async(make_request(), ledger=ledger)

    async def admit():
        nonlocal admitted
        admitted = await ledger.admit(MINUTE)
        assert admitted

    async def end():
        await ledger.transition(admitted, State.FAILED, due=None)

    admitted = None
    for work in (submit, admit, end):
        found += await commands_of(ledger, work)
    return found


@pytest.fixture
async def queue(ledger):
    projects = ", ".join(f"p{number}: {ANY}" for number in range(300))
    await ledger.store_projects(parse_projects(f"version: 1\nlimits: {{max_builds: 5000}}\nprojects: {{demo: {ANY}, {projects}}}"))
    return ledger


async def test_a_long_queue_costs_no_more(queue):
    await fill(queue, FEW)
    await one_life(queue)  # the scripts are sent whole the first time
    few = await one_life(queue)
    await fill(queue, MANY)
    for number in range(300):
        await fill(queue, 2, project=f"p{number}")
    assert await one_life(queue) == few


async def test_what_is_blocked_costs_no_more(queue):
    await fill(queue, FEW)
    await one_life(queue)  # the scripts are sent whole the first time
    few = await one_life(queue)
    await fill(queue, MANY, concurrency_key="deploy", priority=100)
    assert (await queue.admit(MINUTE)).request.concurrency_key == "deploy"
    for number in range(300):
        await fill(queue, 2, project=f"p{number}")
        await (queue.limits.pause if number % 2 else queue.limits.set)(Scope.parse(f"project/p{number}"), *([] if number % 2 else [0]))
    assert await one_life(queue) == few


async def test_what_waits_for_a_held_registry_costs_no_more(queue):
    await fill(queue, FEW)
    await one_life(queue)  # the scripts are sent whole the first time
    few = await one_life(queue)
    await fill(queue, MANY, destinations=["registry.example.com/held:1.0.0"], cache={"repository": "held.example.com/cache"}, priority=100)
    for number in range(300):
        await fill(queue, 2, project=f"p{number}", cache={"repository": "held.example.com/cache"})
    await queue.holds.take(["held.example.com"], "collect", MINUTE)
    assert await one_life(queue) == few


async def test_history_costs_no_more(queue):
    await fill(queue, FEW)
    await one_life(queue)  # the scripts are sent whole the first time
    few = await one_life(queue)
    for _ in range(300):
        await one_life(queue)
    assert await one_life(queue) == few
