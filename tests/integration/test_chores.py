"""Chores on a real Redis: one worker at a time, one chore a registry, nothing written by who lost it, and nothing lost with a worker."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

import worker.chores
from ledger.chores import ChoreState, Claim
from ledger.errors import ChoreLost, LedgerUnavailable, NotFound, RegistryDenied
from ledger.projects import parse_projects
from tests.scripted_cluster import Site
from worker.chores import GO_ON, done, go_on, held, later, stopped
from worker.liveness import Liveness
from worker.place import Place
from worker.schedules import start_due
from worker.watcher import _watch_chores

HOST, OTHER = "registry.example.com", "other.example.com"
SHORT = timedelta(milliseconds=60)


class Here:
    """A place of which chores need the ledger only."""

    def __init__(self, ledger) -> None:
        self.ledger = ledger


@pytest.fixture
def place(ledger) -> Place:
    return Here(ledger)  # type: ignore[return-value]


async def claimed(ledger, name: str) -> Claim:
    claim = await ledger.chores.claim(name)
    assert isinstance(claim, Claim), claim
    return claim


async def test_a_chore_is_claimed_once_and_its_loser_writes_nothing(ledger):
    await ledger.chores.start("plan:a", HOST, {"at": 1})
    first = await claimed(ledger, "plan:a")
    assert await ledger.chores.claim("plan:a") == "another worker is at it"
    await ledger.connection.command("HDEL", ledger.connection.keys.chore("plan:a"), "held")  # its time is over
    second = await claimed(ledger, "plan:a")
    assert second.progress == {"at": 1}
    key = ledger.connection.keys.root + "test"
    for write in (
        first.hold(),
        first.write({"at": 2}, commands=[("SET", key, "x")], events=["{}"]),
        first.let_go(SHORT),
        first.end(ChoreState.DONE),
    ):
        with pytest.raises(ChoreLost):
            await write
    assert await ledger.connection.command("EXISTS", key) == 0
    assert await ledger.events("0-0", block=0.01) == []
    await second.write({"at": 3}, commands=[("SET", key, "y"), ("HSET", f"{key}:h", "f", 1)], events=['{"type":"t"}'])
    assert (await ledger.chores.read("plan:a")).progress == {"at": 3}
    assert await ledger.connection.command("GET", key) == b"y"
    assert [event for _, event in await ledger.events("0-0", block=0.01)] == [b'{"type":"t"}']


async def test_of_a_registrys_chores_one_is_under_way_until_it_ends_or_gives_way(ledger):
    for name, host in (("apply:p", HOST), ("collect:r", HOST), ("apply:q", OTHER)):
        assert await ledger.chores.start(name, host)
    applying = await claimed(ledger, "apply:p")
    assert await ledger.chores.claim("collect:r") == "it waits for apply:p"
    assert (await ledger.chores.read("collect:r")).said == "waits for apply:p"
    await claimed(ledger, "apply:q")
    await applying.let_go(timedelta(hours=1))  # it waits, and still nothing else may begin
    assert await ledger.chores.claim("collect:r") == "it waits for apply:p"
    applying = await claimed(ledger, "apply:p")
    await applying.let_go(timedelta(hours=1), gives_way=True)
    collecting = await claimed(ledger, "collect:r")
    assert await ledger.chores.active(HOST) == "collect:r"
    assert await ledger.chores.claim("apply:p") == "it waits for collect:r"
    await collecting.end(ChoreState.STOPPED, "somebody reverts it")
    assert await ledger.chores.active(HOST) is None
    await claimed(ledger, "apply:p")


async def test_what_has_ended_is_kept_as_history_and_starts_anew(ledger):
    await ledger.chores.start("plan:a", HOST, {"at": 1})
    assert not await ledger.chores.start("plan:a", HOST, {"at": 2})
    claim = await claimed(ledger, "plan:a")
    await claim.end(ChoreState.DONE, "it is done")
    chore = await ledger.chores.read("plan:a")
    assert (chore.state, chore.said, chore.due, chore.kind, chore.subject) == (ChoreState.DONE, "it is done", None, "plan", "a")
    assert await ledger.chores.claim("plan:a") == "it is done"
    assert [one.name for one in await ledger.chores.all("plan")] == ["plan:a"]
    assert await ledger.chores.all("apply") == []
    assert await ledger.chores.start("plan:a", HOST, {"at": 3})
    claim = await claimed(ledger, "plan:a")
    assert claim.progress == {"at": 3}
    await claim.end(ChoreState.STOPPED, "the breaker")
    assert await ledger.chores.start("plan:a", HOST)
    assert (await ledger.chores.read("plan:a")).progress == {"at": 3}
    with pytest.raises(NotFound):
        await ledger.chores.read("plan:none")
    assert "no such" in str(await ledger.chores.claim("plan:none"))


async def test_a_due_chore_is_named_and_again_only_after_a_while(ledger):
    await ledger.chores.start("plan:now", HOST)
    await ledger.chores.start("plan:later", OTHER, after=timedelta(hours=1))
    assert await ledger.chores.due() == ["plan:now"]
    assert await ledger.chores.due() == []
    await ledger.chores.start("plan:later", OTHER)  # somebody does not want to wait
    assert await ledger.chores.due() == ["plan:later"]


async def test_an_occurrence_is_taken_once(ledger):
    first = datetime(2026, 1, 1, 2, tzinfo=UTC)
    assert await ledger.chores.occurrence("s", first) == first
    assert await ledger.chores.occurrence("s", first + timedelta(days=9)) == first
    second = first + timedelta(days=1)
    taken = await asyncio.gather(*(ledger.chores.occur("s", second, "plan:a", HOST, after=SHORT) for _ in range(8)))
    assert sorted(taken) == [False] * 7 + [True]
    claim = await claimed(ledger, "plan:a")
    await claim.end(ChoreState.DONE)
    assert not await ledger.chores.occur("s", second, "plan:a", HOST, after=SHORT)
    assert await ledger.chores.occurrence("s", second) == second


async def test_a_chore_goes_on_bit_by_bit(place):
    await place.ledger.chores.start("count:a", HOST, {"at": 0})
    key = place.ledger.connection.keys.root + "counted"

    async def count(_, claim):
        at = claim.progress["at"] + 1
        await claim.write({"at": at}, commands=[("RPUSH", key, at)])
        if at == 2:
            raise LedgerUnavailable("for a moment")
        return GO_ON if at < 4 else done(f"counted to {at}")

    await go_on(place, "count:a", {"count": count})
    chore = await place.ledger.chores.read("count:a")
    assert (chore.state, chore.tries, chore.said) == (ChoreState.WAITING, 1, "for a moment")
    await go_on(place, "count:a", {"count": count})
    chore = await place.ledger.chores.read("count:a")
    assert (chore.state, chore.said) == (ChoreState.DONE, "counted to 4")
    assert await place.ledger.connection.command("LRANGE", key, 0, -1) == [b"1", b"2", b"3", b"4"]


async def test_a_chore_lets_go_when_its_time_is_up_and_goes_on_at_once(place):
    await place.ledger.chores.start("count:a", HOST, {"at": 0})

    async def count(_, claim):
        await claim.write({"at": claim.progress["at"] + 1})
        return GO_ON

    await go_on(place, "count:a", {"count": count}, seconds=0)
    assert (await place.ledger.chores.read("count:a")).progress == {"at": 1}
    assert await place.ledger.chores.due() == ["count:a"]


@pytest.mark.parametrize(
    ("outcome", "state", "said"),
    [
        (RegistryDenied("no rights"), ChoreState.STOPPED, "no rights"),
        (KeyError("surprise"), ChoreState.WAITING, "'surprise'"),
        (stopped("the breaker"), ChoreState.STOPPED, "the breaker"),
        (later(timedelta(hours=1), "prod is silent"), ChoreState.WAITING, "prod is silent"),
    ],
)
async def test_what_becomes_of_a_chore_after_a_bit(place, outcome, state, said):
    await place.ledger.chores.start("odd:a", HOST)

    async def bit(*_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    await go_on(place, "odd:a", {"odd": bit})
    chore = await place.ledger.chores.read("odd:a")
    assert (chore.state, chore.said) == (state, said)
    assert (chore.due is None) == (state is not ChoreState.WAITING)
    assert await place.ledger.chores.due() == []


async def test_a_kind_that_nobody_knows_stops(place):
    await place.ledger.chores.start("strange:a", HOST)
    await go_on(place, "strange:a", {})
    assert "knows no chore of the kind strange" in str((await place.ledger.chores.read("strange:a")).said)


async def test_a_long_bit_holds_its_claim_and_ends_where_it_is_lost(place, monkeypatch):
    monkeypatch.setattr("ledger.chores.CLAIM", timedelta(milliseconds=300))
    monkeypatch.setattr(worker.chores, "_HEARTBEAT", 0.05)
    await place.ledger.chores.start("long:a", HOST)
    begun, ended = asyncio.Event(), []

    async def bit(_, claim):
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(claim)
        return done("")

    working = asyncio.create_task(go_on(place, "long:a", {"long": bit}))
    await begun.wait()
    await asyncio.sleep(0.6)
    assert await place.ledger.chores.claim("long:a") == "another worker is at it"
    await place.ledger.connection.command("HSET", place.ledger.connection.keys.chore("long:a"), "fence", 0)
    async with asyncio.timeout(5):
        await working
    assert len(ended) == 1
    assert (await place.ledger.chores.read("long:a")).state is ChoreState.WAITING


async def test_a_cancel_from_outside_is_none_of_a_lost_claim(ledger):
    await ledger.chores.start("long:a", HOST)
    claim = await claimed(ledger, "long:a")

    async def work():
        async with held(claim):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_stored_record_is_plain(ledger):
    await ledger.chores.start("plan:a", HOST, {"b": 1, "a": [2]})
    stored = await ledger.connection.command("HGET", ledger.connection.keys.chore("plan:a"), "progress")
    assert json.loads(stored) == {"a": [2], "b": 1}


async def test_the_site_is_stored_with_the_projects(ledger):
    said = "retention: {schedule: 0 2 * * *}\nclusters: {edge: {token: {env: T}}, prod: {kubeconfig: /etc/prod.yaml, revisions: 3}}"
    projects = parse_projects(f"version: 1\n{said}\nprojects: {{}}\n")
    await ledger.store_projects(projects)
    stored = await ledger.site()
    assert stored == projects.site
    assert stored.clusters["edge"].token.env == "T"


async def test_the_leader_nudges_what_is_due_and_beat_what_has_its_time(ledger, settings, monkeypatch):
    monkeypatch.setattr("worker.watcher._CHORES_PULSE", 0.02)
    site = Site(ledger, settings)
    await ledger.chores.start("plan:a", HOST)
    watching = asyncio.create_task(_watch_chores(site.place, site.nudges, Liveness(None)))
    async with asyncio.timeout(5):
        while not site.nudges.sent:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert site.nudges.sent == [("chore", "plan:a")]
    await site.close()


async def test_schedules_start_the_plans_of_all_registries(ledger, settings):
    said = """
retention: {schedule: "* * * * *", jitter: 0s}
projects:
  team: {retention: [{repositories: [a.test/x], delete: ["*"], keep: [{last: 1}]}, {repositories: ["b.test/**"]}]}
"""
    await ledger.store_projects(parse_projects(f"version: 1\n{said}"))
    site = Site(ledger, settings)
    await start_due(site.place)
    assert await ledger.chores.all() == []  # a schedule begins when it is first seen
    for schedule in await ledger.connection.command("HKEYS", ledger.connection.keys.schedules):
        await ledger.connection.command("HINCRBY", ledger.connection.keys.schedules, schedule, -3600_000)
    await asyncio.gather(*(start_due(site.place) for _ in range(3)))
    assert {chore.name for chore in await ledger.chores.all()} == {"plan:a.test", "plan:b.test"}
    await site.close()
