"""Doing the same for many things, some of them at a time, without a task for each: a hundred thousand tasks would be memory for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


async def each(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]], at_once: int) -> None:
    """Do the work for every item, `at_once` at a time. The first error ends it and is raised as it is."""
    ahead = iter(items)

    async def some() -> None:
        for item in ahead:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(some())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
