"""A real ledger and a real registry with a policy, and the chores of retention run on them as a worker does, one after another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from ledger.build import milliseconds
from ledger.chores import ChoreState
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from tests.integration.registry_server import RegistryServer
from tests.scripted_cluster import ScriptedCluster
from worker.chores import go_on
from worker.kinds import KINDS
from worker.place import Place
from worker.registries import Registries

OLD, RECENT = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"


class RetentionSite:
    """Retention at work."""

    def __init__(self, place: Place, registry: RegistryServer, repository: str) -> None:
        self.place, self.ledger, self.registry, self.repository = place, place.ledger, registry, repository
        self.name = f"{registry.host}/{repository}"

    async def settle(self, policy: dict[str, Any] | None = None, **site: Any) -> None:
        """Store the projects file with a policy of the repository."""
        fields = {"delete": ["*"], "keep": [{"last": 1}], "grace": "0s", "max_share": 1.0, **(policy or {})}
        said = {
            "version": 1,
            "projects": {
                "team": {
                    "policy": {"destinations": ["**"], "sources": ["**"]},
                    "registries": {self.registry.host: {"insecure": True}},
                    "retention": [{"repositories": [self.name], **fields}],
                }
            },
            **site,
        }
        await self.ledger.store_projects(parse_projects(json.dumps(said)))
        self.place._copy.until = 0.0

    async def run(self, name: str) -> str:
        """Go on with a chore until it has ended or waits for long; what it said."""
        for _ in range(60):
            await go_on(self.place, name, KINDS, seconds=5)
            chore = await self.ledger.chores.read(name)
            if chore.state is not ChoreState.WAITING or (chore.due and chore.due - await self.ledger.now() > timedelta(minutes=5)):
                return chore.said or ""
        raise AssertionError(f"{name} does not come to its end: {chore}")

    async def plan(self) -> str:
        """A new plan's hash."""
        await self.ledger.chores.start(f"plan:{self.registry.host}", self.registry.host)
        return await self.run(f"plan:{self.registry.host}")

    async def approve(self, sha: str, *despite: str) -> None:
        await self.ledger.plans.approve(sha, "ada", await self.ledger.now(), despite)

    async def apply(self, sha: str, *despite: str) -> str:
        await self.approve(sha, *despite)
        return await self.run(f"apply:{sha}")

    async def undo(self, sha: str) -> str:
        await self.ledger.chores.start(f"undo:{sha}", self.registry.host)
        return await self.run(f"undo:{sha}")

    async def claim_is_over(self, name: str) -> None:
        """As if the time were over for which a claim that nobody gave back keeps others away."""
        await self.ledger.connection.command("HDEL", self.ledger.connection.keys.chore(name), "held")

    async def unpin_all(self) -> None:
        for mark in await self.ledger.shelf.pins():
            assert await self.ledger.shelf.unpin(mark)

    async def window_ends(self) -> None:
        """As if the undo window of all that is in the bin were over."""
        key = self.ledger.connection.keys.bin(self.name)
        past = await self.ledger.now() - timedelta(seconds=1)
        for entry in await self.ledger.bin.entries(self.name):
            text = entry.model_copy(update={"until": past}).model_dump_json()
            await self.ledger.connection.command("HSET", key, f"{entry.plan} {entry.digest}", text)

    async def purge(self) -> str:
        await self.ledger.chores.start(f"purge:{self.registry.host}", self.registry.host)
        return await self.run(f"purge:{self.registry.host}")

    async def age(self, sha: str, by: timedelta) -> None:
        """As if a plan had been made earlier."""
        key = self.ledger.connection.keys.plan(sha)
        await self.ledger.connection.command("HSET", key, "made", milliseconds(await self.ledger.now() - by))

    def tags(self) -> dict[str, str]:
        """What is there: tag -> digest; the quarantine's among them."""
        with self.registry.http() as http:
            answer = http.get(f"{self.repository}/tags/list")
            names = (answer.json().get("tags") or []) if answer.status_code == 200 else []
            return {name: self.has(name) or "" for name in names}

    def people_see(self) -> dict[str, str]:
        return {tag: digest for tag, digest in self.tags().items() if not tag.startswith("crabpot-quarantine-")}

    def has(self, reference: str) -> str | None:
        """The digest behind a tag or digest, None where there is none."""
        accept = {"Accept": "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"}
        with self.registry.http() as http:
            answer = http.head(f"{self.repository}/manifests/{reference}", headers=accept)
            return answer.headers["docker-content-digest"] if answer.status_code == 200 else None

    async def events(self, word: str) -> list[dict[str, Any]]:
        found = [json.loads(text) for _, text in await self.ledger.events("0-0", block=0.01, count=100_000)]
        return [event for event in found if word in event["type"]]


@asynccontextmanager
async def retention_site(settings: Settings, registry: RegistryServer, repository: str) -> AsyncIterator[RetentionSite]:
    ledger, cluster = Ledger.open(settings), ScriptedCluster()
    place = Place(settings, ledger, cluster, Registries(cluster, settings))
    try:
        yield RetentionSite(place, registry, repository)
    finally:
        await place.close()
