"""The pods of a cluster as Kubernetes keeps them: versions, uids, finalizers, deletion in two steps, expired versions. No HTTP here.

What happens to a pod on its node is `node.py`'s. Any thread may call; watchers of any loop are woken.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import uuid4

from tests.faults.kubernetes_api import Json

PROJECT, BUILD, PLATFORM = "crabpot.dev/project", "crabpot.dev/build", "crabpot.dev/platform"
_DELETE_FROM = "$deleteFromPrimitiveList/"


class Refused(Exception):
    """The API says no."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells; the pod is never altered afterwards."""

    version: int
    kind: str
    """ADDED, MODIFIED or DELETED."""
    pod: Json


class PodStore:
    """All pods, every change that ever was, and what the promises are held against: uids by name, the most that lived at once."""

    def __init__(self) -> None:
        self.version = 1000
        self.quota: int | None = None
        """Pods that may live at once; more are refused as a ResourceQuota does."""
        self.created: defaultdict[str, list[str]] = defaultdict(list)
        """Every pod that was ever made: name -> uids."""
        self.most: Counter[str] = Counter()
        """The most pods that had not ended at one moment: '' of all, of each project, and of each `build platform`."""
        self.dropped: Counter[str] = Counter()
        """Pods that went by force, by name."""
        self.listeners: list[Callable[[Change], None]] = []
        """Called after each change, before the request that made it is answered."""
        self.events: list[Json] = []
        self._pods: dict[str, Json] = {}
        self._logs: defaultdict[str, list[tuple[datetime, str]]] = defaultdict(list)
        self._changes: list[Change] = []
        self._oldest = self.version
        self._pages: dict[str, tuple[int, list[Json]]] = {}
        self._page_numbers = count(1)
        self._wakers: set[Callable[[], object]] = set()
        self._lock = threading.RLock()

    # What the API does

    def create(self, namespace: str, body: Json) -> Json:
        with self._lock:
            name = body["metadata"]["name"]
            if self.quota is not None and len(self.alive()) >= self.quota:
                raise Refused(403, "Forbidden", f'pods "{name}" is forbidden: exceeded quota: builds, requested: pods=1')
            if name in self._pods:
                raise Refused(409, "AlreadyExists", f'pods "{name}" already exists')
            pod = deepcopy(body)
            pod["metadata"] |= {"uid": str(uuid4()), "namespace": namespace, "creationTimestamp": time_of(datetime.now(UTC))}
            pod["status"] = {"phase": "Pending"}
            self.created[name].append(pod["metadata"]["uid"])
            return self._put("ADDED", pod)

    def read(self, name: str, namespace: str | None = None) -> Json:
        with self._lock:
            pod = self._pods.get(name)
            if pod is None or namespace not in (None, pod["metadata"]["namespace"]):
                raise Refused(404, "NotFound", f'pods "{name}" not found')
            return pod

    def list(self, namespace: str, selector: str = "", *, limit: int = 0, go_on: str = "") -> tuple[list[Json], str, str]:
        """A page: (pods, version, what to give for the next page). All pages are of the first one's moment."""
        with self._lock:
            if go_on:
                if go_on not in self._pages:
                    raise Refused(410, "Expired", "The provided continue parameter is too old to display a consistent list result")
                version, found = self._pages.pop(go_on)
            else:
                version, found = self.version, [pod for pod in self._pods.values() if matches(pod, namespace, selector)]
            page, rest = (found[:limit], found[limit:]) if limit else (found, [])
            token = str(next(self._page_numbers)) if rest else ""
            if rest:
                self._pages[token] = version, rest
            return page, str(version), token

    def patch(self, namespace: str, name: str, body: Json) -> Json:
        """A strategic merge patch. A uid in it is a precondition, as it cannot be changed."""
        with self._lock:
            pod = deepcopy(self.read(name, namespace))
            self._require_uid(pod, (body.get("metadata") or {}).get("uid"))
            before = deepcopy(pod)
            _merge(pod, body)
            return self._put("MODIFIED", pod) if pod != before else pod

    def delete(self, namespace: str, name: str, options: Json) -> Json:
        """Ask for a pod's end. A container that runs is ended by its node first; a finalizer keeps the pod beyond that."""
        with self._lock:
            pod = deepcopy(self.read(name, namespace))
            self._require_uid(pod, (options.get("preconditions") or {}).get("uid"))
            metadata = pod["metadata"]
            grace = int(options.get("gracePeriodSeconds", pod["spec"].get("terminationGracePeriodSeconds", 30)))
            if has_ended(pod) or not pod["spec"].get("nodeName"):
                grace = 0
            if grace >= metadata.get("deletionGracePeriodSeconds", grace + 1):
                return pod
            metadata["deletionTimestamp"] = time_of(datetime.now(UTC) + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace
            return self._put("MODIFIED", pod)

    def since(self, version: int) -> list[Change]:
        """What a watch from a version begins with. 410 where that is too long ago."""
        with self._lock:
            if version < self._oldest:
                raise Refused(410, "Expired", f"too old resource version: {version} ({self._oldest})")
            return [change for change in self._changes if change.version > version]

    async def changes(self, version: int) -> AsyncIterator[Change]:
        """Every change after a version, without end."""
        with self._lock:
            told = len(self._changes) - len(self.since(version))
        async for _ in self.moments():
            while told < len(self._changes):
                told += 1
                yield self._changes[told - 1]

    async def moments(self) -> AsyncIterator[None]:
        """Now, and each time after something has changed."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        self._wakers.add(wake)
        try:
            while True:
                woken.clear()
                yield
                await woken.wait()
        finally:
            self._wakers.discard(wake)

    def compact(self) -> None:
        """Forget what was before now: whoever wants to watch or page on from there lists again."""
        with self._lock:
            self.version += 1
            self._oldest = self.version
            self._pages.clear()

    # What nodes do

    def alter(self, name: str, change: Callable[[Json], None]) -> Json:
        """Change a pod past the API's rules."""
        with self._lock:
            pod = deepcopy(self.read(name))
            change(pod)
            return self._put("MODIFIED", pod)

    def drop(self, name: str) -> None:
        """Gone by force, finalizers and all."""
        with self._lock:
            pod = deepcopy(self.read(name))
            pod["metadata"]["finalizers"] = []
            self.dropped[name] += 1
            self._remove(pod)

    def write_log(self, name: str, *texts: str) -> None:
        with self._lock:
            lines = self._logs[self.read(name)["metadata"]["uid"]]
            for text in texts:
                now = datetime.now(UTC)
                lines.append((max(now, lines[-1][0] + timedelta(microseconds=1)) if lines else now, text))
        self._wake()

    def log(self, uid: str) -> list[tuple[datetime, str]]:
        return self._logs[uid]

    # What tests ask

    @property
    def pods(self) -> list[Json]:
        """All that are there, ended ones too."""
        return list(self._pods.values())

    def alive(self) -> list[Json]:
        """Those whose container has not ended."""
        return [pod for pod in self._pods.values() if not has_ended(pod)]

    def _put(self, kind: str, pod: Json) -> Json:
        name = pod["metadata"]["name"]
        self._pods[name] = pod
        living = Counter({"": 0})
        for one in self.alive():
            labels, annotations = one["metadata"].get("labels") or {}, one["metadata"].get("annotations") or {}
            living.update(("", labels.get(PROJECT, "?"), f"{labels.get(BUILD)} {annotations.get(PLATFORM)}"))
        self.most |= living
        self._tell(kind, pod)
        if (now := self._pods.get(name)) and _is_to_go(now):  # a listener may have changed it once more
            self._remove(deepcopy(now))
        return pod

    def _remove(self, pod: Json) -> None:
        del self._pods[pod["metadata"]["name"]]
        self._tell("DELETED", pod)

    def _tell(self, kind: str, pod: Json) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, kind, pod)
        self._changes.append(change)
        self._wake()
        for listener in self.listeners:
            listener(change)

    def _wake(self) -> None:
        for wake in tuple(self._wakers):
            wake()

    @staticmethod
    def _require_uid(pod: Json, uid: str | None) -> None:
        found = pod["metadata"]["uid"]
        if uid not in (None, found):
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {uid}, UID in object meta: {found}")


def has_ended(pod: Json) -> bool:
    """Whether the container has terminated, or never will start."""
    status = pod.get("status") or {}
    states = [container["state"] for container in status.get("containerStatuses") or ()]
    return status.get("phase") in ("Succeeded", "Failed") or any("terminated" in state for state in states)


def _is_to_go(pod: Json) -> bool:
    metadata = pod["metadata"]
    return "deletionTimestamp" in metadata and not metadata.get("deletionGracePeriodSeconds") and not metadata.get("finalizers")


def matches(pod: Json, namespace: str, selector: str) -> bool:
    labels = pod["metadata"].get("labels") or {}
    wanted: Iterable[list[str]] = (term.split("=", 1) for term in selector.split(",") if term)
    return pod["metadata"]["namespace"] == namespace and all(labels.get(name) == value for name, value in wanted)


def time_of(moment: datetime) -> str:
    """To the second, as Kubernetes writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _merge(into: Json, patch: Json) -> None:
    for key, value in patch.items():
        if key.startswith(_DELETE_FROM):
            name = key.removeprefix(_DELETE_FROM)
            into[name] = [item for item in into.get(name) or () if item not in value]
        elif value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = deepcopy(value)
