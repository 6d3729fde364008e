"""What cases are tried on one after another, each as if it were the first: it is set back, and the ledger's keys with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from ledger.connection import Connection


class Settable(Protocol):
    """Something that can be set back."""

    async def set_back(self) -> None:
        """Everything as it was at first. No child of an earlier case may live."""
        ...


_S = TypeVar("_S", bound=Settable)


class Scenes(Generic[_S]):
    """A few of them, taken in turn by cases that are tried side by side."""

    def __init__(self, made: Sequence[_S]) -> None:
        self.at_once = len(made)
        self._free: asyncio.Queue[_S] = asyncio.Queue()
        for scene in made:
            self._free.put_nowait(scene)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[_S]:
        scene = await self._free.get()
        try:
            await scene.set_back()
            yield scene
        finally:
            self._free.put_nowait(scene)


async def keys_of(connection: Connection) -> dict[bytes, bytes]:
    """All that a ledger holds."""
    keys = await _names_of(connection)
    return dict(zip(keys, await connection.commands(*(("DUMP", key) for key in keys)), strict=True))


async def put_back(connection: Connection, keys: Mapping[bytes, bytes]) -> None:
    """Let it hold that, and nothing else."""
    await connection.commands(
        ("DEL", connection.keys.root, *await _names_of(connection)), *(("RESTORE", key, 0, value) for key, value in keys.items())
    )


async def _names_of(connection: Connection) -> list[bytes]:
    found: list[bytes] = await connection.command("KEYS", f"{connection.keys.root}*")
    return found
