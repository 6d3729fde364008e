"""What the worker's commands have in common: how they read images and registries, and how they ask the ledger and wait for a chore."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar

import click

from ledger.chores import ChoreState
from ledger.errors import Conflict, LedgerUnavailable
from ledger.references import ImageReference, parse_registry, parse_target
from ledger.settings import Settings
from ledger.store import Ledger

_T = TypeVar("_T")
_PULSE = 0.5
WAIT = click.option("--timeout", type=click.FloatRange(0), default=600.0, show_default=True, help="Seconds to wait; the work goes on.")


class Parsed(click.ParamType[_T]):
    """An argument that a function reads; its ValueError says what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], _T]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _T:
        try:
            return self._parse(value) if isinstance(value, str) else value  # click may convert again what it has converted
        except ValueError as error:
            self.fail(str(error), param, ctx)


IMAGE, HOST = Parsed("image", ImageReference.parse), Parsed("registry", parse_registry)
TARGET = Parsed("registry", parse_target)


def on_ledger(work: Callable[[Ledger], Awaitable[_T]]) -> _T:
    """Do something with the ledger that the environment names."""

    async def run() -> _T:
        async with Ledger.opened(Settings.load()) as ledger:
            return await work(ledger)

    return asyncio.run(run())


async def ended(ledger: Ledger, chore: str, seconds: float) -> str:
    """How a chore ended. Conflict: it was stopped; LedgerUnavailable: nobody came to it, or it takes longer."""
    end = monotonic() + seconds
    async for found in ledger.chores.follow(chore, _PULSE):
        if found.state is ChoreState.STOPPED:
            raise Conflict(f"{chore} stopped: {found.said}")
        if found.state is ChoreState.WAITING and monotonic() > end:
            raise LedgerUnavailable(f"{chore} has not ended ({found.said or 'no more is known'}); do `crabpot watch` and a worker run?")
    return found.said or ""
