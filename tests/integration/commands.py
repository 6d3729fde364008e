"""`crabpot` as a process, and the worker beside it that does what a command waits for."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from worker.chores import go_on
from worker.kinds import KINDS
from worker.place import Place

CRABPOT = str(Path(sys.executable).parent / "crabpot")


async def run_crabpot(*arguments: str | Path, given: str = "", **environment: str) -> tuple[int, str, str]:
    """Run it with no settings but these, and without the caller's docker config; (exit code, standard output, standard error)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CRABPOT_", "DOCKER_"))}
    process = await asyncio.create_subprocess_exec(
        CRABPOT, *arguments, env={**clean, **environment},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(given.encode())
    return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def working(place: Place) -> AsyncIterator[None]:
    """A leader and a worker, as far as chores are concerned."""

    async def work() -> None:
        while True:
            for name in await place.ledger.chores.due():
                await go_on(place, name, KINDS)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
