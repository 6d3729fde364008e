"""Turns at a node: only a few requests to one kubelet wait for its first word at once.

A node that has died answers nobody for half a minute. All its logs asked for at once would be a hundred hanging requests, here and in
the API server; other nodes' logs must not wait behind them either. So each node has turns of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

_AT_ONCE = 4


class Turns:
    """The turns of all nodes. A node that nobody asks is forgotten."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds after which a turn is passed on although its holder still waits."""
        self._patience = patience
        self._nodes: WeakValueDictionary[str | None, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def at(self, node: str | None) -> AsyncIterator[None]:
        """Wait for a turn at this node, and hold it for the block, or until patience has run out."""
        turns = self._nodes.setdefault(node, asyncio.Semaphore(_AT_ONCE))
        await turns.acquire()
        # A kubelet may say nothing before a quiet container's first line: its other logs shall not wait for that.
        held = True

        def pass_on() -> None:
            nonlocal held
            if held:
                held = False
                turns.release()

        timer = asyncio.get_running_loop().call_later(self._patience, pass_on)
        try:
            yield
        finally:
            timer.cancel()
            pass_on()
