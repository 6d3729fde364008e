"""A launch's folder on this machine: the files by which launchers, watchers and the runner agree, whoever of them is killed.

    spec.json    what is to be run, and the uid of this life of the name; there from the folder's first moment
    runner.json  the runner's claim: linked into place once, and locked while the runner lives. A free lock means that it is dead,
                 whatever process has its id now; so a restarted machine and a reused process id need no further thought
    log          the executor's output, each line after its time
    message      the executor's termination message
    end.json     how it ended; linked into place once
    deleted      somebody asked for its end, with this many seconds of grace
    released     its end is recorded

A folder appears by a rename, so two launches of a name are one, and disappears by a rename once it is ended, deleted and released.
It is worked on through a descriptor, so that a late call never touches a later life of the same name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from worker.cluster import Phase, Pod, PodName
from worker.cluster.sessions import kill_marked

SPEC, CLAIM, END, DELETED, RELEASED, LOG, MESSAGE = "spec.json", "runner.json", "end.json", "deleted", "released", "log", "message"
MARK = "CRABPOT_LAUNCH"
"""The variable, in the executor's environment, by which a launch's processes are known when their runner is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a runner needs, and what tells this launch from others. Holds no secret."""

    uid: str
    name: str
    build: str
    attempt: int
    platform: str
    project: str
    created: str
    executor: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folders: Mapping[str, str]
    """Path that the arguments name -> folder of this machine."""
    run_deadline: float | None
    """Seconds."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a launch ended."""

    exit_code: int | None
    reason: str
    detail: str | None = None
    message: str | None = None
    disrupted: bool = False


class LaunchFolder:
    """One life of a launch's name. Use it as a context manager: it holds a descriptor."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.spec = Spec(**self._load(SPEC) or {})

    @classmethod
    def open(cls, path: Path) -> Self:
        """FileNotFoundError where there is no such launch, or no longer."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return cls(path, descriptor)
        except TypeError:  # it was being removed: the spec is gone already
            os.close(descriptor)
            raise FileNotFoundError(path) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def pod(self) -> Pod:
        """The launch as a pod. A dead runner that left no end is given one here, once its processes are dead too. FileNotFoundError."""
        claim, end = self._load(CLAIM), self._load(END)
        if not self._in_place():
            raise FileNotFoundError(self.path)
        if claim and not end and not self.runner_lives():
            end = self._load(END) or self._end_lost(claim)
        phase = Phase.ENDED if end else Phase.RUNNING if claim else Phase.PENDING
        claim, end, spec = claim or {}, end or {}, self.spec
        return Pod(
            name=PodName(spec.name),
            uid=spec.uid,
            build=spec.build,
            attempt=spec.attempt,
            platform=spec.platform,
            phase=phase,
            node=claim.get("node"),
            created=datetime.fromisoformat(spec.created),
            started=_time(claim.get("started")),
            ended=_time(end.get("ended")),
            exit_code=end.get("exit_code"),
            message=end.get("message"),
            reason=end.get("reason"),
            detail=end.get("detail"),
            disrupted=end.get("disrupted", False),
            deleting=self._has(DELETED),
            held=not self._has(RELEASED),
        )

    def claim(self) -> int | None:
        """Become this launch's runner. A descriptor, by which the claim is locked until it is closed; None where another was first."""
        claim = {"pid": os.getpid(), "namespace": _process_namespace(), "node": socket.gethostname(), "started": _now()}
        name = self._write_aside(claim)
        descriptor = os.open(name, os.O_RDONLY, dir_fd=self._descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if self._link(name, CLAIM):
            return descriptor
        os.close(descriptor)
        return None

    def never_start(self) -> bool:
        """End a launch that no runner has claimed, so that none will; False where one has."""
        if not self._link(self._write_aside({"started": None}), CLAIM):
            return False
        self.end(End(exit_code=None, reason="Deleted", detail="it was deleted before it started"))
        return True

    def runner_lives(self) -> bool:
        """Whether somebody holds the claim's lock."""
        try:
            descriptor = os.open(CLAIM, os.O_RDONLY, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def runner_process(self) -> int | None:
        """The runner's process descriptor (see os.pidfd_open); None where it does not live, or in another process namespace (container)."""
        claim = self._load(CLAIM)
        if not claim or claim.get("namespace") != _process_namespace():
            return None
        try:
            process = os.pidfd_open(claim["pid"])
        except ProcessLookupError:
            return None
        if self.runner_lives():  # and so the id is still its own
            return process
        os.close(process)
        return None

    def end(self, end: End) -> None:
        """Record the end; the first that is recorded stays."""
        self._link(self._write_aside({**asdict(end), "ended": _now()}), END)

    def ask_end(self, grace: timedelta) -> None:
        os.replace(self._write_aside(grace.total_seconds()), DELETED, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def grace(self) -> float | None:
        """Seconds that a deletion gives; None where nobody asked for one."""
        found: float | None = self._load(DELETED)
        return found

    def release(self) -> None:
        os.replace(self._write_aside(None), RELEASED, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove_if_done(self, staging: Path) -> bool:
        """Take the folder away if it is ended, deleted and released. Each of the three looks after its own mark, so one sees all of them."""
        if not all(self._has(mark) for mark in (END, DELETED, RELEASED)):
            return False
        grave = staging / str(uuid4())
        with _locked(staging / "lock"):
            if not self._in_place():
                return True
            self.path.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _end_lost(self, claim: Mapping[str, Any]) -> Any:
        if pid := claim.get("pid"):
            kill_marked(pid, f"{MARK}={self.spec.uid}")
        detail = "the process that ran it was killed, or this machine was restarted, and it left no exit code"
        self.end(End(exit_code=None, reason="RunnerLost", detail=detail, disrupted=True))
        return self._load(END)

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def _load(self, name: str) -> Any:
        try:
            descriptor = os.open(name, os.O_RDONLY, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, encoding="utf-8") as file:
            return json.load(file)

    def _write_aside(self, content: Any) -> str:
        name = f".{uuid4()}"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._descriptor)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        return name

    def _link(self, aside: str, name: str) -> bool:
        """Give a whole file its name, once; whether it was the first."""
        try:
            os.link(aside, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except FileExistsError:
            return False
        finally:
            os.unlink(aside, dir_fd=self._descriptor)
        return True


def create(path: Path, staging: Path, spec: Spec) -> bool:
    """Make a launch's folder, whole at once; False where the name exists."""
    draft = staging / str(uuid4())
    draft.mkdir(mode=0o700)
    (draft / SPEC).write_text(json.dumps(asdict(spec), indent=1), encoding="utf-8")
    try:
        draft.rename(path)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if path.exists():
            return False
        raise
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _process_namespace() -> int:
    """Process ids mean something only among processes that share this."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
