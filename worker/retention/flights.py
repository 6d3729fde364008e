"""What the builds push that have not ended: all of the queue, so it is remembered for a moment where many repositories are looked at in a row."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic

from ledger.build import State
from ledger.store import Ledger

LATELY = timedelta(seconds=10)
"""How old it may be where tags go into the bin. A build that came since then still has its tag: taking one away asks what builds want of it."""
_UNFINISHED = tuple(state for state in State if not state.final)
_PAGE = 500


class Flights:
    """The builds under way, for one process."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._marks: Mapping[str, str] = {}
        self._begun: float | None = None

    async def marks(self, ledger: Ledger, age: timedelta) -> Mapping[str, str]:
        """Each image that a build is to make or has made, by its mark (`ImageReference.mark`) -> which build; at most so old. LedgerError."""
        async with self._turn:
            begun = monotonic()
            # Counted from the beginning of the reading: what came in the middle of it may have been missed.
            if self._begun is None or begun - self._begun >= age.total_seconds():
                self._marks, self._begun = await _read(ledger), begun
            return self._marks


async def _read(ledger: Ledger) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for state in _UNFINISHED:
        cursor: str | None = None
        while True:
            page = await ledger.page(state=state, cursor=cursor, limit=_PAGE)
            for build in page.builds:
                told, pushed = f"build {build.id}", build.pushed_image
                found.update((image.mark, told) for image in (*build.request.images, *((pushed,) if pushed else ())))
                if build.digest:
                    found[build.digest] = told
            cursor = page.cursor
            if cursor is None:
                break
    return found
