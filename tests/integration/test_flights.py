"""What builds under way push, read for retention."""

from __future__ import annotations

from datetime import timedelta

from producer.submit import submit_build_async
from tests.requests import make_request
from worker.retention.flights import LATELY, Flights

NAME = "registry.example.com/team/demo"


async def submit(ledger, number: int) -> str:
    return (await submit_build_async(make_request(destinations=[f"{NAME}:{number}"]), ledger=ledger)).id


async def test_builds_that_have_not_ended_are_read_again_when_what_is_known_is_too_old(ledger):
    known = Flights()
    first = await submit(ledger, 1)
    assert (await known.marks(ledger, LATELY))[f"{NAME}:1"] == f"build {first}"
    await submit(ledger, 2)
    assert f"{NAME}:2" not in await known.marks(ledger, LATELY)
    assert {f"{NAME}:1", f"{NAME}:2"} <= (await known.marks(ledger, timedelta(0))).keys()
    assert f"{NAME}:2" in await known.marks(ledger, LATELY)


async def test_more_builds_than_a_page_holds_are_all_read(ledger, monkeypatch):
    monkeypatch.setattr("worker.retention.flights._PAGE", 2)
    for number in range(1, 6):
        await submit(ledger, number)
    assert {f"{NAME}:{number}" for number in range(1, 6)} <= (await Flights().marks(ledger, LATELY)).keys()
