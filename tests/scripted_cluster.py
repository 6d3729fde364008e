"""A cluster whose pods do what a test says, by the same protocol as the real ones; and a site of worker and leader steps on it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger.build import Build, State
from ledger.errors import PodConflict
from ledger.leases import Fence
from ledger.settings import Settings
from ledger.store import Ledger
from worker.admission import dispatch
from worker.cluster import Launch, LogLine, Phase, Pod, PodName, Snapshot, Wanted, always
from worker.finish import finish
from worker.liveness import Liveness
from worker.logs import Captures
from worker.observer import Observer
from worker.place import Place
from worker.reconcile import Reconciler
from worker.registries import Registries

DIGEST = "sha256:" + "d" * 64


class ScriptedCluster:
    """Pods in memory. `troubles` are raised by the next launches, before the pod exists or, with `commit`, after."""

    def __init__(self) -> None:
        self.live: dict[PodName, Pod] = {}
        self.launches: dict[PodName, Launch] = {}
        self.lines: dict[PodName, list[str]] = {}
        self.explanations: dict[PodName, tuple[str, str]] = {}
        self.troubles: list[tuple[Exception, bool]] = []
        self.created: Counter[PodName] = Counter()
        self.deleted: list[PodName] = []
        self.most = 0
        self._changes: list[Pod] = []
        self._watched = 0
        self._changed = asyncio.Condition()
        self._number = 0

    async def launch(self, launch: Launch, wanted: Wanted = always) -> Pod:
        trouble, commit = self.troubles.pop(0) if self.troubles else (None, True)
        if commit and launch.pod not in self.live:
            self._number += 1
            self.created[launch.pod] += 1
            self.launches[launch.pod] = launch
            await self._put(
                Pod(
                    name=launch.pod,
                    uid=f"uid-{self._number}",
                    build=launch.build,
                    attempt=launch.attempt,
                    platform=launch.platform,
                    phase=Phase.PENDING,
                    created=datetime.now(UTC),
                )
            )
            self.most = max(self.most, sum(pod.phase is not Phase.ENDED for pod in self.live.values()))
        if trouble:
            raise trouble
        pod = self.live[launch.pod]
        if (pod.build, pod.attempt, pod.platform) != (launch.build, launch.attempt, launch.platform):
            raise PodConflict
        return pod

    def cover(self, namespaces: Iterable[str]) -> None:
        """All pods are in one place."""

    @property
    def unseen(self) -> bool:
        """Whether the watch has not taken in every change yet."""
        return self._watched < len(self._changes)

    async def pods(self) -> Snapshot:
        return Snapshot(pods=tuple(self.live.values()), version=str(len(self._changes)))

    async def watch(self, since: str) -> AsyncIterator[Pod]:
        at = self._watched = int(since)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._changes) > at)
            for pod in self._changes[at:]:
                at += 1
                yield pod
                self._watched = at

    async def logs(self, pod: PodName, *, since: datetime | None = None) -> AsyncIterator[LogLine]:
        async with self._changed:
            await self._changed.wait_for(lambda: pod not in self.live or self.live[pod].phase is Phase.ENDED)
        for number, text in enumerate(self.lines.get(pod, [])):
            time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
            if since is None or time >= since:
                yield LogLine(time=time, text=text)

    async def release(self, pod: PodName, uid: str) -> None:
        await self._alter(pod, uid, held=False)

    async def delete(self, pod: PodName, uid: str, grace: timedelta) -> None:
        self.deleted.append(pod)
        await self._alter(pod, uid, deleting=True)

    async def explain(self, pod: PodName, uid: str) -> tuple[str, str] | None:
        return self.explanations.get(pod)

    async def close(self) -> None:
        pass

    async def _alter(self, name: PodName, uid: str, **changes: Any) -> None:
        pod = self.live.get(name)
        if pod is None or pod.uid != uid:
            return
        pod = replace(pod, **changes)
        if pod.deleting and pod.phase is Phase.RUNNING:
            pod = replace(pod, phase=Phase.ENDED, exit_code=137, reason="Error", ended=datetime.now(UTC))
        await self._put(pod)
        if pod.deleting and not pod.held:
            del self.live[name]
            await self._tell(replace(pod, phase=Phase.GONE))

    async def _put(self, pod: Pod) -> None:
        self.live[pod.name] = pod
        await self._tell(pod)

    async def _tell(self, pod: Pod) -> None:
        async with self._changed:
            self._changes.append(pod)
            self._changed.notify_all()

    # What a test makes happen; to a pod that has been deleted meanwhile, nothing does

    async def run(self, name: PodName) -> None:
        if name not in self.live:
            return
        await self._put(replace(self.live[name], phase=Phase.RUNNING, node="n1", started=datetime.now(UTC)))

    async def end(self, name: PodName, exit_code: int = 0, message: str | None = DIGEST, **changes: Any) -> None:
        if name in self.live and self.live[name].started is None:
            await self.run(name)
        if name not in self.live:
            return
        await self._put(
            replace(self.live[name], phase=Phase.ENDED, exit_code=exit_code, message=message, ended=datetime.now(UTC), **changes)
        )

    async def vanish(self, name: PodName) -> None:
        """Gone by force, finalizer and all."""
        if name in self.live:
            await self._tell(replace(self.live.pop(name), phase=Phase.GONE))


class Recorded:
    """Nudges, kept instead of sent: a test delivers them, drops them or delivers them twice."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str | None]] = []

    def dispatch(self) -> None:
        if ("dispatch", None) not in self.sent:
            self.sent.append(("dispatch", None))

    def restart(self, build: str) -> None:
        self.sent.append(("dispatch", build))

    def finish(self, build: str) -> None:
        self.sent.append(("finish", build))

    def chore(self, name: str) -> None:
        self.sent.append(("chore", name))


