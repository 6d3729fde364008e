"""Runs one launch to its end, in a session of its own, so that it outlives the worker that started it as a pod does.

`python -m worker.cluster.runner FOLDER` returns at once; what it leaves running writes the log, ends the executor when it is told to
(SIGTERM) or has run too long, and records the end. The executor is told by its environment what a container has by its mounts:

    CRABPOT_FOLDERS          a JSON object: path that arguments may name -> folder of this machine
    CRABPOT_TERMINATION_LOG  the file that stands for /dev/termination-log
    CRABPOT_EXECUTOR_STATE   a folder for what the executor keeps while it works
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

from worker.cluster.folder import LOG, MARK, MESSAGE, End, LaunchFolder
from worker.cluster.sessions import kill_others

_OWN_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL where nobody said otherwise."""
_DEADLINE_GRACE = 2.0
_DRAIN = 1.0
"""Seconds that output may still come after all processes are dead."""
_LONGEST_LINE = 64 * 1024
_LONGEST_LOG = 64 * 1024 * 1024
_LONGEST_MESSAGE = 4096
_TAIL_LINES, _TAIL_BYTES = 80, 2048
"""What of a failure's log becomes the message where the executor left none, as Kubernetes' FallbackToLogsOnError does."""


class LogWriter:
    """The log file: whole lines, each after a time that is later than the one before."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._last, self._rest, self._written = datetime.fromtimestamp(0, UTC), b"", 0
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)

    def write(self, output: bytes) -> None:
        *lines, self._rest = (self._rest + output).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        self._append(lines)

    def finish(self) -> None:
        if self._rest:
            self._append([self._rest])
        self._rest = b""

    @property
    def tail(self) -> str:
        return b"\n".join(self._tail)[-_TAIL_BYTES:].decode(errors="replace")

    def _append(self, lines: list[bytes]) -> None:
        self._tail.extend(lines)
        if self._written > _LONGEST_LOG or not lines:
            return
        stamped = b"".join(self._time() + b" " + line + b"\n" for line in lines)
        self._written += len(stamped)
        if self._written > _LONGEST_LOG:
            stamped += self._time() + b" crabpot: the log is too long; what follows is left out\n"
        os.write(self._descriptor, stamped)

    def _time(self) -> bytes:
        self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
        return self._last.strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()


class Runner:
    """One run of the executor, from its start to its recorded end."""

    def __init__(self, folder: LaunchFolder, told: int) -> None:
        """`told`: a descriptor that is readable when a signal came."""
        self._folder, self._told = folder, told
        self._log = LogWriter(folder.path / LOG)
        deadline = folder.spec.run_deadline
        self._deadline = None if deadline is None else monotonic() + deadline
        self._kill_at: float | None = None
        self._too_long = self._stopped = False

    def run(self) -> End:
        """Run it. Never raises for what the executor does."""
        if self._folder.grace() is not None:
            return End(exit_code=None, reason="Deleted", detail="it was deleted before it started")
        try:
            process = subprocess.Popen(
                [*self._folder.spec.executor, *self._folder.spec.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                process_group=0,
                bufsize=0,
            )
        except (OSError, ValueError) as error:
            return End(exit_code=128, reason="StartError", detail=f"the executor {self._folder.spec.executor[0]} does not start: {error}")
        with process:
            self._follow(process)
        return self._end(process.returncode)

    def _environment(self) -> dict[str, str]:
        folder, spec = self._folder.path, self._folder.spec
        return {
            **os.environ,
            **spec.environment,
            MARK: spec.uid,
            "CRABPOT_FOLDERS": json.dumps(dict(spec.folders)),
            "CRABPOT_TERMINATION_LOG": str(folder / MESSAGE),
            "CRABPOT_EXECUTOR_STATE": str(folder.parent.parent / "work"),
        }

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        ended = os.pidfd_open(process.pid)
        with selectors.DefaultSelector() as selector:
            for source in (process.stdout.fileno(), self._told, ended):
                selector.register(source, selectors.EVENT_READ)
            while process.poll() is None:
                for key, _ in selector.select(self._patience()):
                    if key.fd == process.stdout.fileno():
                        self._read(selector, key.fd)
                    elif key.fd == self._told:
                        os.read(self._told, 512)
                        grace = self._folder.grace()
                        self._stop(process, _OWN_GRACE if grace is None else grace)
                self._look_at_times(process)
            kill_others(os.getpid())
            for source in (self._told, ended):
                selector.unregister(source)
            os.close(ended)
            self._drain(selector, process.stdout.fileno())
        self._log.finish()

    def _read(self, selector: selectors.BaseSelector, source: int) -> None:
        output = os.read(source, 1 << 16)
        self._log.write(output)
        if not output:
            selector.unregister(source)

    def _drain(self, selector: selectors.BaseSelector, source: int) -> None:
        """What is still in the pipe; a process that got away may hold its other end."""
        end = monotonic() + _DRAIN
        while source in selector.get_map() and (left := end - monotonic()) > 0:
            if selector.select(left):
                self._read(selector, source)

    def _patience(self) -> float | None:
        times = [time for time in (self._deadline, self._kill_at) if time is not None]
        return max(0.0, min(times) - monotonic()) if times else None

    def _look_at_times(self, process: subprocess.Popen[bytes]) -> None:
        now = monotonic()
        if self._deadline is not None and now >= self._deadline:
            self._deadline, self._too_long = None, True
            self._stop(process, _DEADLINE_GRACE)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._signal(process, signal.SIGKILL)

    def _stop(self, process: subprocess.Popen[bytes], grace: float) -> None:
        self._stopped = True
        self._kill_at = min(self._kill_at or float("inf"), monotonic() + grace)
        self._signal(process, signal.SIGTERM)

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if process.poll() is None:  # not reaped yet, so the id is its own
            os.killpg(process.pid, number)

    def _end(self, returncode: int) -> End:
        exit_code = returncode if returncode >= 0 else 128 - returncode
        message = self._message() or (self._log.tail if exit_code or self._too_long else None)
        if self._too_long:
            return End(exit_code=137, reason="DeadlineExceeded", detail="it ran for longer than its deadline", message=message)
        if exit_code and self._stopped and self._folder.grace() is None:  # by a signal that no deletion sent
            return End(exit_code=exit_code, reason="Terminated", detail="its runner was told to stop", message=message, disrupted=True)
        return End(exit_code=exit_code, reason="Error" if exit_code else "Completed", message=message)

    def _message(self) -> str | None:
        try:
            with (self._folder.path / MESSAGE).open("rb") as file:
                return file.read(_LONGEST_MESSAGE).decode(errors="replace") or None
        except OSError:
            return None


def main(path: Path) -> None:
    """Claim the launch and run it to its end, detached; return at once in the process that was started."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o022)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # before the claim, by which we can be found
    with LaunchFolder.open(path) as folder:
        (path / LOG).touch(0o600)  # whoever sees the claim finds a log to follow
        if folder.claim() is None:
            return
        # The launcher waits for the end of this stream: the claim stands.
        errors = os.open(path / "runner-errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        folder.end(Runner(folder, told).run())
        folder.remove_if_done(path.parent.parent / "staging")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
