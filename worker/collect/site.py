"""Where a registry runs, as a collection sees it: what can be asked of its processes and its storage.

Every call may be repeated, also by another process after the first was killed in it. `run` names the collection in all that is left outside.
A call that only changes what is wanted (`close`, `restart`, `open`) returns at once; the calls that look say what came of it. Each `restart`
replaces the processes anew.

Those three look first, then ask whether the run is still the worker's own (`ours`, which raises where it is not), and then change what they have
seen, if it is still that: ClusterUnavailable where it is not. So a worker that sleeps anywhere in them, and wakes up when another has ended
the run, or begun the next one, changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from worker.collect.steps import Finding

Ours = Callable[[], Awaitable[None]]
"""Whether the run is still the worker's own: raises where it is not."""


@dataclass(frozen=True, slots=True)
class Door:
    """One process of a registry, and where it alone is reached."""

    process: str
    """Its identity: another process never has the same."""
    address: str
    """host:port"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A registry's processes, as they are."""

    doors: tuple[Door, ...] = ()
    unsettled: str | None = None
    """Why these are not all that there is, or not for long: old ones end, new ones start."""
    mark: str | None = None
    """The run that has closed it, or is about to."""
    closed: bool = False
    """It is told to be read-only: no proof."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How a sweep, dry or not, ended: what it printed."""

    output: str


class Site(Protocol):
    """Every call may raise ClusterError."""

    async def look(self) -> Finding:
        """Whether it can be made read-only and swept at all."""
        ...

    async def standing(self) -> Standing: ...

    async def close(self, run: str, ours: Ours) -> None:
        """Tell it to be read-only, and leave the run's mark."""
        ...

    async def dry_run(self, run: str) -> Swept | Finding:
        """What a sweep would delete; may run beside everything. `Wait`: it goes on."""
        ...

    async def sweep(self, run: str, number: int, *, resumed: bool) -> Swept | Finding:
        """Sweep, only within or beside a process that is closed by this run. `Wait`: it goes on; `Lost`: an earlier call was cut off (`resumed`), and nobody knows how it ended."""
        ...

    async def restart(self, ours: Ours) -> None:
        """New processes, as closed as these; what was executed within the old ones ends with them."""
        ...

    async def settled(self, old: tuple[str, ...]) -> Finding:
        """Whether those processes are gone and others are up, and no sweeper lives."""
        ...

    async def open(self, ours: Ours) -> None:
        """Take everything back that a run has changed, whichever. ClusterUnavailable also where a sweeper lives, which is ended."""
        ...
