"""A repository at the moment before a chore of retention, on a real registry and with a ledger of its own; set back there for each case.

To push images and to plan costs more than what is tried on them. So what lies there is kept once it does: the repository's manifests and tags in
the registry's storage, and the ledger's keys. Cases follow one another on a few such scenes, each as if it were the first.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from ledger.chores import CLAIM, ChoreState
from ledger.settings import Settings
from tests.faults.forks import Child, Forks
from tests.faults.points import Point, points
from tests.faults.set_back import Scenes, keys_of, put_back
from tests.integration.registry_server import OCI_INDEX, OCI_MANIFEST, RegistryServer, digest_of
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.chores import go_on
from worker.kinds import KINDS
from worker.retention.protection import QUARANTINE

CHORES = ("apply", "undo", "purge")
_AT_ONCE = 3
_POLICY = {"keep": [{"last": 1}, {"matching": ["stable"]}]}
_SHIFT = """
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('ZINCRBY', KEYS[1], -ARGV[1], name)
  if redis.call('HEXISTS', KEYS[2] .. name, 'held') == 1 then redis.call('HINCRBY', KEYS[2] .. name, 'held', -ARGV[1]) end
end
"""
_numbers = itertools.count()


@dataclass
class Kept:
    """What a scene is set back to, by its clients of whichever test."""

    name: str
    """Its ledger's prefix, and the first part of its repository's path."""
    kind: str
    files: Path
    """Where the registry keeps the repository's manifests and tags."""
    pushed: dict[str, bytes] = field(default_factory=dict)
    chore: str = ""
    keys: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def copy(self) -> Path:
        return self.files.with_name(f"{self.files.name}.copy")


