"""The bad line is bad exactly as it is told to be, and well again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import Line, bad_line


class Caller:
    """A client of a server that answers each line with the same line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, text: str) -> str:
        self._writer.write(text.encode() + b"\n")
        async with asyncio.timeout(5):
            return (await self._reader.readuntil(b"\n")).decode().strip()

    def close(self) -> None:
        self._writer.transport.abort()


@pytest.fixture
async def asked() -> list[str]:
    """What the server was asked."""
    return []


@pytest.fixture
async def line(asked: list[str]) -> AsyncIterator[Line]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while text := await reader.readline():
                asked.append(text.decode().strip())
                writer.write(text)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, bad_line(server.sockets[0].getsockname()[1]) as line:
        yield line


@pytest.fixture
async def call(line: Line) -> AsyncIterator:
    callers: list[Caller] = []

    async def call() -> Caller:
        callers.append(Caller(*await asyncio.open_connection("127.0.0.1", line.port)))
        return callers[-1]

    yield call
    for caller in callers:
        caller.close()


async def test_a_good_line_and_a_slow_one(line, call):
    caller = await call()
    assert await caller.ask("one") == "one"
    line.delay = 0.05
    begun = time.monotonic()
    assert await caller.ask("two") == "two"
    assert time.monotonic() - begun >= 0.1


async def test_cut_connections_end_at_once_and_new_ones_are_taken(line, call):
    first, second = await call(), await call()
    await first.ask("one")
    line.cut()
    for caller in (first, second):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await caller.ask("two")
    assert await (await call()).ask("three") == "three"


async def test_an_answer_is_cut_in_its_middle(line, call):
    caller = await call()
    line.cut_after(6)
    assert await caller.ask("one") == "one"
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await caller.ask("two-and-more")
    assert line.lost.is_set()
    assert await (await call()).ask("three") == "three"


async def test_what_went_silent_stays_so_when_the_line_heals(line, call, asked):
    before = await call()
    await before.ask("one")
    line.go_silent()
    during = await call()
    for caller in (before, during):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await caller.ask("two")
    await line.heal()
    assert await (await call()).ask("three") == "three"
    for caller in (before, during):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await caller.ask("four")
    assert asked == ["one", "three"]


async def test_a_line_that_refuses_takes_nobody_until_it_heals(line, call):
    caller = await call()
    await caller.ask("one")
    await line.refuse()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await caller.ask("two")
    with pytest.raises(ConnectionRefusedError):
        await call()
    await line.heal()
    assert await (await call()).ask("three") == "three"


async def test_a_request_and_an_answer_are_lost(line, call, asked):
    line.lose_request(having=b"b")
    first = await call()
    assert await first.ask("a") == "a"
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await first.ask("b")
    line.lose_answer(to=b"c")
    second = await call()
    assert await second.ask("b") == "b"
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await second.ask("c")
    assert line.lost.is_set()
    assert await (await call()).ask("c") == "c"
    assert asked == ["a", "b", "c", "c"]
