"""What the retention figures measure in processes of their own: the memory of a survey with its plan, and the instructions of plans alone.

`python -m bench.retention_work memory HOST` or `… plan TAGS TIMES`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import sqlite3
import sys
import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.retention_registry import REPOSITORIES, TAGS
from ledger.projects import parse_projects
from ledger.retention import Retention
from ledger.settings import Settings
from worker.place import open_place
from worker.registry import PATIENT, Anonymous, RegistryReader
from worker.registry.manifests import OCI_MANIFEST
from worker.retention.decisions import Plan
from worker.retention.inventory import Blob, Inventory, Origin, Repository, Stored, Tag
from worker.retention.memory import LocalMemory, Raw, Recalled
from worker.retention.plan import plan
from worker.retention.planning import look
from worker.retention.policy import Policies
from worker.retention.protection import Protected
from worker.retention.survey import survey

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AT_ONCE = 16
POLICY = {
    "delete": ["*"],
    "keep": [
        {"last": 10},
        {"within": "14d"},
        {"matching": ["stable-*", "release-*-lts"]},
        {"versions": 3, "per": "minor"},
        {"last": 3, "per_branch": "{branch}-{short_sha}"},
    ],
    "protect": ["latest"],
    "max_share": 1.0,
    "max_count": 1_000_000,
}


def policies(pattern: str) -> Policies:
    return Policies((("bench", Retention.model_validate({"repositories": (pattern,), **POLICY})),))


class FileMemory(LocalMemory):
    """Raw manifests in a file, as the ledger keeps them outside of the worker too."""

    def __init__(self) -> None:
        super().__init__()
        self._file = sqlite3.connect("")
        self._file.execute("CREATE TABLE raw (digest TEXT PRIMARY KEY, media_type TEXT, body BLOB)")

    async def manifests(self, digests: Collection[str]) -> Mapping[str, Raw]:
        wanted = ",".join("?" * len(digests))
        rows = self._file.execute(f"SELECT digest, media_type, body FROM raw WHERE digest IN ({wanted})", list(digests))
        return {digest: Raw(digest, media_type, body) for digest, media_type, body in rows}

    async def keep_manifests(self, manifests: Collection[Raw]) -> None:
        self._file.executemany("INSERT OR REPLACE INTO raw VALUES (?, ?, ?)", [(one.digest, one.media_type, one.body) for one in manifests])

    async def remember(self, repository: str, seen: Recalled) -> None:
        """Not needed in a process that looks once."""

    async def keep_created(self, created: Mapping[str, datetime | None]) -> None:
        """Not needed either."""


async def make_plan(host: str, redis: str, tag_age: timedelta = timedelta(0)) -> Plan:
    """A plan of the whole registry as a worker makes it, with what an earlier one left in the ledger."""
    with tempfile.TemporaryDirectory() as folder:
        place = await open_place(Settings(redis_url=redis, cluster="local", state=Path(folder)))
        try:
            policy = {"repositories": [f"{host}/**"], **POLICY}
            said = {"version": 1, "projects": {"bench": {"registries": {host: {"insecure": True}}, "retention": [policy]}}}
            await place.ledger.store_projects(parse_projects(json.dumps(said)))
            made, found = await look(place, host, tag_age=tag_age)
        finally:
            await place.close()
    assert len(found) == REPOSITORIES
    assert not any(repository.trouble for repository in found.values())
    return made


def made_up(tags: int) -> Inventory:
    """One repository, its images older and older, of six blobs of which four are shared."""
    base = [Blob(_digest("base", number), 1000) for number in range(4)]
    named, manifests = [], []
    for number in range(tags):
        digest, short = _digest("manifest", number), _digest("commit", number)[7:19]
        blobs = (Blob(_digest("config", number), 100), *base, Blob(_digest("layer", number), 5000))
        manifests.append(Stored(digest=digest, media_type=OCI_MANIFEST, size=900, blobs=blobs))
        kind = number % 10
        name = f"v1.{number // 100}.{number}" if kind == 0 else f"main-{short}" if kind < 6 else f"feature-{number % (tags // 50)}-{short}"
        named.append(Tag(name=name, digest=digest, pushed=NOW - timedelta(days=300) * (number / tags), origin=Origin.PUSH))
    repository = Repository(name="registry.test/bench/app", tags=tuple(named), manifests=tuple(manifests))
    return Inventory(registry="registry.test", taken=NOW, repositories=(repository,))


def judge(inventory: Inventory) -> str:
    return plan(inventory, policies("registry.test/**"), Protected(), NOW).sha256


def _digest(*parts: object) -> str:
    return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()


def _memory(host: str) -> float:
    """Bytes a tag that a survey and its plan take while both are held, above a process that has made a small one and let it go."""
    memory = FileMemory()
    names = [f"bench/app{number}" for number in range(REPOSITORIES)]
    asyncio.run(_held(host, names[:4], memory))
    gc.collect()
    idle = _resident()
    held = asyncio.run(_held(host, names, memory))
    gc.collect()
    grown = _resident() - idle
    assert len(held) == 2
    return grown / (REPOSITORIES * TAGS)


async def _held(host: str, names: list[str], memory: FileMemory) -> tuple[Inventory, Plan]:
    async with RegistryReader(Anonymous(), insecure=frozenset({host}), patience=PATIENT) as reader:
        inventory = await survey(reader, host, names, memory, NOW, at_once=AT_ONCE)
    return inventory, plan(inventory, policies(f"{host}/**"), Protected(), NOW)


def _resident() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) * 1024


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        print(_memory(sys.argv[2]))
    else:
        inventory = made_up(int(sys.argv[2]))
        for _ in range(int(sys.argv[3])):
            judge(inventory)
