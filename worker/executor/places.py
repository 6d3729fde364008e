"""Where things are: paths that arguments name become this machine's, and each run has a folder of its own that is gone afterwards.

A pod has mounts; a run on this machine is told by its environment what stands for what (see worker/cluster/runner.py). Only the flags
that name files are translated, so that every other argument arrives unchanged.
"""

from __future__ import annotations

import fcntl
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Places:
    """Path as arguments name it -> path on this machine."""

    folders: Mapping[str, str]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        folders = json.loads(environment.get("CRABPOT_FOLDERS") or "{}")
        if message := environment.get("CRABPOT_TERMINATION_LOG"):
            folders["/dev/termination-log"] = message
        return cls(folders)

    def find(self, path: str) -> Path:
        """The file or folder of this machine; the longest mount that it lies under counts."""
        path = posixpath.normpath(path)
        for mount in sorted(self.folders, key=len, reverse=True):
            if path == mount or path.startswith(mount.rstrip("/") + "/"):
                return Path(self.folders[mount] + path[len(mount.rstrip("/")) :])
        return Path(path)


@contextmanager
def run_folder(state: Path) -> Iterator[Path]:
    """A folder for one run, removed at its end. What killed runs have left is removed first: nobody holds the lock in it any more."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(state / _LOCK):
        for left in state.iterdir():
            if left.is_dir() and _is_free(left / _LOCK):
                _remove(left)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=state)).resolve()
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _is_free(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(folder: Path) -> None:
    """Remove a run's folder, unless something is mounted in it: that would be emptied too."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(mount.startswith(f"{folder}/") for mount in mounts):
        print(f"crabpot: {folder} is left as it is, since something is mounted in it", flush=True)
        return
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
