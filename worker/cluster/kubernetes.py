"""Launches as bare pods on Kubernetes.

A pod costs four requests: create, log, release, delete. All that is learned of it comes by one watch a namespace. Names say which pod is
meant, uids which life of it: a release or a delete that comes late does nothing to a later pod of the same name.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime, timedelta
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from ledger.errors import ClusterDenied, ClusterError, ClusterUnavailable, NoRoom, NotFound, PodConflict, WatchExpired
from worker.cluster import Launch, LogLine, Phase, Pod, PodName, Snapshot, Wanted, always
from worker.cluster.answers import failure_of, refusal_of
from worker.cluster.connection import JSON, PATCH, Api, Silent
from worker.cluster.log_lines import LONGEST, Place, read_line, since_time
from worker.cluster.manifest import CONTAINER, FINALIZER, LEDGER, SELECTOR, pod_manifest, selector
from worker.cluster.pod_status import pod_of_ours, read_pod
from worker.cluster.rights import is_allowed, told
from worker.cluster.turns import Turns
from worker.cluster.watching import Pace, follow, lines_of

READABLE = "crabpot.dev/readable"
"""The label by which a Secret's owner lets workers read it."""
WORKER_RIGHTS = (("create", "pods", ""), ("get", "pods", ""))
WATCH_RIGHTS = (*((verb, "pods", "") for verb in ("list", "watch", "patch", "delete")), ("get", "pods", "log"), ("list", "events", ""))
"""(verb, resource, subresource) that each process's account needs in every namespace of builds."""
_PAGE = 100
"""Pods of one answer to a list: a thousand at once, parsed, would be the most memory that the process ever needs."""


class Home(NamedTuple):
    """Where a pod was last seen."""

    namespace: str
    node: str | None


