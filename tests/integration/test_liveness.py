"""A probe must fail for a process that lives and does no work, and for no other: real workers and watchers, and what their file tells."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from worker.alive import main
from worker.liveness import Liveness

QUICK = """
import worker.liveness, worker.consuming, worker.watcher
worker.liveness._PULSE = 0.1
worker.consuming._LOOK, worker.consuming._PATIENCE = 0.1, 2.0
worker.watcher._LEADING.update(dict.fromkeys(worker.watcher._LEADING, 2.5))
"""
WORK = """
from worker.app import app
app.worker_main(["worker", "--loglevel", "warning", "--without-mingle", "--without-gossip"])
"""
WATCH = """
from worker.watcher import command
command([])
"""
DEAF = """
from kombu.transport.redis import Channel
Channel._brpop_start = lambda *_, **__: None
"""
HANGING = """
import asyncio, worker.reconcile
async def look_at_slots(self):
    await asyncio.Event().wait()
worker.reconcile.Reconciler.look_at_slots = look_at_slots
"""


class Process:
    def __init__(self, program: str, redis: RedisServer, folder: Path) -> None:
        self.file = folder / "alive"
        environment = os.environ | {
            "CRABPOT_REDIS_URL": redis.url,
            "CRABPOT_CLUSTER": "local",
            "CRABPOT_STATE": str(folder / "state"),
            "CRABPOT_ALIVE_FILE": str(self.file),
        }
        self._process = subprocess.Popen([sys.executable, "-c", QUICK + program], env=environment, stderr=subprocess.DEVNULL)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def touched(self) -> bool:
        return self.file.exists()

    def forget(self) -> None:
        """Take the file away: it comes again only if the process touches it from now on."""
        self.file.unlink(missing_ok=True)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def run(own_redis, tmp_path):
    started: list[Process] = []

    def run(program: str) -> Process:
        started.append(Process(program, own_redis, tmp_path))
        return started[-1]

    yield run
    for process in started:
        process.stop()


def until(look: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("program", [WORK, WATCH], ids=["worker", "watch"])
def test_who_works_is_alive_and_while_redis_is_away_too(run, own_redis, program):
    process = run(program)
    until(process.touched)
    process.forget()
    until(process.touched)
    own_redis.kill()
    time.sleep(3)  # longer than each kind of work's patience
    process.forget()
    until(process.touched)
    own_redis.start()
    process.forget()
    until(process.touched)
    assert process.running


@pytest.mark.parametrize(("fault", "program"), [(DEAF, WORK), (HANGING, WATCH)], ids=["worker", "watch"])
def test_who_lives_and_does_no_work_is_not(run, fault, program):
    process = run(fault + program)

    def stays_away() -> bool:
        process.forget()
        time.sleep(0.5)
        return not process.touched()

    until(process.touched)
    until(stays_away)
    assert process.running


def test_a_process_that_waits_for_redis_from_the_start_is_alive(run, own_redis):
    own_redis.kill()
    process = run(WATCH)
    until(process.touched)
    assert process.running


def test_the_probe(tmp_path, capsys):
    file = tmp_path / "alive"
    assert main([str(file)]) == 1
    assert "nothing has touched it" in capsys.readouterr().err
    file.touch()
    assert main([str(file)]) == 0
    os.utime(file, (0, 0))
    assert main([str(file)]) == 1
    assert main([]) == 2


def test_work_that_has_stopped_coming_round_is_named():
    liveness = Liveness(None, lead=60.0)
    assert liveness.stuck() == []
    liveness.expect("tick", -1.0)
    assert liveness.stuck() == ["tick"]
    liveness.forget("tick")
    assert liveness.stuck() == []
