"""Steps in processes of their own that can be killed with -9 or stopped, each within milliseconds of being asked for.

To start Python and import crabpot takes most of a second. So one bare process imports all once, opens nothing, and forks a child for
each step. A child speaks over a socket pair of its own: itself says what it passes, the parent says when it was stopped and how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.points import Point, several

ROOT = Path(__file__).parents[2]
Injection = tuple[Point | Collection[Point], str]
ENDED, STOPPED, PASSED, FAILED = "ended", "stopped", "passed", "failed"


class Child:
    """A step that runs in a process of its own."""

    def __init__(self, step: str, line: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.step, self._line, self._reader, self._writer = step, line, reader, writer
        self.pid = 0
        self.passed: list[Point] = []
        """The points that it has passed."""
        self.is_stopped = False
        self.code: int | None = None
        """How it ended: an exit code, or a signal's number below zero."""
        self.failure = ""
        """The traceback of a step that raised."""

    async def _until(self, *kinds: str) -> None:
        async with asyncio.timeout(60):
            while self.code is None:
                told: dict[str, Any] = json.loads(await self._reader.readline())
                ((kind, value),) = told.items()
                match kind:
                    case "pid":
                        self.pid = value
                    case "passed":
                        self.passed.append(Point.parse(value))
                    case "stopped":
                        self.is_stopped = True
                    case "failed":
                        self.failure = value
                    case "ended":
                        self.code = value
                        self._writer.close()
                if kind in kinds:
                    return

    async def stopped(self) -> bool:
        """Until it is stopped by SIGSTOP: whether it was, or has ended before."""
        if not self.is_stopped:
            await self._until(STOPPED)
        return self.code is None

    async def ended(self) -> int:
        await self._until(ENDED)
        assert self.code is not None
        return self.code

    def signal(self, number: int) -> None:
        """Sent by the parent, who alone knows that the id is still this child's. One that has ended gets none."""
        self.is_stopped = False
        self._line.send(json.dumps({"signal": number, "pid": self.pid}).encode())


class Forks:
    """The way to the process that forks."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    async def start(self, step: str, environment: dict[str, str], arguments: dict[str, Any], injection: Injection | None) -> Child:
        """Run a step of `steps.STEPS`; with an injection (point or points, action), do that there."""
        mine, its = socket.socketpair()
        job = {
            "step": step,
            "environment": environment,
            "arguments": arguments,
            "injection": injection and [[str(point) for point in several(injection[0])], injection[1]],
        }
        with its:
            socket.send_fds(self._line, [json.dumps(job).encode()], [its.fileno()])
        child = Child(step, self._line, *await asyncio.open_unix_connection(sock=mine))
        await child._until("pid")
        return child


@contextmanager
def forking(log: Path) -> Iterator[Forks]:
    """The process that forks, for the length of the block. What the steps print goes to the file."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks", str(its.fileno())], cwd=ROOT, pass_fds=[its.fileno()], stdout=output, stderr=output
        )
        its.close()
        try:
            yield Forks(mine)
        finally:
            mine.close()  # it kills what still runs, and ends
            process.wait(20)


class _Parent:
    """The process that forks: no event loop, no thread, and no socket but the one that it is asked by."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._children: dict[int, socket.socket] = {}
        self._woken, waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self._line, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._tell()
            if self._line in ready:
                message, descriptors, _, _ = socket.recv_fds(self._line, 1 << 20, 1)
                if not message:
                    break
                asked = json.loads(message)
                if descriptors:
                    self._fork(asked, socket.socket(fileno=descriptors[0]))
                elif asked["pid"] in self._children:
                    os.kill(asked["pid"], asked["signal"])
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _fork(self, job: dict[str, Any], channel: socket.socket) -> None:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._line.close()
            _run(job, channel)
        self._children[pid] = channel
        _say(channel, "pid", pid)

    def _tell(self) -> None:
        """What has become of the children."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                _say(self._children[pid], STOPPED, True)
            else:
                with self._children.pop(pid) as channel:
                    _say(channel, ENDED, os.waitstatus_to_exitcode(status))


def _run(job: dict[str, Any], channel: socket.socket) -> None:
    """The child's whole life. It ends without the parent's clean-ups."""
    code = 1
    try:
        from tests.faults.steps import run

        os.environ.update(job["environment"])
        run(job["step"], job["arguments"], job["injection"], lambda point: _say(channel, PASSED, str(point)))
        code = 0
    except BaseException:
        _say(channel, FAILED, traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _say(channel: socket.socket, kind: str, value: Any) -> None:
    try:
        channel.sendall(json.dumps({kind: value}).encode() + b"\n")
    except OSError:
        pass  # nobody listens any more


if __name__ == "__main__":
    import tests.faults.steps  # noqa: F401 - imported once for all children

    _Parent(socket.socket(fileno=int(sys.argv[1]))).run()
