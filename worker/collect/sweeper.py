"""A sweep on this machine: `python -m worker.collect.sweeper LOCK MARKER RUN PROGRAM…`, a process of its own that outlives its worker.

It holds the lock for as long as it or its program lives, and begins only while the marker names its run: who takes the marker away takes the
lock first. So a sweep that was asked for too late never begins, and one whose lock can be taken is no more.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path


def main(lock: str, marker: str, run: str, *program: str) -> int:
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another sweep lives", file=sys.stderr)
        return 75
    os.ftruncate(held, 0)
    os.pwrite(held, str(os.getpid()).encode(), 0)
    try:
        wanted = Path(marker).read_text()
    except FileNotFoundError:
        wanted = ""
    if wanted != run:
        print("the registry is not closed for this sweep any more", file=sys.stderr)
        return 75
    return subprocess.run(program, check=False, pass_fds=(held,)).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
