"""`crabpot gc`: plan, run and look at collections of garbage. It writes into the ledger; workers do the work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from ledger.chores import Chore, ChoreState
from ledger.collected import CHORES, next_of, told_of
from ledger.console import JSON, say_json, say_table, say_time
from ledger.settings import Settings
from ledger.store import Ledger

_LOOK = 1.0
_WAIT = click.option("--wait/--no-wait", default=True, help="Wait for the end (the default).")


@click.group("gc")
def command() -> None:
    """Collect registries' garbage: the space of what was deleted. Which registries is said under `collect` in the projects file."""


@command.command()
@click.argument("registry")
@_WAIT
@JSON
def plan(registry: str, wait: bool, as_json: bool) -> None:
    """Say what a collection would free. Nothing is changed, and nobody waits."""
    asyncio.run(_start(CHORES["plan"], registry, wait, as_json))


@command.command()
@click.argument("registry")
@_WAIT
@JSON
def run(registry: str, wait: bool, as_json: bool) -> None:
    """Collect now: builds that push there wait, the registry is read-only meanwhile, and all is read back afterwards."""
    asyncio.run(_start(CHORES["run"], registry, wait, as_json))


@command.command()
@JSON
def status(as_json: bool) -> None:
    """List collections, those under way first, and when each schedule comes next. Times are in UTC."""
    asyncio.run(_status(as_json))


async def _start(kind: str, registry: str, wait: bool, as_json: bool) -> None:
    async with Ledger.opened(Settings.load()) as ledger:
        named = (await ledger.site()).collected(registry).registry
        name = f"{kind}:{named}"
        if not await ledger.chores.start(name, named):
            click.echo(f"crabpot: it is under way already ({name})", err=True)
        shown = ""
        async for chore in ledger.chores.follow(name, _LOOK):
            if not wait:
                break
            if chore.state is ChoreState.WAITING and chore.said and chore.said != shown and not as_json:
                shown = chore.said
                click.echo(shown, err=True)
    if as_json:
        say_json(told_of(chore))
    elif wait:
        click.echo(chore.said or "")
    else:
        click.echo(f"{name} is on its way; crabpot gc status shows it")
    if wait and (_failed(chore) or chore.state is ChoreState.STOPPED):
        sys.exit(1)


async def _status(as_json: bool) -> None:
    async with Ledger.opened(Settings.load()) as ledger:
        chores = await ledger.chores.all(*CHORES.values())
        site, now = await ledger.site(), await ledger.now()
    following = [told for one in site.collect if (told := next_of(one, now))]
    if as_json:
        say_json({"collections": [told_of(chore) for chore in chores], "next": following})
        return
    rows = [(chore.name, chore.state.value, _step(chore), say_time(chore.updated), chore.said or "") for chore in chores]
    rows += [
        (f"{CHORES['run']}:{one['registry']}", "scheduled", "", say_time(datetime.fromisoformat(one["at"])), _said(one))
        for one in following
    ]
    say_table(("COLLECTION", "STATE", "STEP", "AT", "WHAT"), rows, {})


def _said(following: Mapping[str, Any]) -> str:
    there = datetime.fromisoformat(following["there"])
    return f"next at {there:%a %Y-%m-%d %H:%M} {following['time_zone']} ({following['schedule']}), up to {following['jitter']} later"


def _failed(chore: Chore) -> bool:
    return bool((chore.progress.get("state") or {}).get("trouble"))


def _step(chore: Chore) -> str:
    return str((chore.progress.get("state") or {}).get("step", ""))
