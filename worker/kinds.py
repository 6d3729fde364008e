"""Every kind of chore, by the word before its colon. A new kind is a function of the shape `worker.chores.Bit`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ledger.adoption import KIND as ADOPT
from ledger.promotions import KIND as PROMOTE
from worker.chores import Bit
from worker.collect.chore import COLLECTIONS
from worker.promotion import promote
from worker.retention.adoption import adopt
from worker.retention.apply import apply
from worker.retention.planning import make_plan
from worker.retention.purge import purge
from worker.retention.undo import undo

KINDS: Final[Mapping[str, Bit]] = {
    ADOPT: adopt,
    "plan": make_plan,
    "apply": apply,
    "purge": purge,
    "undo": undo,
    PROMOTE: promote,
    **COLLECTIONS,
}
