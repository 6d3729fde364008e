"""Asking clusters which images they run. A cluster that does not tell the whole of it has said nothing: it is silent, and why is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from ledger.errors import ClusterDenied, ClusterUnavailable, CrabpotError
from ledger.redaction import clean
from ledger.site import ClusterSource
from worker.cluster.watching import Pace
from worker.cluster.workloads import Workload
from worker.retention.running import ImageNotUnderstood, marks_of, read_holder

if TYPE_CHECKING:
    from worker.cluster.listing import Listing

log = structlog.get_logger()
LATELY = timedelta(seconds=60)
"""How long ago a cluster may have answered where a plan is made or applied. An apply asks at the start of each repository, and of five hundred
small ones each takes a second: a large cluster would be asked for all its pods without a pause.

What a plan goes by may be older than that. An answer begins up to `_PATIENCE` before its end, and counts from its end; then an apply goes by what
it looked at for 30 s. So it is about three and a half minutes old in the worst case, and the repository is read in between; where a second cluster is
asked meanwhile, that one is waited for, two minutes at most. What begins to run in this time by a tag that goes may fail to be pulled; its digest
waits in the bin, and who purges asks anew."""
NOW = timedelta(0)
"""Where something goes for good, nothing but an answer to this very question counts."""
_PATIENCE = 120.0
"""Seconds that all of an answer may take. Beyond, a chore would hang on a cluster that sends a byte now and then."""
_TOLD = 400
"""Characters of why a cluster is silent: it stands in plans."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A cluster does not say what it runs."""

    why: str


Answer = Mapping[str, str] | Silence
"""Image, by its mark (see `ImageReference.mark`) -> who needs it; or why that is not known."""


@dataclass(slots=True)
class _Known:
    """The last answer of a cluster."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    source: ClusterSource | None = None
    answer: Answer = Silence("it was never asked")
    ended: float = 0.0


class Inquiries:
    """The clusters that a process asks. Whoever wants to know while one is being asked waits for that answer."""

    def __init__(self, pace: Pace | None = None, patience: float = _PATIENCE) -> None:
        self._pace, self._patience = pace or Pace(), patience
        self._known: dict[str, _Known] = {}

    async def ask(self, name: str, source: ClusterSource, age: timedelta) -> Answer:
        """What a cluster runs now, or ran at most so long ago. A silence is remembered as an answer is: who does not answer in two minutes is not
        asked again for each repository.
        """
        known = self._known.setdefault(name, _Known())
        async with known.turn:
            if known.source != source or monotonic() - known.ended >= age.total_seconds():
                known.answer = await self._asked(name, source)
                # Counted from the end: a cluster that takes a minute to answer would else be asked all the time.
                known.source, known.ended = source, monotonic()
            return known.answer

    async def _asked(self, name: str, source: ClusterSource) -> Answer:
        begun = monotonic()
        try:
            async with asyncio.timeout(self._patience), opened(name, source, self._pace) as listing:
                holders = await listing.everything(read_holder)
        except (CrabpotError, ImageNotUnderstood) as error:
            why = str(error)
        except TimeoutError:
            why = f"its answer took longer than {self._patience:g} s"
        except Exception as error:  # whatever it is, what the cluster runs is not known, and its silence is what stops a deletion
            log.error("cluster_inquiry_broken", cluster=name, exc_info=error)
            why = f"crabpot has a fault here: {type(error).__name__}: {error}"
        else:
            marks = marks_of(holders, source.revisions)
            log.info("cluster_asked", cluster=name, images=len(marks), seconds=round(monotonic() - begun, 2))
            return marks
        why = clean(" ".join(why.split()))[:_TOLD]
        log.warning("cluster_silent", cluster=name, why=why, mend="`crabpot doctor` looks at each cluster of the projects file")
        return Silence(why)

    async def lacking(self, name: str, source: ClusterSource) -> list[Workload]:
        """The kinds that the account may not list there. ClusterError where that is not known."""
        try:
            async with asyncio.timeout(self._patience), opened(name, source, self._pace) as listing:
                return await listing.lacking()
        except TimeoutError:
            raise ClusterUnavailable(f"its answer took longer than {self._patience:g} s") from None


@asynccontextmanager
async def opened(name: str, source: ClusterSource, pace: Pace) -> AsyncIterator[Listing]:
    """A cluster to be asked. Opened for each inquiry: its kubeconfig is read again, since people renew tokens. ClusterDenied."""
    from worker.cluster.connection import Api
    from worker.cluster.listing import Listing

    if source.reports:
        raise ClusterDenied(f"clusters.{name} has a token: it reports, and is not asked")
    if source.in_cluster and "KUBERNETES_SERVICE_HOST" not in os.environ:
        # Api would take kubectl's own kubeconfig instead: whatever cluster that leads to would answer for this one.
        raise ClusterDenied(f"clusters.{name}.in_cluster: this worker runs in no cluster; name a kubeconfig instead")
    api = Api(Path(source.kubeconfig) if source.kubeconfig else None, source.context, pace)
    try:
        yield Listing(api, pace)
    finally:
        await api.close()
