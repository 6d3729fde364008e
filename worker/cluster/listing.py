"""All objects of some kinds in all namespaces of a cluster, page by page: whole, or an error.

A page that fails is asked for again, a few times. A list whose continuation has expired (410, after five minutes by default) begins again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ledger.errors import ClusterDenied, ClusterUnavailable, WatchExpired
from worker.cluster.answers import Answer, failure_of
from worker.cluster.connection import Api
from worker.cluster.watching import Pace
from worker.cluster.workloads import Workload

_PAGE = 200
"""Objects of one answer; see `kubernetes._PAGE`. Fewer would mean many more questions of a large cluster."""
_TRIES = 3
"""For a page that fails, and for a list that expires."""
_LONGEST_WAIT = 10.0
"""Seconds: a server that wants to be left alone for longer has not answered."""

MEND = "bind the ClusterRole of deploy/running to it"
Read = TypeVar("Read")


class _Forbidden(ClusterDenied):
    """The account may not list a kind."""


class Listing:
    """Questions after whole kinds of objects, in all namespaces."""

    def __init__(self, api: Api, pace: Pace) -> None:
        self._api, self._pace = api, pace

    async def everything(self, read: Callable[[Workload, Mapping[str, Any]], Read | None]) -> list[Read]:
        """What `read` makes of each object of each kind, where that is something. ClusterDenied names all kinds that may not be listed;
        ClusterUnavailable.
        """
        found: list[Read] = []
        lacking: dict[Workload, str] = {}
        for kind in Workload:
            try:
                found += await self._whole(kind, read)
            except _Forbidden as error:
                lacking[kind] = str(error)
        if lacking:
            raise ClusterDenied(f"its account may not {rights(lacking)} in all namespaces ({next(iter(lacking.values()))}); {MEND}")
        return found

    async def lacking(self) -> list[Workload]:
        """The kinds that the account may not list: one object of each is asked for. ClusterUnavailable; ClusterDenied: it has no account there."""
        found = []
        for kind in Workload:
            try:
                _read_page(await self._api.call("GET", kind.path, query={"limit": 1}), kind)
            except _Forbidden:
                found.append(kind)
        return found

    async def _whole(self, kind: Workload, read: Callable[[Workload, Mapping[str, Any]], Read | None]) -> list[Read]:
        for _ in range(_TRIES):
            found: list[Read] = []
            following: str | None = ""
            try:
                while following is not None:
                    items, following = await self._page(kind, following)
                    found += [one for item in items if (one := read(kind, item)) is not None]
            except WatchExpired:
                continue
            return found
        raise ClusterUnavailable(f"could not list {kind}: the list expired {_TRIES} times before its end; is the API server overloaded?")

    async def _page(self, kind: Workload, following: str) -> tuple[list[Mapping[str, Any]], str | None]:
        """A page's objects, and how the next is asked for; None: it is the last."""
        query = {"limit": _PAGE, **({"continue": following} if following else {})}
        for failures in range(1, _TRIES + 1):
            try:
                return _read_page(await self._api.call("GET", kind.path, query=query), kind)
            except ClusterUnavailable as error:
                pause = max(self._pace.pause(failures), error.retry_after or 0.0)
                if failures == _TRIES or pause > _LONGEST_WAIT:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError  # the last failure was raised


def _read_page(answer: Answer, kind: Workload) -> tuple[list[Mapping[str, Any]], str | None]:
    if answer.definite and answer.status == 403:
        raise _Forbidden(answer.message)
    if answer.definite and answer.status == 401:
        raise ClusterDenied(f"could not list {kind}: {answer.message}; give the kubeconfig a token or certificate that has not expired")
    if not answer.ok or answer.body is None:
        raise failure_of(answer, f"list {kind}")
    metadata, named = answer.body.get("metadata"), str(answer.body.get("kind"))
    # What is no list must not pass for a cluster that runs nothing.
    if not isinstance(metadata, dict) or "items" not in answer.body or not named.endswith("List"):
        raise ClusterUnavailable(f"could not list {kind}: the answer is no list; is a proxy in between?")
    return answer.body["items"] or [], metadata.get("continue") or None


def rights(kinds: Iterable[Workload]) -> str:
    """What an account lacks, for people."""
    return ", ".join(f"list {kind}" for kind in kinds)
