"""Building again what was asked for before: a new build from an ended one's request."""

from __future__ import annotations

from ledger.build import Build
from ledger.errors import StillRuns
from ledger.store import Ledger
from ledger.submission import Seen, draft
from producer.submit import submit_drafts


async def retry_build(ledger: Ledger, build: str) -> Build:
    """Queue a new build of the same request: same source, commit and destinations. Policy is checked as it is now.

    Its place among the pushes is the first one's, so that it does not move a mutable tag back over a newer push. StillRuns where the first has not ended (cancel it, or wait); NotFound; and what `submit_build` raises.
    """
    record = await ledger.read(build)
    if not record.state.final:
        raise StillRuns(f"build {record.id} is still {record.state}; `crabpot cancel {record.id}` ends it")
    taken = await submit_drafts(ledger, [draft(record.request, order=record.sequence)])
    assert not isinstance(taken, Seen)
    return taken[0]
