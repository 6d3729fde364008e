"""Collecting the garbage of a real docker-registry (2.8) on this machine, over a real Redis: killed at every step, its registry as well."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

import pytest

from ledger.errors import ClusterUnavailable
from tests.collect_runs import SAVED, SITE, Around, Killed, drive
from tests.integration.kept_registry import KeptRegistry, until
from tests.integration.registry_server import digest_of
from worker.collect.local import LocalSite
from worker.collect.steps import Purpose
from worker.registry.credentials import Anonymous


@pytest.fixture
def place(registry_place: KeptRegistry) -> KeptRegistry:
    return registry_place


async def ours() -> None:
    """The run is always our own."""


async def collect(ledger, place: KeptRegistry, around: Around = lambda _: None, **named):
    return await drive(ledger, place.settings, LocalSite(place.settings), Anonymous(), around, **named)


@pytest.fixture
def garbage(place: KeptRegistry) -> str:
    return place.fill()


async def test_garbage_goes_and_what_is_pushed_stays(ledger, place, garbage):
    before = place.process
    states = await collect(ledger, place)
    end = states[-1]
    assert end.trouble is None, end.trouble
    assert garbage not in place.blobs()
    assert (end.dry.eligible, end.dry.bytes, end.dry.unsized) == (2, 7000, 1)  # the manifest's own size nobody tells any more
    assert end.verified.repositories == 2
    assert place.process != before
    assert await ledger.holds.all() == []
    place.check()


async def test_a_plan_says_what_would_go_and_changes_nothing(ledger, place, garbage):
    process, blobs = place.process, place.blobs()
    end = (await collect(ledger, place, purpose=Purpose.PLAN))[-1]
    assert end.trouble is None
    assert end.dry.bytes >= 7000
    assert (place.process, place.blobs()) == (process, blobs)
    assert await ledger.connection.command("EXISTS", ledger.connection.keys.evidence(place.settings.registry)) == 0


CALLS = [f"{name} {when}" for name in SITE for when in ("before", "after")]
POINTS = {
    "the worker is killed": [*CALLS, *(f"save {step}" for step in SAVED)],
    "the registry is killed": CALLS[::2],
    "the registry's keeper is away": CALLS[::2],
}


@pytest.mark.parametrize("trouble", POINTS)
async def test_at_every_point_whatever_happens_it_ends_read_write_and_whole(ledger, place, garbage, trouble):
    """Each happens at each point, at the first time that the run comes there."""
    ahead = set(POINTS[trouble])

    def around(what: str) -> None:
        if what not in ahead:
            return
        ahead.remove(what)
        if trouble == "the registry is killed":
            with contextlib.suppress(ProcessLookupError):
                place.kill()
        elif trouble == "the worker is killed":
            raise Killed
        else:
            raise ClusterUnavailable("as the test says")

    for number in range(6):
        end = (await collect(ledger, place, around, run=f"r{number}"))[-1]
        place.check()
        assert await ledger.holds.all() == []
        assert end.trouble is None or trouble == "the registry is killed"
        if not ahead:
            break
        place.litter(number)
    assert not ahead, "the runs have come to all points"
    end = (await collect(ledger, place, run="last"))[-1]
    assert end.trouble is None
    assert garbage not in place.blobs()
    place.check()


@pytest.mark.parametrize(("at", "swept"), [("dry_run before", False), ("sweep after", True)])
async def test_evidence_that_is_gone_is_no_proof_that_nothing_is_needed(ledger, place, garbage, at, swept):
    """The ledger has lost what a survey read: an empty list of what is needed would agree with any sweep."""

    async def lose() -> None:
        await ledger.connection.command("DEL", ledger.connection.keys.evidence(place.settings.registry))

    class Losing(LocalSite):
        async def dry_run(self, name):
            if at == "dry_run before":
                await lose()
            return await super().dry_run(name)

        async def sweep(self, *given, **named):
            done = await super().sweep(*given, **named)
            if at == "sweep after":
                await lose()
            return done

    end = (await drive(ledger, place.settings, Losing(place.settings), Anonymous(), lambda _: None))[-1]
    assert "is not known any more" in end.trouble
    assert (garbage in place.blobs()) is not swept
    assert await ledger.holds.all() == []
    place.check()


async def test_a_broken_tag_is_named_before_the_registry_is_touched(ledger, place, garbage):
    process, broken = place.process, digest_of(place.kept[1][1]).partition(":")[2]
    (place.data / f"docker/registry/v2/blobs/sha256/{broken[:2]}/{broken}/data").unlink()
    place.kill()
    until(lambda: place.process != process and place.server.serves(), "it serves again")
    process = place.process
    end = (await collect(ledger, place))[-1]
    assert f"crabpot registry untag {place.settings.registry}/team/tool:v1" in end.trouble
    assert end.trouble.startswith("read: ")
    assert place.process == process
    assert not place.settings.marker.exists()


async def test_somebody_who_takes_the_marker_away_midway_stops_the_run(ledger, place, garbage):
    reverted: list[str] = []

    def around(what: str) -> None:
        if what == "dry_run after" and not reverted:
            reverted.append(what)
            place.settings.marker.unlink(missing_ok=True)
            place.kill()

    end = (await collect(ledger, place, around))[-1]
    assert "somebody else has made it read-write again" in end.trouble
    assert end.sweeps == 1
    assert not end.swept
    assert garbage in place.blobs()
    place.check()


async def test_a_sweep_that_comes_too_late_never_begins(place, garbage):
    """Its worker slept, and the run has ended meanwhile."""
    site = LocalSite(place.settings)
    found = await site.sweep("r1", 1, resumed=False)
    assert "not closed for this sweep any more" in found.why
    place.settings.marker.write_text("r2")
    assert "not closed for this sweep any more" in (await site.sweep("r1", 1, resumed=False)).why
    assert garbage in place.blobs()


async def test_a_registry_is_not_opened_while_a_sweeper_lives(place, garbage, tmp_path):
    place.settings.marker.write_text("r1")
    sweeping = asyncio.create_task(
        LocalSite(place.settings.model_copy(update={"program": str(_slow(tmp_path))})).sweep("r1", 1, resumed=False)
    )
    lock = place.settings.marker.with_suffix(".lock")
    while not (lock.exists() and lock.read_text()):
        await asyncio.sleep(0.02)
    site = LocalSite(place.settings)
    with pytest.raises(ClusterUnavailable, match="sweep"):
        await site.open(ours)
    assert place.settings.marker.exists()
    async with asyncio.timeout(10):
        while getattr(await site.settled(()), "why", "") == "its sweep has not ended yet":
            await asyncio.sleep(0.02)
    assert "exited" in (await sweeping).why  # it was ended
    await site.open(ours)
    place.check()


def _slow(folder: Path) -> Path:
    program = folder / "slow"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    return program


async def test_what_a_lost_ledger_has_left_read_only_is_mended(ledger, place, garbage):
    await LocalSite(place.settings).close("lost", ours)
    end = (await collect(ledger, place, purpose=Purpose.MEND, run="r2"))[-1]
    assert "a run that is no more had left it read-only" in end.trouble
    place.check()
    assert (await collect(ledger, place, purpose=Purpose.MEND, run="r3"))[-1].trouble is None


async def test_builds_that_write_there_are_waited_for_and_then_the_run_gives_up(ledger, place, garbage):
    short = place.settings.model_copy(update={"drain": "0s", "aliases": ("registry.example.com",)})
    place.settings = short
    from producer.submit import submit_build_async
    from tests.requests import make_request

    build = await submit_build_async(make_request(), ledger=ledger)
    assert (await ledger.admit(timedelta(minutes=1))).id == build.id
    end = (await collect(ledger, place))[-1]
    assert f"1 builds that write to it still run, as {build.id}" in end.trouble
    assert garbage in place.blobs()
    place.check()
