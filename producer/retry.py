"""Building again what was asked for before: a new build from an ended one's request."""

from __future__ import annotations

from ledger.build import Build
from ledger.errors import StillRuns
from ledger.store import Ledger
from producer.submit import submit_build_async


async def retry_build(ledger: Ledger, build: str) -> Build:
    """Queue a new build of the same request: same source, commit and destinations. Policy is checked as it is now.

    StillRuns where the first has not ended (cancel it, or wait); NotFound; and what `submit_build` raises.
    """
    record = await ledger.read(build)
    if not record.state.final:
        raise StillRuns(f"build {record.id} is still {record.state}; `crabpot cancel {record.id}` ends it")
    return await submit_build_async(record.request, ledger=ledger)
