"""The way to Redis: connecting, the Lua scripts, and redis-py's errors said as ours. Only `ledger/blocking.py` imports redis beside it.

Two connection pools per process and event loop: a few connections for commands, which many tasks share in turn, and one connection for
each that waits for something to happen. The scripts are loaded by their digest and sent whole only when Redis does not know them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import redis.asyncio
from redis import exceptions
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff

from ledger.errors import LedgerError, LedgerFull, LedgerUnavailable, LedgerUnfit
from ledger.keys import Keys

ANSWER_TIMEOUT = 5.0
"""Seconds that Redis has for an answer. It answers in under a millisecond; longer than this is a broken connection."""
RETRIES = 2
"""How often a call is repeated that Redis did not answer."""
_COMMANDS = 32
"""Commands under way at once. Redis answers one at a time: more would not be faster, and a thousand tasks would open a thousand connections."""

Answer = Any
"""What Redis sends back: bytes, numbers, None, and lists of them."""


@cache
def script(name: str) -> tuple[str, str]:
    """A script of ledger/lua/ with the shared functions in it: (digest, text). The first line stays first: its flags are Redis's."""
    folder = files("ledger") / "lua"
    first, _, rest = (folder / f"{name}.lua").read_text().partition("\n")
    text = f"{first}\n{(folder / '_shared.lua').read_text()}\n{rest}"
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text


def ours(error: Exception) -> Exception:
    """redis-py's error said as ours; another as it is."""
    match error:
        case exceptions.OutOfMemoryError():
            return _full(error)
        case exceptions.AuthenticationError():
            return LedgerUnfit(f"Redis refuses the credentials in CRABPOT_REDIS_URL: {error}")
        case (
            exceptions.ConnectionError()
            | exceptions.TimeoutError()
            | exceptions.BusyLoadingError()
            | exceptions.ReadOnlyError()
            | OSError()
        ):
            return LedgerUnavailable(f"Redis did not answer ({error}); check CRABPOT_REDIS_URL and that Redis runs, then try again")
        case exceptions.ResponseError():
            if str(error).startswith("OOM") or "command not allowed when used memory" in str(error):
                return _full(error)
            if str(error).startswith(("MISCONF", "LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS")):
                return LedgerUnavailable(f"Redis cannot write now: {error}")
            return LedgerError(f"Redis refused a command of crabpot's: {error}")
    return error


def _full(error: Exception) -> LedgerFull:
    return LedgerFull(f"Redis has no memory left ({error}); raise maxmemory, or wait until builds have finished and expired")


class translated:  # noqa: N801 - used as a function
    """Say redis-py's errors as ours. A class, since a generator would take a tenth of a command's time."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and (said := ours(error)) is not error:
            raise said from error


class _asked:  # noqa: N801 - used as a function
    """`translated`, for one asked by a task. redis-py may swallow a cancel, above all while it connects; it is raised here all the same,
    lest a loop that was stopped goes on for ever.
    """

    __slots__ = ("_before", "_task")

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task else 0

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if (
            self._task
            and self._task.cancelling() > self._before
            and (error is None or (isinstance(error, Exception) and isinstance(ours(error), LedgerError)))
        ):
            raise asyncio.CancelledError from None
        if isinstance(error, Exception) and (said := ours(error)) is not error:
            raise said from error


def options(url: str) -> dict[str, Any]:
    """What every connection is opened with."""
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    return {"socket_timeout": ANSWER_TIMEOUT, "socket_connect_timeout": 5.0, "health_check_interval": 30, "protocol": 3, **keepalive}


class Connection:
    """Redis for one event loop."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.keys = keys
        retry = AsyncRetry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), RETRIES)
        kept: dict[str, Any] = {"retry": retry, **options(url)}
        # Tasks take turns here: redis-py's own pool that blocks takes half as long again as a command.
        self._turns = asyncio.Semaphore(_COMMANDS)
        self._commands = redis.asyncio.Redis.from_url(url, max_connections=2**31, **kept)
        self._waits = redis.asyncio.Redis.from_url(url, max_connections=2**31, **kept)

    async def run(self, name: str, *arguments: str | float | bytes) -> Answer:
        digest, text = script(name)
        async with self._turns:
            with _asked():
                try:
                    return await self._commands.execute_command("EVALSHA", digest, 0, self.keys.root, *arguments)
                except exceptions.NoScriptError:
                    return await self._commands.execute_command("EVAL", text, 0, self.keys.root, *arguments)

    async def command(self, *words: str | float | bytes) -> Answer:
        async with self._turns:
            with _asked():
                return await self._commands.execute_command(*words)

    async def commands(self, *commands: tuple[str | float | bytes, ...]) -> list[Answer]:
        """Several commands in one round trip."""
        async with self._turns:
            with _asked():
                async with self._commands.pipeline(transaction=False) as pipeline:
                    for words in commands:
                        pipeline.execute_command(*words)
                    return await pipeline.execute()

    async def read_stream(self, key: str, after: str, *, block: float, count: int = 500) -> list[tuple[str, dict[str, bytes]]]:
        """Entries of a stream after an id, waiting for the first at most `block` seconds: [(id, fields)]."""
        with _asked():
            found = await self._waits.xread({key: after}, count=count, block=max(1, int(block * 1000)))
        entries = _only_stream(found)
        return [(entry.decode(), {name.decode(): value for name, value in fields.items()}) for entry, fields in entries]

    @asynccontextmanager
    async def subscribed(self, *channels: str) -> AsyncIterator[PubSub]:
        """A subscription that is in force when the block begins."""
        with _asked():
            pubsub = self._waits.pubsub()
            try:
                await pubsub.subscribe(*channels)
                for _ in channels:
                    await asyncio.wait_for(pubsub.get_message(timeout=ANSWER_TIMEOUT), ANSWER_TIMEOUT)
                yield pubsub
            finally:
                await pubsub.aclose()

    async def close(self) -> None:
        await self._commands.aclose()
        await self._waits.aclose()


def _only_stream(found: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of XREAD's answer for one stream, whichever protocol version shaped it."""
    if not found:
        return []
    streams = found.values() if isinstance(found, dict) else [entries for _, entries in found]
    entries = next(iter(streams))
    # RESP3 nests the entries once more.
    return entries[0] if entries and isinstance(entries[0], list) else entries
