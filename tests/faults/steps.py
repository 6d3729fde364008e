"""The steps as a process runs them, for `forks.py`: each is a function of plain arguments. Settings come from its environment.

A new step is a function here; `test_kills.py` says what it starts from and how it goes on after a fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

# What a child would import when it first needs it, the parent imports once.
import anyio._backends._asyncio  # noqa: F401
import httpcore  # noqa: F401
import kombu.transport.redis  # noqa: F401
import sniffio  # noqa: F401

import worker.cluster.kubernetes
import worker.cluster.local  # noqa: F401
from ledger.errors import FenceLost
from ledger.leases import Fence
from ledger.settings import settings
from producer.cancel import cancel_build
from producer.submit import submit_build
from tests.collect_runs import to_its_end
from tests.faults.points import Act, Point, at, points
from worker.admission import dispatch
from worker.chores import go_on
from worker.finish import finish
from worker.kinds import KINDS
from worker.liveness import Liveness
from worker.nudges import Nudges
from worker.place import Place, open_place
from worker.watcher import LEASE, LEASE_TTL, lead

Step = Callable[..., Awaitable[Any]]


async def _submit(request: dict[str, Any], key: str) -> None:
    submit_build(request, idempotency_key=key)


async def _dispatch(place: Place, build: str | None = None) -> None:
    await dispatch(place, build)


async def _finish(place: Place, build: str) -> None:
    await finish(place, build)


async def _chore(place: Place, name: str) -> None:
    await go_on(place, name, KINDS)


async def _collect(place: Place, name: str, bits: int | None = None) -> None:
    await to_its_end(place, name, bits=bits)


async def _cancel(place: Place, build: str) -> None:
    await cancel_build(place.ledger, build)


async def _lead(place: Place) -> None:
    """As `crabpot watch` does, with its own broker; until it is killed."""
    from worker.app import app

    fence = await place.ledger.leases.take(LEASE, "child", LEASE_TTL)
    if fence is None:
        raise FenceLost
    await lead(place, Nudges(app), Liveness(None), Fence(LEASE, fence), "child")


def _placed(step: Step) -> Step:
    """A step of a worker or a watcher, whose place is open before it begins."""

    async def run(act: Act, **arguments: Any) -> None:
        place = await open_place(settings())
        with points(act):
            await step(place, **arguments)

    return run


def _alone(step: Step) -> Step:
    async def run(act: Act, **arguments: Any) -> None:
        with points(act):
            await step(**arguments)

    return run


STEPS: dict[str, Step] = {
    "submit": _alone(_submit),
    "dispatch": _placed(_dispatch),
    "finish": _placed(_finish),
    "chore": _placed(_chore),
    "collect": _placed(_collect),
    "cancel": _placed(_cancel),
    "lead": _placed(_lead),
}


def run(step: str, arguments: dict[str, Any], injection: tuple[list[str], str] | None, passed: Callable[[Point], None]) -> None:
    """Run a step in this process, telling of each point that it passes; with an injection (points, action), do that there."""
    act = at(frozenset(map(Point.parse, injection[0])), injection[1], passed) if injection else passed
    asyncio.run(STEPS[step](act, **arguments))