class KubernetesCluster:
    """Pods in some namespaces of a cluster; see `worker.cluster.Cluster`."""

    def __init__(
        self,
        namespaces: Sequence[str],
        *,
        ledger: str = "",
        kubeconfig: Path | None = None,
        context: str | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`ledger` is the identity of the ledger whose pods these are; without one, all crabpots' pods are taken for ours."""
        self._ledger, self._selector = ledger, selector(ledger)
        self._namespaces, self._pace = tuple(namespaces), pace or Pace()
        self._api = Api(kubeconfig, context, self._pace)
        self._homes: dict[PodName, Home] = {}
        self._turns = Turns(self._pace.answer)
        self._wider = asyncio.Event()

    def cover(self, namespaces: Iterable[str]) -> None:
        # None is taken out again: its last pods may still be there.
        added = tuple(sorted(set(namespaces) - set(self._namespaces)))
        if added:
            self._namespaces += added
            self._wider.set()
            self._wider = asyncio.Event()

    async def launch(self, launch: Launch, wanted: Wanted = always) -> Pod:
        path, body = f"/api/v1/namespaces/{launch.namespace}/pods", pod_manifest(launch, self._ledger)
        # The server gives a create up before we stop asking, so that none is committed after our last word.
        query = {"timeout": f"{ceil(self._pace.answer)}s"}
        begun = monotonic()
        failures, doubtful = 0, False
        trouble: ClusterError
        while True:
            try:
                answer = await self._api.call("POST", path, query=query, body=body)
                if answer.ok and answer.body and (pod := pod_of_ours(answer.body)):
                    return pod
                refusal = refusal_of(answer)
                # A pod that has just ended uses its namespace's quota for a moment longer.
                if refusal and not doubtful and not (isinstance(refusal, NoRoom) and monotonic() < begun + self._pace.room):
                    raise refusal
                # After a doubtful create even a refusal proves nothing: quota is checked before the name, and used by the pod itself.
                if ((refusal and doubtful) or answer.reason == "AlreadyExists") and (pod := await self._adopt(launch)):
                    return pod
                trouble = ClusterUnavailable(f"could not create the pod {launch.pod}: {answer.message}", retry_after=answer.retry_after)
                doubtful |= answer.ok or answer.status >= 500 or answer.body is None
            except ClusterUnavailable as error:
                trouble, doubtful = error, True
            failures += 1
            pause = max(self._pace.pause(failures), trouble.retry_after or 0.0)
            if monotonic() + pause > begun + self._pace.launch:
                raise trouble
            await asyncio.sleep(pause)
            if doubtful and not await wanted():
                raise trouble

    async def _adopt(self, launch: Launch) -> Pod | None:
        """The pod of that name if it is this launch's; None if there is none."""
        answer = await self._api.call("GET", f"/api/v1/namespaces/{launch.namespace}/pods/{launch.pod}")
        if answer.definite and answer.status == 404:
            return None
        if not answer.ok or answer.body is None:
            raise failure_of(answer, f"read the pod {launch.pod}")
        try:
            pod = read_pod(answer.body)
        except ValueError:
            pod = None
        if pod is None or (pod.build, pod.attempt, pod.platform) != (launch.build, launch.attempt, launch.platform):
            raise PodConflict(
                f"a pod {launch.namespace}/{launch.pod} exists that this attempt did not make; look at it, and delete it if it is not needed"
            )
        return pod

    async def pods(self) -> Snapshot:
        found: list[Pod] = []
        versions: dict[str, str] = {}
        for namespace in self._namespaces:
            pods, versions[namespace] = await self._list(namespace)
            found += pods
        return Snapshot(pods=tuple(found), version=",".join(f"{namespace}={version}" for namespace, version in versions.items()))

    async def _list(self, namespace: str) -> tuple[list[Pod], str]:
        pods: list[Pod] = []
        query = {"labelSelector": self._selector, "limit": _PAGE}
        while True:
            answer = await self._api.call("GET", f"/api/v1/namespaces/{namespace}/pods", query=query)
            if not answer.ok or answer.body is None:
                failure = failure_of(answer, f"list pods in {namespace}")
                # A page's version may expire while the list goes on: the list is to be begun again, not a watch.
                raise ClusterUnavailable(str(failure)) if isinstance(failure, WatchExpired) else failure
            pods += filter(None, map(pod_of_ours, answer.body["items"]))
            metadata = answer.body["metadata"]
            if not metadata.get("continue"):
                self._homes |= {pod.name: Home(namespace, pod.node) for pod in pods}
                return pods, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def watch(self, since: str) -> AsyncIterator[Pod]:
        versions = dict(part.split("=", 1) for part in since.split(",") if "=" in part)
        if set(versions) != set(self._namespaces):
            raise WatchExpired("the namespaces have changed since; list again")
        changes: asyncio.Queue[tuple[str, Pod] | Exception] = asyncio.Queue(1024)
        tasks = [asyncio.create_task(self._pump(namespace, version, changes)) for namespace, version in versions.items()]
        tasks.append(asyncio.create_task(self._end_when(self._wider, changes)))
        try:
            while True:
                change = await changes.get()
                if isinstance(change, Exception):
                    raise change
                namespace, pod = change
                self._homes[pod.name] = Home(namespace, pod.node)
                yield pod
                if pod.phase is Phase.GONE:
                    self._homes.pop(pod.name, None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _end_when(wider: asyncio.Event, changes: asyncio.Queue[tuple[str, Pod] | Exception]) -> None:
        await wider.wait()
        await changes.put(WatchExpired("a namespace was added; list again"))

    async def _pump(self, namespace: str, version: str, changes: asyncio.Queue[tuple[str, Pod] | Exception]) -> None:
        def open_watch(version: str, seconds: float) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
            return self._open_watch(namespace, version, seconds)

        try:
            async with aclosing(follow(open_watch, version, self._pace)) as pods:
                async for pod in pods:
                    await changes.put((namespace, pod))
        except Exception as error:
            await changes.put(error)

    @asynccontextmanager
    async def _open_watch(self, namespace: str, version: str, seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "labelSelector": self._selector,
            "resourceVersion": version,
            "timeoutSeconds": ceil(seconds),
        }
        path = f"/api/v1/namespaces/{namespace}/pods"
        async with self._api.stream(path, query, silence=seconds + self._pace.answer, doing=f"watch pods in {namespace}") as response:
            yield response.content.iter_any()

    async def logs(self, pod: PodName, *, since: datetime | None = None) -> AsyncIterator[LogLine]:
        place = Place(since)
        for namespace in self._where(pod):
            path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
            while True:
                query = {"container": CONTAINER, "follow": "true", "timestamps": "true"}
                if place.time:
                    query["sinceTime"] = since_time(place.time)
                place.resume()
                stream = self._api.stream(path, query, silence=self._pace.log_silence, doing=f"read the log of {pod}", pool="logs")
                try:
                    async with AsyncExitStack() as opened:
                        async with self._turns.at(self._node(pod)):
                            response = await opened.enter_async_context(stream)
                        async for raw in lines_of(response.content.iter_any(), LONGEST):
                            if (line := read_line(raw)) and place.is_new(line):
                                yield line
                    return
                except NotFound:
                    break
                except Silent:
                    continue

    async def release(self, pod: PodName, uid: str) -> None:
        # Takes our finalizer off and no other's; a list in a merge patch would replace them all.
        body = {"metadata": {"uid": uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}}
        await self._change("PATCH", pod, body, "release")

    async def delete(self, pod: PodName, uid: str, grace: timedelta) -> None:
        # No grace at all would take the pod out of the API before its container is seen ended.
        options = {"gracePeriodSeconds": max(1, ceil(grace.total_seconds())), "preconditions": {"uid": uid}}
        await self._change("DELETE", pod, options, "delete")

    async def _change(self, method: str, pod: PodName, body: Mapping[str, Any], doing: str) -> None:
        """One request with the uid as its precondition; another uid, or no pod, is what was wanted already."""
        for namespace in self._where(pod):
            answer = await self._api.call(
                method, f"/api/v1/namespaces/{namespace}/pods/{pod}", body=body, kind=PATCH if method == "PATCH" else JSON
            )
            if answer.ok or (answer.definite and answer.status in (409, 422) and "uid" in answer.message.lower()):
                return
            if not (answer.definite and answer.status == 404):
                raise failure_of(answer, f"{doing} the pod {pod}")

    def _where(self, pod: PodName) -> tuple[str, ...]:
        """The namespace that the pod was seen in; before that, all of them."""
        home = self._homes.get(pod)
        return (home.namespace,) if home else self._namespaces

    def _node(self, pod: PodName) -> str | None:
        home = self._homes.get(pod)
        return home.node if home else None

    async def explain(self, pod: PodName, uid: str) -> tuple[str, str] | None:
        """The newest warning about a pod: (the cluster's word, as FailedMount; its sentence). A status does not tell of a missing Secret
        that is to be mounted, only an event does. None where there is none, or where we may not look.
        """
        query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning"}
        for namespace in self._where(pod):
            answer = await self._api.call("GET", f"/api/v1/namespaces/{namespace}/events", query=query)
            if answer.ok and answer.body and (events := answer.body["items"]):
                newest = max(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
                return str(newest.get("reason")), str(newest.get("message"))
        return None

    async def read_secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """A Secret's data, if its owner labelled it for crabpot. ClusterDenied, NotFound, ClusterUnavailable."""
        answer = await self._api.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if answer.definite and answer.status == 404:
            raise NotFound(f"there is no Secret {name} in the namespace {namespace}")
        if not answer.ok or answer.body is None:
            raise failure_of(answer, f"read the Secret {name} in {namespace}")
        if (answer.body["metadata"].get("labels") or {}).get(READABLE) != "true":
            raise ClusterDenied(
                f"the Secret {name} is not labelled for crabpot; if its owner agrees: kubectl -n {namespace} label secret {name} {READABLE}=true"
            )
        return {key: base64.b64decode(value) for key, value in (answer.body.get("data") or {}).items()}

    async def strangers(self, namespace: str) -> list[str]:
        """Pods there that another crabpot made, or this one with another ledger: nobody here takes our finalizer off them."""
        query = {"labelSelector": f"{SELECTOR},{LEDGER}!={self._ledger}", "limit": _PAGE}
        answer = await self._api.call("GET", f"/api/v1/namespaces/{namespace}/pods", query=query)
        if not answer.ok or answer.body is None:
            raise failure_of(answer, f"list pods in {namespace}")
        return [pod["metadata"]["name"] for pod in answer.body["items"]]

    async def check_rights(self, namespace: str, rights: Iterable[tuple[str, str, str]] = (*WORKER_RIGHTS, *WATCH_RIGHTS)) -> list[str]:
        """What this account may not do there and should, as "create pods"."""
        return [told(*right) for right in rights if not await is_allowed(self._api, namespace, *right)]

    async def close(self) -> None:
        await self._api.close()
