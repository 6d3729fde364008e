"""Durations and Kubernetes quantities, as people write them in requests and in the projects file."""

from __future__ import annotations

import re
from functools import lru_cache

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_BYTES = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_CPU = re.compile(r"(\d+(?:\.\d+)?)(m)?")


@lru_cache(maxsize=256)
def parse_duration(text: str) -> float:
    """`90s`, `30m`, `6h`, `7d`, `1h30m` in seconds."""
    if not re.fullmatch(rf"({_DURATION.pattern})+", text):
        raise ValueError(f"the duration {text!r} must be a number with ms, s, m, h or d, as 90s or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def parse_memory(text: str) -> int:
    """`512Mi`, `2Gi`, `1G` in bytes."""
    match = _MEMORY.fullmatch(text)
    if not match or float(match[1]) == 0:
        raise ValueError(f"the size {text!r} must be a positive number with Ki, Mi, Gi, Ti, k, M, G or T, as 512Mi")
    return int(float(match[1]) * _BYTES[match[2]])


def parse_cpu(text: str) -> float:
    """`500m`, `2` in cores."""
    match = _CPU.fullmatch(text)
    if not match or float(match[1]) == 0:
        raise ValueError(f"the CPU {text!r} must be a positive number of cores, or of thousandths with m, as 500m")
    return float(match[1]) / (1000 if match[2] else 1)


def say_memory(count: int) -> str:
    """Bytes as a quantity without loss, in Mi where it is whole."""
    return f"{count // 2**20}Mi" if count % 2**20 == 0 else str(count)
