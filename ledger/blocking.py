"""Redis for a program without an event loop, as `submit_build()` has it. Beside `ledger/connection.py` all that imports redis.

Threads that call at the same moment share one round trip: whoever comes while another's is under way waits, and the first of those sends
for all. That spares most of the waking up, which for a thread costs more than a command costs Redis.
"""

from __future__ import annotations

import threading
from collections import deque
from copy import copy
from typing import Any, Final

import redis
from redis import exceptions
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import ConnectionInterface
from redis.retry import Retry

from ledger.connection import RETRIES, Answer, options, script, translated
from ledger.keys import Keys

_TOGETHER = 64
"""Calls of one round trip at most, so that the first does not wait for long."""
_NONE_YET: Final[Any] = object()


class _Call:
    """What one thread asks, and what became of it."""

    __slots__ = ("answer", "error", "leads", "settled", "words")

    def __init__(self, words: tuple[str | float | bytes, ...]) -> None:
        self.words = words
        self.answer: Answer = _NONE_YET
        self.error: Exception | None = None
        self.leads = False
        """Its thread is to send for all that wait now."""
        self.settled = threading.Lock()
        self.settled.acquire()

    @property
    def open(self) -> bool:
        return self.answer is _NONE_YET and self.error is None

    def result(self) -> Answer:
        if self.error:
            raise self.error
        return self.answer


class SyncConnection:
    """Redis for threads. Uses redis-py's connections without its client in between, whose own work takes as long again as Redis does."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.keys = keys
        self._retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), RETRIES)
        maker = redis.ConnectionPool.from_url(url, max_connections=2**31, retry=Retry(NoBackoff(), 0), **options(url))
        self._connection: ConnectionInterface = maker.make_connection()
        self._mutex = threading.Lock()
        self._calls: deque[_Call] = deque()
        self._led = False

    def run(self, name: str, *arguments: str | float | bytes) -> Answer:
        digest, text = script(name)
        with translated():
            try:
                return self._ask("EVALSHA", digest, 0, self.keys.root, *arguments)
            except exceptions.NoScriptError:
                return self._ask("EVAL", text, 0, self.keys.root, *arguments)

    def command(self, *words: str | float | bytes) -> Answer:
        with translated():
            return self._ask(*words)

    def _ask(self, *words: str | float | bytes) -> Answer:
        call = _Call(words)
        with self._mutex:
            self._calls.append(call)
            leads, self._led = not self._led, True
        if leads or self._wait(call):
            self._lead()
        return call.result()

    def _wait(self, call: _Call) -> bool:
        """Until the call is settled, or its thread is to lead: whether that."""
        try:
            call.settled.acquire()
        except BaseException:  # an interrupt: nobody else may go on waiting for this thread
            with self._mutex:
                if call in self._calls:
                    self._calls.remove(call)
            if call.leads:
                self._hand_on()
            raise
        return call.leads

    def _lead(self) -> None:
        """Send what waits, this thread's own call first, and settle each; then the next that waits leads."""
        with self._mutex:
            calls = [self._calls.popleft() for _ in range(min(_TOGETHER, len(self._calls)))]
        try:
            # A call that Redis may have done although its answer did not come is sent again: each script takes that.
            self._retry.call_with_retry(lambda: self._exchange(calls), lambda _: self.close())
        except Exception as error:
            with self._mutex:  # whoever waits would wait for the same in vain, one after another
                calls.extend(self._calls)
                self._calls.clear()
            for call in calls:
                call.error = call.error or (copy(error) if call.open else None)
        finally:
            with self._mutex:  # after an interrupt of this thread the others' calls are still open
                self._calls.extendleft(call for call in reversed(calls[1:]) if call.open)
            self._hand_on()
            for call in calls[1:]:
                if not call.open:
                    call.settled.release()

    def _hand_on(self) -> None:
        with self._mutex:
            self._led = bool(self._calls)
            if self._calls:
                self._calls[0].leads = True
                self._calls[0].settled.release()

    def _exchange(self, calls: list[_Call]) -> None:
        asked = [call for call in calls if call.open]
        connection = self._connection
        try:
            # Connects first, where it is not.
            connection.send_packed_command([part for call in asked for part in connection.pack_command(*call.words)])
            for call in asked:
                try:
                    call.answer = connection.read_response()
                except exceptions.ResponseError as error:
                    call.error = error
        except BaseException:
            connection.disconnect()  # what was not read would be taken for the answer to the next
            raise

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        self._connection.disconnect()
