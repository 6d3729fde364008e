"""`python -m tests.soak [--minutes 10] [--seed N]`: prints the report, and exits 1 where something was lost, doubled or left behind."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ledger.errors import LedgerError
from ledger.store import Ledger
from tests.e2e.harness_cluster import Cluster
from tests.soak.load import REAL_PROJECT, Load
from tests.soak.mischief import Mischief
from tests.soak.report import Report, breaches_now, count, records_of
from tests.soak.site import Site, opened
from tests.soak.witness import Witness, watched
from worker.registry.client import RegistryClient
from worker.registry.credentials import Anonymous

CROWD, REAL = 150, 6
"""Builds that are to be unfinished at any time."""
_END_SECONDS = 120.0


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.soak")
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    arguments.add_argument("--pause", type=float, default=4.0, help="seconds between two faults, about")
    given = arguments.parse_args()
    print(f"soak of {given.minutes:g} minutes, seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(_soak(given.minutes, given.seed, given.pause, Path(folder)))
    print(report.say())
    sys.exit(0 if report.well else 1)


async def _soak(minutes: float, seed: int, pause: float, folder: Path) -> Report:
    cluster = Cluster.from_environment()
    async with opened(cluster, folder) as site, watched(cluster.kubeconfig, site.crabpot.namespace) as witness:
        ledger = Ledger.open(site.crabpot.settings)  # by a good line, to a Redis that is killed all the same
        text = f"FROM {cluster.registry}/base/busybox:1\nRUN echo built\n"
        source = await asyncio.to_thread(site.crabpot.config_map, "real", {"Dockerfile": text})
        image = f"{site.registry}/soak/{site.crabpot.name}"
        load = Load(ledger, image, source, random.Random(seed), site.registry)
        mischief = Mischief(site, witness, random.Random(seed + 1))
        breaches: list[str] = []
        working = [
            asyncio.create_task(load.run(crowd=CROWD, real=REAL)),
            asyncio.create_task(_sample(ledger, witness, breaches)),
        ]
        harming = asyncio.create_task(mischief.run(pause))
        try:
            await _tell(minutes * 60, load, witness, mischief, [*working, harming])
        finally:
            harming.cancel()
            await asyncio.gather(harming, return_exceptions=True)
            await site.heal()
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        print("faults: " + ", ".join(f"{times} x {kind}" for kind, times in sorted(mischief.done.items())), flush=True)
        print("asked for: " + ", ".join(f"{count} x {kind}" for kind, count in load.kinds.most_common()), flush=True)
        await load.settle_doubts()
        await _until_all_ended(ledger, witness)
        report = await count(ledger, load, witness, breaches)
        if not report.well:
            await site.ask_where()
        report.tags_behind += await _tags_behind(ledger, image, site)
        if not report.well:
            _keep_logs(site)
        await ledger.close()
        return report


async def _tell(seconds: float, load: Load, witness: Witness, mischief: Mischief, tasks: list[asyncio.Task[None]]) -> None:
    """Let it go on for so long, saying every half minute how it goes; a task of the soak's own that fails ends it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        done, _ = await asyncio.wait(tasks, timeout=min(30.0, left), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        counted = f"{len(load.accepted)} builds in, {len(witness.uids)} pods, {len(witness.live)} alive (at most {witness.most})"
        print(f"{seconds - left:5.0f} s: {counted}, {sum(mischief.done.values())} faults", flush=True)


async def _sample(ledger: Ledger, witness: Witness, breaches: list[str]) -> None:
    while True:
        with suppress(LedgerError):
            breaches += await breaches_now(ledger, witness)
        await asyncio.sleep(0.25)


async def _until_all_ended(ledger: Ledger, witness: Witness) -> None:
    """Wait until nothing is left to do; whatever is left after minutes stands in the report."""
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end:
        unfinished = sum(number for state, number in (await ledger.count()).items() if not state.final)
        if not unfinished and not witness.there:
            return
        await asyncio.sleep(0.5)


async def _tags_behind(ledger: Ledger, image: str, site: Site) -> list[str]:
    """The mutable tag must be the last push's that succeeded. A tag of a step that was stopped may be put right a minute later."""
    done = [record for record in (await records_of(ledger)).values() if record.project == REAL_PROJECT and record.state == "succeeded"]
    if not done:
        return ["no real build succeeded"]
    last = max(done, key=lambda record: record.sequence)
    client = RegistryClient(Anonymous(), insecure=frozenset({site.registry}))
    try:
        end = time.monotonic() + 90
        while True:
            found = await client.resolve(last.request.images[1])
            if found and found.digest == last.digest:
                return []
            if time.monotonic() > end:
                return [f"{image}/real:latest is {found and found.digest}, not {last.digest} of {last.id}"]
            await asyncio.sleep(1)
    finally:
        await client.aclose()


def _keep_logs(site: Site) -> None:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    for log in site.crabpot.folder.glob("*.log"):
        (folder / log.name).write_bytes(log.read_bytes())
    print(f"the processes' logs are in {folder}")


if __name__ == "__main__":
    main()