class Scene:
    """An index and its part go, and an image and its signature; one tag of an image that stays goes alone; one image stays as it is."""

    def __init__(self, site: RetentionSite, settings: Settings, kept: Kept) -> None:
        self.site, self.settings, self.kept = site, settings, kept

    @property
    def chore(self) -> str:
        return self.kept.chore

    @property
    def pushed(self) -> dict[str, bytes]:
        return self.kept.pushed

    async def prepare(self) -> None:
        """All that comes before the chore, and keep it."""
        site, registry = self.site, self.site.registry
        await site.settle(_POLICY)
        self.kept.pushed = pushed = {
            name: registry.push_image(site.repository, tag, layers=(name.encode(),), created=RECENT if tag == "new" else OLD)
            for name, tag in (("new", "new"), ("shared", "stable"), ("old", "old"), ("part", None))
        }
        pushed["index"] = registry.push_index(site.repository, "index", {"linux/amd64": pushed["part"]}, media_type=OCI_INDEX)
        pushed["signature"] = registry.push_image(site.repository, self._signature, layers=(b"signature",))
        registry.push_manifest(site.repository, "v1", json.loads(pushed["shared"]))
        sha = await site.plan()
        await site.approve(sha)
        self.kept.chore = f"apply:{sha}"
        if self.kept.kind != "apply":
            await site.run(self.chore)
            self.kept.chore = f"undo:{sha}" if self.kept.kind == "undo" else f"purge:{registry.host}"
            if self.kept.kind == "purge":
                await site.window_ends()
            await site.ledger.chores.start(self.chore, registry.host)
        shutil.copytree(self.kept.files, self.kept.copy)
        self.kept.keys = await keys_of(site.ledger.connection)

    async def set_back(self) -> None:
        """Everything as `prepare` left it. No child of an earlier case may live."""
        shutil.rmtree(self.kept.files)
        shutil.copytree(self.kept.copy, self.kept.files)
        await put_back(self.site.ledger.connection, self.kept.keys)

    @property
    def tags(self) -> dict[str, str]:
        """As people pushed them."""
        of = {"new": "new", "stable": "shared", "v1": "shared", "old": "old", "index": "index", self._signature: "signature"}
        return {tag: digest_of(self.pushed[name]) for tag, name in of.items()}

    @property
    def _signature(self) -> str:
        return digest_of(self.pushed["old"]).replace(":", "-") + ".sig"

    # Who works

    async def start(self, forks: Forks, injection: tuple[Point, str] | None) -> Child:
        """The chore in a process of its own, a worker's."""
        environment = {
            "CRABPOT_REDIS_URL": self.settings.redis_url,
            "CRABPOT_PREFIX": self.settings.prefix,
            "CRABPOT_STATE": str(self.settings.state),
            "CRABPOT_CLUSTER": self.settings.cluster,
            "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", ""),
        }
        return await forks.start("chore", environment, {"name": self.chore}, injection)

    async def claims_end(self) -> None:
        """As if a claim's time had passed: whoever was killed is no longer waited for."""
        keys = self.site.ledger.connection.keys
        await self.site.ledger.connection.command("EVAL", _SHIFT, 2, keys.chores, keys.chore(""), CLAIM // timedelta(milliseconds=1))

    async def goes_on(self) -> None:
        """Another worker comes to the chore as the leader would send it."""
        await self.claims_end()
        assert self.chore in await self.site.ledger.chores.due() or await self.is_done()
        await self.site.run(self.chore)

    async def is_done(self) -> bool:
        return (await self.site.ledger.chores.read(self.chore)).state is ChoreState.DONE

    async def effects(self) -> list[Point]:
        """What a worker passes that nobody disturbs."""
        passed: list[Point] = []
        with points(passed.append):
            await go_on(self.site.place, self.chore, KINDS)
        await self.check(self.kept.kind)
        return [point for point in passed if point.is_effect or point.name == "ledger.chore_hold"]

    # What must be

    async def nothing_is_lost(self) -> None:
        """In the middle of a chore: what stays is there, and what is not told to be gone for good is in the registry or in the bin."""
        binned = {entry.digest: entry.body for entry in await self.site.ledger.bin.entries(self.site.name)}
        over = {event["data"]["customData"]["image"].partition("@")[2] for event in await self.site.events("artifact.deleted")}
        with self.site.registry.http() as http:
            for name, raw in self.pushed.items():
                digest = digest_of(raw)
                assert self._read(http, digest) == raw or binned.get(digest) == raw or digest in over, f"{name} is nowhere"
            for tag in ("new", "stable"):
                assert digest_of(self._read(http, tag) or b"") == self.tags[tag], f"{tag} is lost"

    async def check(self, kind: str) -> None:
        """All is as after a chore that nobody disturbed: what stays is whole, and each thing is told once."""
        site = self.site
        assert await self.is_done(), await site.ledger.chores.read(self.chore)
        goes = {"old", "index", "part", "signature"}
        with site.registry.http() as http:
            gone = {name for name, raw in self.pushed.items() if self._read(http, digest_of(raw)) is None}
            assert gone == (goes if kind == "purge" else set())
            tags = http.get(f"{site.repository}/tags/list").raise_for_status().json()["tags"]
            seen = {tag: digest_of(self._read(http, tag) or b"") for tag in tags if not tag.startswith(QUARANTINE)}
            assert seen == (self.tags if kind == "undo" else {tag: self.tags[tag] for tag in ("new", "stable")})
            self._is_whole(http, set(seen.values()))
        binned = {entry.digest: entry.body for entry in await site.ledger.bin.entries(site.name)}
        assert binned == ({digest_of(raw): raw for name, raw in self.pushed.items() if name != "new"} if kind == "apply" else {})
        if kind == "apply":
            assert (await site.ledger.chores.read(f"purge:{site.registry.host}")).due
        await self._is_told_once(kind)

    async def _is_told_once(self, kind: str) -> None:
        untagged = {f"{self.site.name}:{tag}" for tag in self.tags.keys() - {"new", "stable"}}
        assert Counter(event["data"]["image"] for event in await self.site.events("untagged")) == dict.fromkeys(untagged, 1)
        [applied] = [event["data"] for event in await self.site.events("registry.applied")]
        assert (applied["untagged"], applied["binned"], applied["skipped"]) == (4, 4, 0), applied
        undone = [event["data"] for event in await self.site.events("registry.undone")]
        assert [(event["returned"], event["left"], event["lost"]) for event in undone] == ([(8, 0, 0)] if kind == "undo" else [])
        assert len(await self.site.events("artifact.deleted")) == (4 if kind == "purge" else 0)

    def _read(self, http: httpx.Client, reference: str) -> bytes | None:
        """A manifest's bytes; None: there is none."""
        answer = http.get(f"{self.site.repository}/manifests/{reference}", headers={"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"})
        return None if answer.status_code == 404 else answer.raise_for_status().content

    def _is_whole(self, http: httpx.Client, digests: set[str]) -> None:
        """All that these are made of can be read."""
        found, parts = list(digests), set()
        while found:
            raw = self._read(http, digest := found.pop()) or b""
            assert digest_of(raw) == digest
            body: dict[str, Any] = json.loads(raw)
            found += [child["digest"] for child in body.get("manifests", ())]
            parts |= {part["digest"] for part in (body["config"], *body["layers"])} if "layers" in body else set()
        for part in parts:
            assert digest_of(http.get(f"{self.site.repository}/blobs/{part}").raise_for_status().content) == part


@dataclass
class Stage:
    """A registry (a distribution) with the scenes that lie there."""

    server: RegistryServer
    storage: Path
    untags: bool
    kept: dict[str, list[Kept]] = field(default_factory=dict)
    """By the kind of chore."""

    @asynccontextmanager
    async def scenes(self, settings: Settings, kind: str) -> AsyncIterator[Scenes[Scene]]:
        """A few scenes before a chore of this kind; made when a test first asks for them."""
        async with AsyncExitStack() as stack:
            made = [await self._open(stack, settings, kept) for kept in self.kept.get(kind, ())]
            while len(made) < _AT_ONCE:
                name = f"kill{next(_numbers)}"
                kept = Kept(name, kind, self.storage / f"docker/registry/v2/repositories/{name}/app/_manifests")
                made.append(await self._open(stack, settings, kept))
                await made[-1].prepare()
                self.kept.setdefault(kind, []).append(kept)
            yield Scenes(made)

    async def _open(self, stack: AsyncExitStack, settings: Settings, kept: Kept) -> Scene:
        own = settings.model_copy(update={"prefix": kept.name})
        return Scene(await stack.enter_async_context(retention_site(own, self.server, f"{kept.name}/app")), own, kept)
