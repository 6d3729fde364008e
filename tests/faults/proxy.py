"""A bad line to a server: a TCP proxy that delays, cuts, goes silent, refuses or loses an answer when a test says so, and heals.

    async with bad_line(port) as line:
        ... use line.port ...
        line.lose_answer(to=b"transition")
        line.heal()

It lives on the test's event loop; the program that is on the line may be in a thread or another process.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 65536
_RST = struct.pack("ii", 1, 0)
"""SO_LINGER: what is not sent is dropped, and the other side is told so at once."""


class Line:
    """The line, and what is wrong with it."""

    def __init__(self, server: int, host: str = "127.0.0.1", listen: str = "127.0.0.1") -> None:
        self._server = (host, server)
        self._reserved = socket.socket()  # never listens: the port stays ours while connections are refused
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind((listen, 0))
        self.port: int = self._reserved.getsockname()[1]
        self.delay = 0.0
        """Seconds that each piece takes, either way."""
        self.carried = 0
        """Connections that were made through it."""
        self.lost = asyncio.Event()
        """Set when a request or an answer was lost that was to be."""
        self._open: set[_Pair] = set()
        self._silent = False
        self._budget: int | None = None
        self._doomed_request: bytes | None = None
        self._doomed_answer: bytes | None = None
        self._listener: asyncio.Server | None = None

    # What a test does to it

    def cut(self) -> None:
        """All connections end now, by RST. New ones are welcome."""
        for pair in tuple(self._open):
            pair.abort()

    def cut_after(self, answered: int) -> None:
        """Each connection ends once so many more bytes of answers have passed, over all of them: in the middle of an answer."""
        self._budget = answered

    def go_silent(self) -> None:
        """Half-open: connections stay and new ones are taken, and nothing is carried either way. Those stay dead when the line heals."""
        self._silent = True
        for pair in self._open:
            pair.dead = True

    async def refuse(self) -> None:
        """No connection is taken, and all that are there end."""
        if self._listener:
            self._listener.close()
            self._listener = None
        self.cut()

    def lose_request(self, having: bytes = b"") -> None:
        """The next request (one that has these bytes in it) never arrives, and its connection ends."""
        self._doomed_request = having
        self.lost.clear()

    def lose_answer(self, to: bytes = b"") -> None:
        """The next request (one that has these bytes in it) is carried and done; its answer is lost with the connection."""
        self._doomed_answer = to
        self.lost.clear()

    async def heal(self) -> None:
        """New connections are well again; one that has gone silent stays so, as behind a firewall that forgot it: who uses it has to notice."""
        self.delay, self._budget, self._doomed_request, self._doomed_answer, self._silent = 0.0, None, None, None, False
        if self._listener is None:
            await self._listen()

    # How it works

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._take, *self._reserved.getsockname(), limit=_CHUNK, reuse_port=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.carried += 1
        pair = _Pair(self, reader, writer, dead=self._silent)
        self._open.add(pair)
        try:
            await pair.carry(self._server)
        finally:
            self._open.discard(pair)

    async def _close(self) -> None:
        await self.refuse()
        await asyncio.gather(*(pair.ended.wait() for pair in tuple(self._open)))
        self._reserved.close()


class _Pair:
    """One connection through the line: the client's end and the server's."""

    def __init__(self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, dead: bool) -> None:
        self._line, self._client = line, (reader, writer)
        self._writers = [writer]
        self._loses_answer = False
        self.dead = dead
        self._aborted = asyncio.Event()
        self.ended = asyncio.Event()

    def abort(self) -> None:
        self._aborted.set()

    async def carry(self, server: tuple[str, int]) -> None:
        tasks = [asyncio.create_task(self._carry(server)), asyncio.create_task(self._aborted.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers:
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                writer.transport.abort()
            self.ended.set()

    async def _carry(self, server: tuple[str, int]) -> None:
        await self._pass()
        reader, writer = await asyncio.open_connection(*server, limit=_CHUNK)
        self._writers.append(writer)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._requests(self._client[0], writer))
            group.create_task(self._answers(reader, self._client[1]))

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = self._line
        while piece := await reader.read(_CHUNK):
            await self._pass()
            if line._doomed_request is not None and line._doomed_request in piece:
                line._doomed_request = None
                line.lost.set()
                break
            if line._doomed_answer is not None and line._doomed_answer in piece:
                line._doomed_answer, self._loses_answer = None, True
            writer.write(piece)
            await writer.drain()
        self.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = self._line
        while piece := await reader.read(_CHUNK):
            await self._pass()
            if self._loses_answer:
                line.lost.set()
                break
            if line._budget is not None:
                piece, line._budget = piece[: line._budget], line._budget - len(piece)
            writer.write(piece)
            await writer.drain()
            if line._budget is not None and line._budget <= 0:
                line._budget = None
                line.lost.set()
                break
        self.abort()

    async def _pass(self) -> None:
        """What a piece goes through on its way."""
        if self._line.delay:
            await asyncio.sleep(self._line.delay)
        if self.dead:
            await self._aborted.wait()


@asynccontextmanager
async def bad_line(server: int, host: str = "127.0.0.1", *, listen: str = "127.0.0.1") -> AsyncIterator[Line]:
    """A line to a server, by its port and host. It is a good one until a test says otherwise."""
    line = Line(server, host, listen)
    await line._listen()
    try:
        yield line
    finally:
        await line._close()
