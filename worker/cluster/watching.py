"""One endless watch out of many short ones: Kubernetes ends each after a minute, and proxies, restarts and cut lines end them sooner.

Each generator has one concern: bytes to lines, lines to events, events to pods, and the coming back after an end. A watch goes on from
the version of the last event or bookmark, so nothing is missed; when the server no longer has that version, `WatchExpired` says so, and
the caller lists again. After an end that came too soon there is a pause with jitter: an empty stream must not become a hot loop.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from ledger.errors import ClusterUnavailable
from worker.cluster import Phase, Pod
from worker.cluster.answers import Answer, failure_of
from worker.cluster.pod_status import pod_of_ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things may take and how often they are tried again, in seconds. Tests shorten them."""

    connect: float = 5.0
    answer: float = 20.0
    """The longest silence within an answer; the server is asked to give up a create sooner."""
    launch: float = 45.0
    """How long a create whose outcome is open is repeated; longer than a create can take on the server."""
    room: float = 5.0
    """How long a create that finds the namespace's quota used up is repeated."""
    watch: float = 60.0
    """How long the server keeps a watch open, give or take a quarter; a dead line is noticed after this."""
    watch_failures: int = 6
    """Failures in a row after which a watch is given up."""
    log_silence: float = 300.0
    """The longest silence in a followed log before it is asked for again."""
    first_pause: float = 0.2
    longest_pause: float = 10.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: exponential, with full jitter above a floor."""
        most = min(self.longest_pause, self.first_pause * 2**failures)
        return random.uniform(most / 4, most)


OpenWatch = Callable[[str, float], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""(version to go on from, seconds until the server ends it) -> the answer's bytes as they come."""


async def lines_of(chunks: AsyncIterator[bytes], longest: int | None = None) -> AsyncIterator[bytes]:
    """Lines without their newline; what is beyond `longest` bytes in a line is left out. A last line without a newline counts."""
    rest, cut = bytearray(), False
    async for chunk in chunks:
        rest += chunk
        start = 0
        while (end := rest.find(b"\n", start)) >= 0:
            if not cut:
                yield bytes(rest[start : end if longest is None else min(end, start + longest)])
            start, cut = end + 1, False
        del rest[:start]
        if longest is not None and len(rest) > longest:
            if not cut:
                yield bytes(rest[:longest])
            cut = True
            rest.clear()
    if rest and not cut:
        yield bytes(rest)


async def events_of(lines: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, Mapping[str, Any], str]]:
    """(type, object, its version) of each event. WatchExpired, ClusterUnavailable for the server's errors and for what is no event."""
    async for line in lines:
        if not line:
            continue
        try:
            event = json.loads(line)
            kind, found = event["type"], event["object"]
            status = int(found.get("code") or 500) if kind == "ERROR" else 200
            version = "" if kind == "ERROR" else found["metadata"]["resourceVersion"]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ClusterUnavailable(f"the watch sent what is no event: {line[:80]!r}; is a proxy in between?") from None
        if kind == "ERROR":
            raise failure_of(Answer(status, found), "watch pods")
        yield kind, found, version


async def follow(open_watch: OpenWatch, since: str, pace: Pace) -> AsyncGenerator[Pod, None]:
    """Every change of a pod after `since`, a deleted one as GONE. WatchExpired, ClusterDenied; ClusterUnavailable after several failures."""
    version, failures = since, 0
    while True:
        began, trouble = monotonic(), None
        try:
            async with open_watch(version, pace.watch * random.uniform(0.75, 1.25)) as chunks:
                async for kind, found, newer in events_of(lines_of(chunks)):
                    version = newer
                    if kind != "BOOKMARK" and (pod := pod_of_ours(found)):
                        yield replace(pod, phase=Phase.GONE) if kind == "DELETED" else pod
        except ClusterUnavailable as error:
            trouble = error
        soon = monotonic() - began < min(1.0, pace.watch / 2)
        failures = (failures if soon else 0) + (soon or trouble is not None)
        if failures >= pace.watch_failures:
            raise trouble or ClusterUnavailable("the cluster ends each watch at once; is a proxy in between?")
        if failures:
            await asyncio.sleep(max(pace.pause(failures), (trouble and trouble.retry_after) or 0.0))
