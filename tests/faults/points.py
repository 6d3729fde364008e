"""Named places in the steps where a fault can be put: before and after every outside effect, without a hook in the product.

An effect happens through one of a few lowest methods (to Redis, to Kubernetes, to registries and where they run, to the broker). Those are wrapped here, so
a step's points are found by running it, and new code is covered without being told of. A point is called by what it does:

    ledger.transition   ledger.hgetall      a script by its file's name, a command by its first word
    ledger.chore_hold                       a write of a chore that only holds its claim, as before each change of a registry
    kubernetes.create   kubernetes.watch    as in `kubernetes_api.KINDS`
    registry.put_manifest   registry.ping   the method and what it is about
    site.close   site.sweep                 what a collection changes where a registry runs, as in `worker.collect.site`
    broker.finish                           the task's name

`points(act)` calls `act(point)` on both sides of each. `act` may record, raise, stop or kill (`actions`), and be a coroutine function
where the effect is one.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from kombu.exceptions import OperationalError

from ledger.blocking import SyncConnection
from ledger.connection import Connection
from ledger.errors import ClusterUnavailable, LedgerUnavailable, RegistryUnavailable
from tests.faults.kubernetes_api import kind_of
from worker.cluster.connection import Api
from worker.collect.kubernetes import KubernetesSite
from worker.collect.local import LocalSite
from worker.nudges import Nudges
from worker.registry.wire import Wire


class Side(StrEnum):
    """Whether the effect has happened."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One moment of a step: the n-th time, from 1, that it comes to this side of this effect."""

    name: str
    side: Side
    number: int

    def __str__(self) -> str:
        return f"{self.name}:{self.side}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Point:
        name, side, number = text.split(":")
        return cls(name, Side(side), int(number))

    @property
    def is_effect(self) -> bool:
        """Whether something outside may be changed by it; a read changes nothing, so a fault beside it is one beside the next effect."""
        return self.name not in _READS and not self.name.startswith(("registry.get_", "registry.head_"))

    @property
    def is_nudge(self) -> bool:
        """Whether it only tells a worker to look: what is lost with it comes by its due time."""
        return self.name.startswith("broker.")


_READS = frozenset(
    {
        *(f"ledger.{word}" for word in ("get", "hget", "hgetall", "time", "info", "config", "lrange", "scan", "xread", "xrevrange")),
        *(f"ledger.{word}" for word in ("exists", "hkeys", "hmget", "hvals", "smembers", "zrange", "zrangebyscore", "zscan", "zscore")),
        *(f"ledger.{name}" for name in ("page", "waiting", "writers", "together", "subscribe")),
        *(f"kubernetes.{kind}" for kind in ("read", "list", "watch", "log", "events", "secret", "review")),
        "ledger.chore_hold",  # it changes nothing but when the claim ends
        "registry.ping",
        "site.dry_run",
    }
)
"""A name that is not here counts as an effect: that costs time only."""
SITE = ("close", "dry_run", "sweep", "restart", "settled", "open")
"""The calls of a site that are points: what only looks is not one."""
Act = Callable[[Point], Awaitable[None] | None]


