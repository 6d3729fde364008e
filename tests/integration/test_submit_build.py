"""`submit_build()` as a program without an event loop calls it: from threads, after a fork, and while Redis fails in between."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import producer.submit
from ledger.build import State
from ledger.errors import LedgerUnavailable, PolicyDenied
from ledger.settings import Settings
from ledger.store import Ledger
from producer import submit_build, wait_for_build
from tests.requests import make_request


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Let this process's `submit_build()` use another Redis."""

    def point(url: str) -> None:
        if producer.submit._current:
            producer.submit._current.connection.close()
        monkeypatch.setenv("CRABPOT_REDIS_URL", url)
        monkeypatch.setattr(producer.submit, "_current", None)
        producer.submit.settings.cache_clear()

    yield point
    if producer.submit._current:
        producer.submit._current.connection.close()
    producer.submit.settings.cache_clear()


def in_ledger(url: str, ask):
    """What `ask(ledger)` answers."""

    async def run():
        ledger = Ledger.open(Settings(redis_url=url))
        try:
            return await ask(ledger)
        finally:
            await ledger.close()

    return asyncio.run(run())


@pytest.fixture
def redis(own_redis, projects, point_at):
    in_ledger(own_redis.url, lambda ledger: ledger.store_projects(projects))
    point_at(own_redis.url)
    return own_redis


def test_builds_of_many_threads_are_all_taken_in(redis):
    with ThreadPoolExecutor(8) as pool:
        builds = list(pool.map(lambda _: submit_build(make_request()), range(80)))
    assert len({build.id for build in builds}) == 80
    assert sorted(build.sequence for build in builds) == list(range(1, 81))
    assert in_ledger(redis.url, lambda ledger: ledger.count())[State.QUEUED] == 80


def test_a_repeat_gives_the_first_build_and_a_mapping_is_as_good_as_a_request(redis):
    first = submit_build(make_request().model_dump(mode="json", exclude_unset=True), idempotency_key="k")
    again = submit_build(make_request(), idempotency_key="k")
    assert (again.id, again.state, again.request) == (first.id, State.QUEUED, first.request)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 and newer; pytest-xdist has a thread of its own
def test_a_forked_child_has_a_connection_of_its_own(redis):
    before = submit_build(make_request())
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if submit_build(make_request()).sequence == before.sequence + 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert submit_build(make_request()).sequence == before.sequence + 2


def test_redis_away_is_told_and_redis_back_is_found(redis):
    submit_build(make_request())
    redis.kill()
    with pytest.raises(LedgerUnavailable, match="CRABPOT_REDIS_URL") as caught:
        submit_build(make_request())
    assert caught.value.retryable
    redis.start()
    assert submit_build(make_request()).sequence == 2  # and the script, which Redis forgot, is sent anew
    with pytest.raises(PolicyDenied):
        submit_build(make_request(destinations=["elsewhere.example.com/x:1"]))
    assert submit_build(make_request()).sequence == 3  # an error answer does not spoil the connection


def test_a_call_whose_answer_was_lost_is_one_build(redis, point_at):
    submit_build(make_request())
    with losing_answers(redis.url) as url:
        point_at(url)
        build = submit_build(make_request())
        point_at(redis.url)
    assert (build.state, build.sequence) == (State.QUEUED, 2)
    told = in_ledger(redis.url, lambda ledger: ledger.events("0-0"))
    assert sum(build.id.encode() in text for _, text in told) == 1
    assert submit_build(make_request()).sequence == 3


def test_many_threads_outlast_a_redis_that_is_killed(redis):
    """Threads share round trips: one that fails fails for whom it was sent, and for nobody later."""
    submit_build(make_request())

    def submit(number: int) -> str | None:
        if number == 40:
            redis.kill()
            redis.start()
        try:
            return submit_build(make_request()).id
        except LedgerUnavailable:
            return None

    with ThreadPoolExecutor(8) as pool:
        builds = list(pool.map(submit, range(120)))
    stored = {build.id for build in in_ledger(redis.url, lambda ledger: ledger.page(limit=500)).builds}
    assert {build for build in builds if build} <= stored
    assert submit_build(make_request()).id


def test_an_interrupt_of_the_thread_that_sends_for_all_is_its_own(redis, monkeypatch):
    submit_build(make_request())
    connection = producer.submit._current.connection
    exchange, sent = connection._exchange, threading.Event()

    def interrupted(calls):
        if not sent.is_set():
            while len(connection._calls) < 3:
                time.sleep(0.001)
            sent.set()
            raise KeyboardInterrupt
        exchange(calls)

    monkeypatch.setattr(connection, "_exchange", interrupted)
    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(submit_build, make_request()) for _ in range(4)]
        failures = [end.exception() for end in ends]
    assert sorted(str(type(failure).__name__) for failure in failures) == ["KeyboardInterrupt", "NoneType", "NoneType", "NoneType"]


def test_an_interrupt_of_a_thread_that_waits_holds_up_nobody(redis, monkeypatch):
    submit_build(make_request())
    connection = producer.submit._current.connection
    exchange, going_on = connection._exchange, threading.Event()

    def slow(calls):
        going_on.wait(10)
        exchange(calls)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "_exchange", slow)
    before = signal.signal(signal.SIGALRM, interrupt)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(submit_build, make_request())
        while not connection._led:
            time.sleep(0.001)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            submit_build(make_request())
        signal.signal(signal.SIGALRM, before)
        later = pool.submit(submit_build, make_request())
        going_on.set()
        assert first.result(10).sequence == 2
        assert later.result(10).sequence == 3


def test_a_submit_may_wait_until_redis_is_back(redis):
    submit_build(make_request())
    redis.kill()
    back = threading.Timer(1.0, redis.start)
    back.start()
    build = submit_build(make_request(), timeout=30)
    back.join()
    assert build.sequence == 2
    assert in_ledger(redis.url, lambda ledger: ledger.count())[State.QUEUED] == 2


def test_waiting_has_an_end(redis):
    redis.kill()
    with pytest.raises(LedgerUnavailable):
        submit_build(make_request(), timeout=0.5)
    redis.start()


def test_redis_over_a_unix_socket(tmp_path, projects, point_at):
    path = tmp_path / "s"
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--dir", tmp_path, "--appendonly", "yes", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not path.exists():
            time.sleep(0.01)
        in_ledger(f"unix://{path}", lambda ledger: ledger.store_projects(projects))
        point_at(f"unix://{path}")
        assert submit_build(make_request()).sequence == 1
    finally:
        server.terminate()
        server.wait()


def test_waiting_for_a_build(redis):
    build = submit_build(make_request())
    with pytest.raises(TimeoutError):
        wait_for_build(build.id, timeout=0.05)

    async def end(ledger: Ledger) -> None:
        await ledger.transition(build, State.CANCELLED, due=None)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_build, build.id, timeout=20)
        in_ledger(redis.url, end)
        assert waiting.result().state is State.CANCELLED


class losing_answers:
    """A line to Redis that breaks after it has carried the first build's request, before it carries the answer."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2].partition("/")[0])
        self._lose = True

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._port)) as server:
                while asked := client.recv(1 << 20):
                    server.sendall(asked)
                    answer = server.recv(1 << 20)
                    # The policy is fetched by a first call, whose answer is an error or a policy; the second call makes the build.
                    if self._lose and b"\r\n$2\r\nok\r\n" in answer:
                        self._lose = False
                        break
                    client.sendall(answer)
