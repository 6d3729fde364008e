"""A registry on this machine, for its collection: a process that something else starts again whenever it ends, read-only while a marker is there.

That something is deploy/demo/registry, or anything that does the same: it writes the process's number down, and sets
REGISTRY_STORAGE_MAINTENANCE_READONLY where it finds the marker.
"""

from __future__ import annotations

import asyncio
import fcntl
import glob
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ledger.collected import CollectedOnThisMachine
from ledger.errors import ClusterUnavailable
from worker.cluster.sessions import kill_marked
from worker.collect.site import Door, Ours, Standing, Swept
from worker.collect.steps import Finding, Lost, No, Wait, Well
from worker.collect.workload import READ_ONLY

_SWEEP = "CRABPOT_SWEEP"
"""A variable by which a sweep's processes are known to be ours."""


class LocalSite:
    """See `worker.collect.site.Site`."""

    def __init__(self, settings: CollectedOnThisMachine) -> None:
        self._settings = settings
        self._lock = settings.marker.with_suffix(".lock")

    async def look(self) -> Finding:
        if shutil.which(self._settings.program) is None:
            return No(f"there is no program {self._settings.program}; name the registry's under `program`")
        if not _is_file(Path(self._settings.config)):
            return No(f"there is no file {self._settings.config}; name the registry's configuration under `config`")
        return Well() if self._process() else Wait(f"the process of {self._settings.process} does not run")

    async def standing(self) -> Standing:
        process, mark = self._process(), _text(self._settings.marker)
        if process is None:
            return Standing((), "it is being started", mark, mark is not None)
        closed = _is_closed(process)
        unsettled = "it is being restarted" if closed is (mark is None) else None
        # One that was started in the moment before the marker was taken away is read-only without it: whoever opens it must look at it again.
        return Standing((Door(_identity(process), self._settings.registry),), unsettled, mark, closed or mark is not None)

    async def close(self, run: str, ours: Ours) -> None:
        if (process := self._process()) is None:
            raise ClusterUnavailable("the registry is being started")
        identity = _identity(process)
        # Whoever opens the registry takes this file away, too: then it becomes no marker any more.
        beside = self._settings.marker.with_suffix(f".{secrets.token_hex(4)}.new")
        beside.write_text(run)
        try:
            await ours()
            with self._unswept():
                beside.replace(self._settings.marker)
        except FileNotFoundError:
            raise ClusterUnavailable("somebody has made the registry read-write meanwhile") from None
        finally:
            beside.unlink(missing_ok=True)
        if not _is_closed(process):
            _end(identity)

    async def dry_run(self, _: str) -> Swept | Finding:
        code, output, errors = await _run(self._settings.program, "garbage-collect", "--dry-run", self._settings.config)
        return No(f"the dry run exited with {code}: {errors.strip()[-300:]}") if code else Swept(output)

    async def sweep(self, run: str, _: int, *, resumed: bool) -> Swept | Finding:
        if resumed:
            return Lost("the worker that swept was cut off")
        program = (self._settings.program, "garbage-collect", self._settings.config)
        code, output, errors = await _run(
            sys.executable, "-m", "worker.collect.sweeper", str(self._lock), str(self._settings.marker), run, *program
        )
        return No(f"the sweep exited with {code}: {(errors or output).strip()[-300:]}") if code else Swept(output)

    async def restart(self, ours: Ours) -> None:
        process = self._process()
        identity = process and _identity(process)
        await ours()
        if identity:
            _end(identity)

    async def settled(self, old: tuple[str, ...]) -> Finding:
        with self._locked() as free:
            if not free:
                return Wait("its sweep has not ended yet")
        standing = await self.standing()
        if any(door.process in old for door in standing.doors):
            return Wait("its old process has not ended yet")
        return Wait(standing.unsettled) if standing.unsettled else Well()

    async def open(self, ours: Ours) -> None:
        mark = _text(self._settings.marker)
        await ours()
        with self._unswept():
            if _text(self._settings.marker) not in (None, mark):
                raise ClusterUnavailable("another run has closed the registry meanwhile")
            for beside in self._settings.marker.parent.glob(f"{glob.escape(self._settings.marker.stem)}.*.new"):
                beside.unlink(missing_ok=True)
            self._settings.marker.unlink(missing_ok=True)
            process = self._process()
            identity = _identity(process) if process and _is_closed(process) else None
        if identity:
            _end(identity)

    @contextmanager
    def _unswept(self) -> Iterator[None]:
        """No sweep lives while the marker is set or taken away."""
        with self._locked() as free:
            if not free:
                raise ClusterUnavailable("a sweep of the registry has not ended yet")
            yield

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether no sweep lives; none begins meanwhile. One that does is ended."""
        held = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(ValueError):
                _end_sweep(int(os.pread(held, 32, 0)))
            yield False
        else:
            yield True
        finally:
            os.close(held)

    def _process(self) -> int | None:
        """The registry's process, if it lives."""
        number = _text(self._settings.process)
        if number is None or not number.strip().isdigit():
            return None
        process = int(number)
        with suppress(OSError):
            if self._settings.config.encode() in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0"):
                return process
        return None


def _identity(process: int) -> str:
    """A process's number may come again; together with when it began it does not."""
    with suppress(OSError):
        return f"{process}@{Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{process}@ended"


def _is_closed(process: int) -> bool:
    with suppress(OSError):
        return any(variable.startswith(f"{READ_ONLY}=".encode()) for variable in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"))
    return False


def _end(identity: str) -> None:
    """SIGTERM to that process, and to no other that has its number by now."""
    process = int(identity.partition("@")[0])
    if _identity(process) == identity:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


def _end_sweep(session: int) -> None:
    """SIGKILL to a sweep and its program, also where only one of them lives."""
    with suppress(OSError):
        if f"{_SWEEP}=1".encode() in Path(f"/proc/{session}/environ").read_bytes().split(b"\0"):
            os.killpg(session, signal.SIGKILL)
    kill_marked(session, f"{_SWEEP}=1")


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _is_file(path: Path) -> bool:
    return path.is_file()


async def _run(*command: str) -> tuple[int, str, str]:
    """A command to its end, in a session of its own: it outlives us."""
    environment = {**{name: value for name, value in os.environ.items() if name != READ_ONLY}, _SWEEP: "1"}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True, env=environment
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")