class _Steps:
    """Counts what passes, from whichever thread."""

    def __init__(self, act: Act) -> None:
        self._act, self._passed, self._lock = act, Counter[tuple[str, Side]](), threading.Lock()

    def _next(self, name: str, side: Side) -> Point:
        with self._lock:
            self._passed[name, side] += 1
            return Point(name, side, self._passed[name, side])

    async def pass_by(self, name: str, side: Side) -> None:
        acted = self._act(self._next(name, side))
        if inspect.isawaitable(acted):
            await acted

    def pass_by_now(self, name: str, side: Side) -> None:
        acted = self._act(self._next(name, side))
        if inspect.iscoroutine(acted):
            asyncio.run(acted)  # a thread without a loop

    # The four ways out

    def around_call(self, real: Callable[..., Awaitable[Any]], name_of: Callable[..., str]) -> Callable[..., Awaitable[Any]]:
        async def call(itself: Any, *arguments: Any, **options: Any) -> Any:
            name = name_of(*arguments, **options)
            await self.pass_by(name, Side.BEFORE)
            answer = await real(itself, *arguments, **options)
            await self.pass_by(name, Side.AFTER)
            return answer

        return call

    def around_call_now(self, real: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
        def call(itself: Any, *arguments: Any, **options: Any) -> Any:
            name = name_of(*arguments, **options)
            self.pass_by_now(name, Side.BEFORE)
            answer = real(itself, *arguments, **options)
            self.pass_by_now(name, Side.AFTER)
            return answer

        return call

    def around_stream(self, real: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
        @asynccontextmanager
        async def stream(itself: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
            name = name_of(*arguments, **options)
            await self.pass_by(name, Side.BEFORE)
            async with real(itself, *arguments, **options) as answer:
                await self.pass_by(name, Side.AFTER)
                yield answer

        return stream


@contextmanager
def points(act: Act) -> Iterator[None]:
    """Within the block every effect of this process passes `act`, before and after."""
    steps = _Steps(act)
    wrapped = (
        (Connection, "run", steps.around_call, _script),
        (Connection, "command", steps.around_call, _word),
        (Connection, "commands", steps.around_call, lambda *_: "ledger.together"),
        (Connection, "read_stream", steps.around_call, lambda *_, **__: "ledger.xread"),
        (Connection, "subscribed", steps.around_stream, lambda *_: "ledger.subscribe"),
        (SyncConnection, "run", steps.around_call_now, _script),
        (SyncConnection, "command", steps.around_call_now, _word),
        (Api, "call", steps.around_call, _kubernetes),
        (Api, "stream", steps.around_stream, lambda path, query, **_: _kubernetes("GET", path, query=query)),
        (Wire, "send", steps.around_call, _registry),
        *((site, call, steps.around_call, _named(f"site.{call}")) for site in (LocalSite, KubernetesSite) for call in SITE),
        (Nudges, "_send", steps.around_call_now, lambda task, *_: f"broker.{task.rpartition('.')[2]}"),
    )
    with ExitStack() as undo:
        for owner, method, around, name_of in wrapped:
            undo.enter_context(patch.object(owner, method, around(getattr(owner, method), name_of)))
        yield


def _named(name: str) -> Callable[..., str]:
    return lambda *_, **__: name


def _script(name: str, *given: Any) -> str:
    if name == "chore_write" and given[2] != "" and given[8:] == (0, 0):  # a claim that goes on, without fields, events and commands
        return "ledger.chore_hold"
    return f"ledger.{name}"


def _word(word: str, *_: Any) -> str:
    return f"ledger.{word.lower()}"


def _kubernetes(method: str, path: str, *, query: Any = None, **_: Any) -> str:
    return f"kubernetes.{kind_of(method, path, watch='watch' in (query or {}))}"


def _registry(method: str, url: str, **_: Any) -> str:
    path = urlsplit(url).path
    if path == "/v2/":
        return "registry.ping"
    about = re.search(r"/(manifest|blob|tag)s/", path)
    return f"registry.{method.lower()}_{about[1] if about else 'token'}"


# What can be done at a point


def _kill(point: Point) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(point: Point) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail(point: Point) -> None:
    """The error that this effect's module says when the other side did not answer."""
    cluster = {"kubernetes": ClusterUnavailable, "site": ClusterUnavailable}
    error = {"ledger": LedgerUnavailable, "registry": RegistryUnavailable, "broker": OperationalError, **cluster}
    raise error[point.name.partition(".")[0]](f"made to fail at {point}")


def _delay(point: Point) -> Awaitable[None] | None:
    if threading.current_thread() is not threading.main_thread():
        time.sleep(DELAY)
        return None
    return asyncio.sleep(DELAY)


DELAY = 0.5
"""Seconds that a delayed effect waits."""
ACTIONS: dict[str, Callable[[Point], Awaitable[None] | None]] = {"kill": _kill, "stop": _stop, "fail": _fail, "delay": _delay}


def several(given: Point | Collection[Point]) -> frozenset[Point]:
    """One point, or some, as a set."""
    return frozenset({given} if isinstance(given, Point) else given)


def at(given: Point | Collection[Point], action: str, otherwise: Act) -> Act:
    """Do something at a point, or at each of several, and something else, as recording, at all of them first."""
    wanted = several(given)

    def act(point: Point) -> Awaitable[None] | None:
        otherwise(point)
        return ACTIONS[action](point) if point in wanted else None

    return act
