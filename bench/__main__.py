"""`make bench`: every figure, one after another, on an otherwise idle machine."""

from __future__ import annotations

import platform
import sys

from bench import admission, cluster, crowd, imports, memory, retention, submit


def main() -> None:
    print(f"{platform.platform()}, Python {platform.python_version()}")
    missed = 0
    for module in (imports, submit, admission, cluster, crowd, memory, retention):
        for figure in module.measure():
            print(figure.say(), flush=True)
            missed += not figure.kept
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
