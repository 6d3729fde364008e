"""How a figure is told: measured, baseline, ratio, and the bound that it must keep."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure. `bound` is kept when value <= bound, or value >= bound where more is better."""

    name: str
    value: float
    bound: float | None
    unit: str = "x"
    more_is_better: bool = False
    detail: str = ""

    @property
    def kept(self) -> bool:
        return self.bound is None or (self.value >= self.bound if self.more_is_better else self.value <= self.bound)

    def say(self) -> str:
        sign = ">=" if self.more_is_better else "<="
        verdict = "" if self.bound is None else f"  ({sign} {self.bound:g} {self.unit}: {'kept' if self.kept else 'MISSED'})"
        return f"{self.name}: {self.value:.3g} {self.unit}{verdict}  {self.detail}"

    def as_json(self) -> str:
        return json.dumps({**self.__dict__, "kept": self.kept})


def interleaved(pairs: int, ours: Callable[[], float], baseline: Callable[[], float]) -> tuple[float, list[float], list[float]]:
    """The median ratio ours/baseline of pairs run one after another, so that a slow minute of the machine hits both."""
    mine, theirs = [], []
    for _ in range(pairs):
        theirs.append(baseline())
        mine.append(ours())
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), mine, theirs


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} [{min(values):.4g} .. {max(values):.4g}]"