class Site:
    """A worker and a leader on one loop: real ledger, real registry, scripted cluster."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.cluster, self.nudges = ScriptedCluster(), Recorded()
        self.place = Place(settings, ledger, self.cluster, Registries(self.cluster, settings))
        self.ledger = ledger
        self.observer: Observer | None = None
        self.reconciler: Reconciler | None = None
        self._leading: asyncio.Task[None] | None = None

    async def lead(self, owner: str = "test") -> None:
        """Begin to lead, as a new leader does."""
        value = await self.ledger.leases.take("watch", owner, timedelta(minutes=5))
        assert value
        fence = Fence("watch", value)
        ready = asyncio.Event()

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                captures = Captures(self.place, fence, group)
                self.observer = Observer(self.place, fence, self.nudges, captures, group, Liveness(None))
                self.reconciler = Reconciler(self.place, fence, self.nudges, self.observer)
                group.create_task(self.observer.run())
                group.create_task(captures.flush_for_ever())
                ready.set()

        self._leading = asyncio.create_task(work())
        await ready.wait()
        await self.observer.synced.wait()

    async def die(self) -> None:
        """The leader is killed: nothing of it goes on."""
        if self._leading:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)
            self._leading = None
            await self.ledger.connection.command("DEL", self.ledger.connection.keys.lease("watch"))

    async def deliver(self, times: int = 1) -> None:
        """Run the steps that were nudged, and those that they nudge."""
        while self.nudges.sent:
            sent, self.nudges.sent = self.nudges.sent, []
            for step, build in sent:
                for _ in range(times):
                    await (dispatch(self.place, build) if step == "dispatch" else finish(self.place, build or ""))

    async def look_at_due(self) -> None:
        """As if every due time had come."""
        assert self.reconciler
        for state in (State.QUEUED, State.STARTING, State.RUNNING, State.PUBLISHING):
            for build in (await self.ledger.page(state=state, limit=500)).builds:
                await self.reconciler.look_at(build.id)

    async def reaches(self, build: str, *states: State) -> Build:
        """Wait until a build is in one of the states; the record then."""
        async with asyncio.timeout(10), self.ledger.changes(build) as changes:
            async for record in changes:
                if record.state in states:
                    return record
        raise AssertionError(f"{build} ended otherwise")

    async def close(self) -> None:
        await self.die()
        await self.place.registries.close()
