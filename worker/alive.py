"""`python -m worker.alive FILE`: the probe. Exits 0 while the process that touches the file (CRABPOT_ALIVE_FILE) does its work.

It imports nothing of crabpot: a probe that takes a second would be a load of its own.
"""

from __future__ import annotations

import os
import sys
import time

FRESH = 60.0
"""Seconds after which the file, touched every few by `worker/liveness.py`, is too old."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m worker.alive FILE\n")
        return 2
    try:
        age = time.time() - os.stat(arguments[0]).st_mtime  # noqa: PTH116 - pathlib takes longer to import than this to run
    except OSError as error:
        sys.stderr.write(f"{error}: nothing has touched it yet\n")
        return 1
    if age > FRESH:
        sys.stderr.write(f"no work for {age:.0f} s; the process's log says which (event stuck)\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
