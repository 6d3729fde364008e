"""What `import producer` costs a program, against `import redis`; and how soon `crabpot --help` is there."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.figure import Figure


def measure() -> list[Figure]:
    ours, baseline = _median("producer"), _median("redis")
    working = _median("producer.submit")
    crabpot = Path(sys.executable).parent / "crabpot"
    took = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([crabpot, "--help"], capture_output=True, check=True)
        took.append(time.perf_counter() - start)
    detail = f"{ours / 1000:.0f} ms against {baseline / 1000:.0f} ms"
    return [
        Figure("import producer", ours / baseline, 3, detail=detail),
        Figure("import of all that submit_build() uses", working / baseline, 3, detail=f"{working / 1000:.0f} ms"),
        Figure("crabpot --help", statistics.median(took), 0.2, "s"),
    ]


def _median(module: str) -> float:
    """Microseconds of -X importtime's total for a module, the median of seven processes."""
    totals = []
    for _ in range(7):
        told = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True, check=True
        ).stderr
        totals.append(
            sum(
                int(line.split("|")[1])
                for line in told.splitlines()
                if line.endswith(f"| {module}") or line.rpartition("|")[2].strip() == module.split(".", maxsplit=1)[0]
            )
        )
    return statistics.median(totals)


if __name__ == "__main__":
    for figure in measure():
        print(figure.say())
