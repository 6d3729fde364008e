"""The count at the end of a soak: what came in and what came out, and what must not have been."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from ledger.audit import Audit
from ledger.build import Build
from ledger.store import Ledger
from tests.soak.load import Load
from tests.soak.site import AT_ONCE
from tests.soak.witness import Witness

_SHOWN = 12
"""Lines of each kind of fault."""


@dataclass
class Report:
    """Each list must be empty, and the first two numbers equal."""

    builds_in: int
    finals_out: int
    states: dict[str, int]
    unfinished: list[str]
    doubles: list[str] = field(default_factory=list)
    limit_breaches: list[str] = field(default_factory=list)
    leaked_slots: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    index_faults: list[str] = field(default_factory=list)
    tags_behind: list[str] = field(default_factory=list)
    late_pods: int = 0
    """Pods of attempts that were over: made by processes that were stopped, and deleted at sight."""

    @property
    def well(self) -> bool:
        wrong = (self.doubles, self.limit_breaches, self.leaked_slots, self.orphans, self.index_faults, self.tags_behind, self.unfinished)
        return self.builds_in == self.finals_out and not any(wrong)

    def say(self) -> str:
        rows = [
            ("builds in", self.builds_in), ("finals out", self.finals_out), ("doubles", len(self.doubles)),
            ("limit breaches", len(self.limit_breaches)), ("leaked slots", len(self.leaked_slots)), ("orphans", len(self.orphans)),
            ("index faults", len(self.index_faults)), ("tags behind", len(self.tags_behind)), ("late pods, deleted at sight", self.late_pods),
        ]  # fmt: skip
        text = "\n".join(f"{name:30} {value}" for name, value in rows)
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        kinds = (self.doubles, self.limit_breaches, self.index_faults, self.tags_behind, self.leaked_slots, self.orphans, self.unfinished)
        wrong = [line for kind in kinds for line in kind[:_SHOWN]]
        return "\n".join([text, states, *wrong])


async def count(ledger: Ledger, load: Load, witness: Witness, breaches: list[str]) -> Report:
    """Compare what was asked for, what the ledger says, what the stream told, and what the cluster saw."""
    records = await records_of(ledger)
    states = Counter(str(records[build].state) if build in records else "lost" for build in load.accepted)
    unfinished = [
        f"not ended: {build} {records[build].state if build in records else 'LOST'}"
        for build in load.accepted
        if not _ended(records, build)
    ]
    finished, twice = await _finished(ledger)
    current = {run.pod for record in records.values() for attempt in record.attempts for run in attempt.runs}
    made_twice = [f"made twice: {pod}" for pod, uids in witness.ran.items() if len(uids) > 1]
    return Report(
        builds_in=len(load.accepted),
        finals_out=sum(finished[build] == 1 for build in load.accepted),
        states=dict(states),
        unfinished=unfinished,
        doubles=[*made_twice, *(f"ended twice: {build}" for build, times in finished.items() if times != 1), *twice],
        limit_breaches=breaches,
        leaked_slots=[f"slot: {slot}" for slot in await ledger.slots()],
        orphans=[f"pod left: {pod}" for pod in sorted(witness.there)],
        index_faults=[str(fault) async for found in Audit(ledger.connection, mend=False).all() for fault in found],
        late_pods=sum(len(uids) - 1 for uids in witness.uids.values()) + len(witness.uids.keys() - current),
    )


def _ended(records: dict[str, Build], build: str) -> bool:
    return build in records and records[build].state.final


async def records_of(ledger: Ledger) -> dict[str, Build]:
    """Every build, also those whose submit was never answered."""
    found: dict[str, Build] = {}
    cursor = None
    while True:
        page = await ledger.page(limit=500, cursor=cursor)
        found |= {build.id: build for build in page.builds}
        cursor = page.cursor
        if cursor is None:
            return found


async def _finished(ledger: Ledger) -> tuple[Counter[str], list[str]]:
    """How often each build's end was told, and events that were told twice."""
    finished: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    last = "0-0"
    while events := await ledger.events(last, block=0.001, count=5000):
        last = events[-1][0]
        for _, text in events:
            event = json.loads(text)
            ids[event["id"]] += 1
            if event["type"].startswith("dev.cdevents.build.finished"):
                finished[event["data"]["customData"]["build"]] += 1
    return finished, [f"told twice: {event}" for event, times in ids.items() if times > 1]


async def breaches_now(ledger: Ledger, witness: Witness) -> list[str]:
    """What exceeds the limit at this moment: slots, and pods that live by right of a slot."""
    slots = await ledger.slots()
    holding = {slot.split("/")[0] for slot in slots}
    by_right = [pod for pod, build in witness.live.items() if build in holding]
    found = []
    if len(slots) > AT_ONCE:
        found.append(f"{len(slots)} slots were taken")
    if len(by_right) > AT_ONCE:
        found.append(f"{len(by_right)} pods lived")
    return found
