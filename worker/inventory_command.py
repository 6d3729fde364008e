"""`crabpot retention inventory`: what a registry holds, printed so that policies can be tried on it without asking again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import click

from ledger.settings import Settings
from ledger.store import Ledger
from worker.command_line import TARGET
from worker.registry.reader import RegistryReader
from worker.registry_access import Access, reaching
from worker.retention.inventory import Inventory
from worker.retention.memory import LocalMemory, Memory
from worker.retention.pulled import ask_pulls, with_pulls
from worker.retention.remembered import Remembered
from worker.retention.survey import survey


@click.command("inventory")
@click.argument("targets", type=TARGET, nargs=-1, required=True, metavar="REGISTRY|REPOSITORY...")
@reaching
def save_inventory(targets: tuple[str, ...], access: Access) -> None:
    """Print what repositories of a registry hold, for `retention try`: of all that it lists, or of those that are named.

    With --project it is known what crabpot pushed and when, as surveys know it; else the images' own dates count.
    """
    hosts = {target.partition("/")[0] for target in targets}
    if len(hosts) > 1:
        raise click.UsageError("name one registry, or repositories of one")
    [registry] = hosts
    found = asyncio.run(_look(access, registry, targets))
    click.echo(found.text())
    if troubled := [repository for repository in found.repositories if repository.trouble is not None]:
        for repository in troubled:
            click.echo(f"{repository.name} was not wholly read, so nothing in it would go: {repository.trouble}", err=True)
        sys.exit(1)


async def _look(access: Access, registry: str, targets: Sequence[str]) -> Inventory:
    """An inventory of what is named as it is now. RegistryError: a registry that is named does not list its repositories."""
    async with access.open(RegistryReader, registry) as reader, _remembered(access) as (memory, now):
        if registry in targets:
            paths = sorted([path async for path in reader.catalog(registry)])
        else:
            paths = sorted({target.partition("/")[2] for target in targets})
        pulls = await ask_pulls(reader, registry, paths, now)
        return with_pulls(await survey(reader, registry, paths, memory, now), pulls)


@asynccontextmanager
async def _remembered(access: Access) -> AsyncIterator[tuple[Memory, datetime]]:
    """What surveys remember, and the time by whoever remembers it: the ledger of a project, else nobody."""
    if access.project is None:
        yield LocalMemory(), datetime.now(UTC)
        return
    async with Ledger.opened(Settings.load()) as ledger:
        yield Remembered(ledger.shelf), await ledger.now()
