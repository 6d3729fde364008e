"""What goes wrong between a client and the Kubernetes API: by kind of request and number, one inside another.

A trouble stands around the handler of a request. It may answer in its place, let it do its work and lose the answer, or change the
lines of a stream. A new one is a function of that shape.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

from aiohttp import web

from tests.faults.kubernetes_api import status

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Trouble = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
Lines = AsyncIterator[bytes]
Rule = Callable[[str, int], Sequence[Trouble]]
"""(kind of request, its number from 1 on) -> what goes wrong with it."""
CLOSING = web.AppKey("closing", asyncio.Event)
"""Set when the server ends: until then silence lasts."""
CHANGES = web.RequestKey("changes", list)
"""What the lines of a request's stream go through, in order."""


class Cut(Exception):
    """The line is dead from here on."""


class Troubles:
    """The troubles of one server."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        """Requests by kind."""
        self.met: Counter[str] = Counter()
        """Requests by kind that had trouble."""
        self._numbered: defaultdict[tuple[str, int], list[Trouble]] = defaultdict(list)
        self._rules: list[Rule] = []

    def at(self, kind: str, number: int, *troubles: Trouble) -> None:
        """The n-th request of a kind, from 1, meets all of these; the first stands outermost."""
        self._numbered[kind, number] += troubles

    def next(self, kind: str, *troubles: Trouble) -> None:
        """The requests of a kind that come next meet one each."""
        for number, trouble in enumerate(troubles, self.seen[kind] + 1):
            self.at(kind, number, trouble)

    def rule(self, rule: Rule) -> None:
        """Troubles of requests without end."""
        self._rules.append(rule)

    def end(self) -> None:
        """From now on all goes well; streams that are open go on as they began."""
        self._numbered.clear()
        self._rules.clear()

    def around(self, kind: str, handler: Handler) -> Handler:
        """The handler of the next request of a kind, with what it is to meet around it."""
        self.seen[kind] += 1
        number = self.seen[kind]
        found = [*self._numbered.pop((kind, number), ()), *(trouble for rule in self._rules for trouble in rule(kind, number))]
        self.met[kind] += bool(found)
        for trouble in reversed(found):
            handler = _inside(trouble, handler)
        return handler


def seeded(seed: int, share: float, choices: Mapping[str, Sequence[Trouble]]) -> Rule:
    """A share of the requests meet one of their kind's troubles; the same ones for a seed, whatever happens between."""

    def rule(kind: str, number: int) -> Sequence[Trouble]:
        chance = random.Random(f"{seed} {kind} {number}")
        return [chance.choice(choices[kind])] if choices.get(kind) and chance.random() < share else []

    return rule


def _inside(trouble: Trouble, handler: Handler) -> Handler:
    return lambda request: trouble(request, handler)


# In place of the answer


def refusal(code: int, reason: str = "", message: str = "", **headers: str) -> Trouble:
    """A Status: 409, 410, 429 with Retry_After, 500, …"""

    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(status(code, reason, message), status=code, headers=named)

    return refuse


def page(code: int) -> Trouble:
    """A proxy's page."""

    async def show(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=code, text="<html>\n<h1>Bad Gateway</h1>\n</html>\n", content_type="text/html")

    return show


async def cut(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The line goes dead before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silence(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No answer, ever."""
    await request.app[CLOSING].wait()
    return web.Response()


# Besides the answer


def unheard(trouble: Trouble) -> Trouble:
    """It is done, and then the trouble comes in place of the answer: with `silence`, a create that commits and then times out."""

    async def do(request: web.Request, handler: Handler) -> web.StreamResponse:
        await handler(request)
        return await trouble(request, handler)

    return do


def late(seconds: float) -> Trouble:
    """It is done after a while: perhaps when nobody waits for it any more."""

    async def wait(request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await handler(request)

    return wait


# Within a stream


def altered(change: Callable[[web.Request, Lines], Lines]) -> Trouble:
    """A stream whose lines are changed on their way."""

    async def alter(request: web.Request, handler: Handler) -> web.StreamResponse:
        request.setdefault(CHANGES, []).append(lambda lines: change(request, lines))
        return await handler(request)

    return alter


@altered
async def doubled(request: web.Request, lines: Lines) -> Lines:
    """Everything comes twice."""
    async for line in lines:
        yield line
        yield line


@altered
async def swapped(request: web.Request, lines: Lines) -> Lines:
    """Each second line comes after its next one, if one comes soon."""
    coming = asyncio.ensure_future(anext(lines))
    held: bytes | None = None
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=None if held is None else 0.1)
            if not done:
                assert held is not None
                yield held
                held = None
                continue
            line = coming.result()
            coming = asyncio.ensure_future(anext(lines))
            if held is None:
                held = line
            else:
                yield line
                yield held
                held = None
    except StopAsyncIteration:
        if held is not None:
            yield held
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def delayed(seconds: float) -> Trouble:
    """Each line comes later, and so all that are behind it."""

    @altered
    async def delay(request: web.Request, lines: Lines) -> Lines:
        async for line in lines:
            await asyncio.sleep(seconds)
            yield line

    return delay


def cut_after(number: int) -> Trouble:
    """The stream is cut after some lines, in the middle of one."""

    @altered
    async def stop(request: web.Request, lines: Lines) -> Lines:
        left = number
        async for line in lines:
            if not left:
                yield line[: len(line) // 2]
                raise Cut
            left -= 1
            yield line

    return stop


def mute_after(number: int) -> Trouble:
    """After some lines nothing comes any more, and the line stays open."""

    @altered
    async def mute(request: web.Request, lines: Lines) -> Lines:
        left = number
        async for line in lines:
            if not left:
                await request.app[CLOSING].wait()
                return
            left -= 1
            yield line

    return mute


def expired_after(number: int) -> Trouble:
    """A watch that tells, after some events, that its version is too old."""

    @altered
    async def expire(request: web.Request, lines: Lines) -> Lines:
        left = number
        async with aclosing(lines):
            async for line in lines:
                if not left:
                    yield b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}\n'
                    return
                left -= 1
                yield line

    return expire
