"""Every kind of chore, by the word before its colon. A new kind is a function of the shape `worker.chores.Bit`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.chores import Bit
from worker.collect.chore import COLLECTIONS

KINDS: Final[Mapping[str, Bit]] = {**COLLECTIONS}
