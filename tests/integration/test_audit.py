"""The ledger's audit: whatever somebody has done to an index by hand is found, and mended from the records."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ledger.audit import Audit
from ledger.build import Again, State
from producer.submit import submit_build_async
from tests.requests import make_request

MINUTE = timedelta(minutes=1)


async def faults_of(ledger, *, mend=False, bits="all"):
    return [fault async for found in getattr(Audit(ledger.connection, mend=mend), bits)() for fault in found]


@pytest.fixture
async def busy(ledger):
    """Builds in every state, one of them by name: queued, with a key, delayed, running, failed."""
    builds = {}
    running = await submit_build_async(make_request(), ledger=ledger)
    builds["running"] = (await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)).id
    assert builds["running"] == running.id
    await submit_build_async(make_request(), ledger=ledger)
    builds["failed"] = (await ledger.transition(await ledger.admit(MINUTE), State.FAILED, due=None)).id
    await submit_build_async(make_request(), ledger=ledger)
    builds["delayed"] = (await ledger.transition(await ledger.admit(MINUTE), State.QUEUED, due=MINUTE, again=Again(MINUTE))).id
    builds["queued"] = (await submit_build_async(make_request(), idempotency_key="k", ledger=ledger)).id
    builds["keyed"] = (await submit_build_async(make_request(concurrency_key="a|b"), ledger=ledger)).id
    await ledger.holds.take(["held.example.com"], "somebody", MINUTE)
    return builds


async def test_nothing_is_wrong_with_what_crabpot_wrote(ledger, busy):
    assert await faults_of(ledger) == []
    assert await faults_of(ledger, bits="unfinished") == []


SPOILT = {
    "a missing index": ("ZREM", "i:demo:queued", "{queued}"),
    "another index": ("ZADD", "i::failed", 0, "{queued}"),
    "a stranger in an index": ("ZADD", "i:other:running", 0, "{running}"),
    "nothing due": ("ZREM", "due", "{running}"),
    "due although ended": ("ZADD", "due", 1, "{failed}"),
    "never forgotten": ("ZREM", "finished", "{failed}"),
    "not in the queue": ("ZREM", "q:demo", "{queued}"),
    "not in its lane": ("ZREM", "lane:demo|amd64|registry.example.com|", "{queued}"),
    "its lane is closed": ("ZREM", "open:demo|amd64", "registry.example.com|a|b"),
    "its lane is open elsewhere": ("ZADD", "open:demo|amd64", 1, "registry.example.com|a|b"),
    "no turn": ("ZREM", "turns:amd64", "demo"),
    "no class": ("HDEL", "classes", "amd64"),
    "a turn for nothing": ("ZADD", "turns:arm64", 1, "other"),
    "delayed and ready": ("ZADD", "q:demo", 1, "{delayed}"),
    "a slot too few": ("ZREM", "slots:demo", "{running}/1/linux/amd64"),
    "a slot too many": ("ZADD", "slots:", 1, "{failed}/1/linux/amd64"),
    "an earlier attempt's slot": ("ZADD", "slots:", 1, "{running}/7/linux/amd64"),
    "a slot of nobody": ("ZADD", "slots:", 1, "nobody/1/linux/amd64"),
    "a key that holds nothing": ("SADD", "keys:demo", "a|b"),
    "a lane that no hold finds": ("SREM", "lanes:registry.example.com", "demo|amd64|registry.example.com|"),
    "a lane that no key finds": ("SREM", "lanes|key|demo|a|b", "demo|amd64|registry.example.com|a|b"),
    "a note of no lane": ("SADD", "lanes:registry.example.com", "demo|amd64|registry.example.com|gone"),
    "a note of another registry": ("SADD", "lanes:other.example.com", "demo|amd64|registry.example.com|"),
    "a hold that holds nothing": ("HSET", "gates", "h|other.example.com", "1 2 nobody"),
    "a hold that does not hold": ("HDEL", "gates", "h|held.example.com"),
    "a hold without an end": ("ZREM", "holds:until", "held.example.com"),
    "an end without a hold": ("ZADD", "holds:until", 5, "other.example.com"),
    "a lane of nobody": ("ZADD", "lane:demo|arm64|x", 1, "nobody"),
    "a log of nobody": ("ZADD", "logs", 1, "nobody:1"),
    "an idempotency key of nobody": ("SET", "idem:demo:other", "nobody"),
    "tags of nobody": ("ZADD", "tags:unsettled", 1, "nobody"),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_what_somebody_spoilt_is_found_and_mended(ledger, busy, spoilt):
    command, key, *words = SPOILT[spoilt]
    await ledger.connection.command(command, f"{ledger.connection.keys.root}{key}", *(str(word).format(**busy) for word in words))
    assert await faults_of(ledger)
    assert await faults_of(ledger, mend=True)
    assert await faults_of(ledger) == []


@pytest.mark.parametrize(
    "spoilt", ["nothing due", "not in the queue", "no turn", "no class", "a slot too few", "an earlier attempt's slot"]
)
async def test_the_leader_finds_what_would_hold_up_builds(ledger, busy, spoilt):
    command, key, *words = SPOILT[spoilt]
    await ledger.connection.command(command, f"{ledger.connection.keys.root}{key}", *(str(word).format(**busy) for word in words))
    found = await faults_of(ledger, mend=True, bits="unfinished")
    assert bool(found) is (spoilt != "nothing due")  # that is found by the whole audit, since it goes by what is due
    await faults_of(ledger, mend=True)
    assert await faults_of(ledger) == []


async def test_mended_builds_are_admitted(ledger, busy):
    for spoilt in ("not in the queue", "not in its lane", "its lane is closed", "no turn", "no class"):
        command, key, *words = SPOILT[spoilt]
        await ledger.connection.command(command, f"{ledger.connection.keys.root}{key}", *(str(word).format(**busy) for word in words))
    await faults_of(ledger, mend=True)
    taken = await ledger.admit(MINUTE)
    assert taken.id == busy["queued"]
