"""A registry in Kubernetes, for its collection: a Deployment or StatefulSet with a claim, swept by a Job on that claim or by exec.

The account needs what `rights.rights_of` says, in the registry's namespace alone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ledger.collected import CollectedInKubernetes
from ledger.errors import ClusterDenied, ClusterError, ClusterUnavailable, NotFound
from worker.cluster.answers import Answer, failure_of
from worker.cluster.connection import PATCH, Api
from worker.cluster.watching import lines_of
from worker.collect.judging import read_dry_run
from worker.collect.launched import Launched, ends_of
from worker.collect.site import Door, Ours, Standing, Swept
from worker.collect.steps import Finding, Lost, No, Wait, Well
from worker.collect.workload import CLOSED, SWEEPS, Json, Workload, has_ended, is_ready, mounts

_PAGE = 250
_EXECUTED = 240.0
"""Seconds that a sweep by exec may take: it ends with its step. One that takes longer is a Job's."""
_FOLLOWED = 3600.0
"""Seconds that a dry run's log is followed in one step; builds are held for longer."""
_SILENT = 900.0
"""Seconds that a dry run may say nothing: it lists all blobs before it says how many go."""
_LINE = 4096
_TOLD_LATE = 30
"""Looks, a second apart, for the end of a container whose log has ended."""


class KubernetesSite:
    """See `worker.collect.site.Site`."""

    def __init__(self, settings: CollectedInKubernetes, api: Api) -> None:
        self._settings, self._api = settings, api
        kind, _, name = settings.workload.partition("/")
        self._path = f"/apis/apps/v1/namespaces/{settings.namespace}/{kind}s/{name}"
        self._jobs = f"/apis/batch/v1/namespaces/{settings.namespace}/jobs"
        self._sweeps = f"{SWEEPS}={settings.workload.replace('/', '.')}"

    async def look(self) -> Finding:
        try:
            workload = await self._workload()
            claim = await self._get(
                f"/api/v1/namespaces/{self._settings.namespace}/persistentvolumeclaims/{self._settings.claim}", "read the claim"
            )
        except (NotFound, ClusterDenied) as error:
            return No(str(error))
        found = workload.look(claim)
        if isinstance(found, Well) and (other := self._stranger(workload, await self._pods())):
            return No(f"the pod {other} mounts the claim {self._settings.claim} too, and cannot be made read-only; end it first")
        return found

    async def standing(self) -> Standing:
        workload, pods = await self._workload(), await self._pods()
        ours = [pod for pod in pods if self._is_ours(workload, pod) and not has_ended(pod)]
        return Standing(
            tuple(Door(pod["metadata"]["uid"], self._address(pod)) for pod in ours),
            workload.unsettled or self._unsettled(workload, ours) or self._beside(workload, pods),
            workload.mark,
            workload.closed,
        )

    def _unsettled(self, workload: Workload, pods: Sequence[Json]) -> str | None:
        for pod in pods:
            name, metadata = pod["metadata"]["name"], pod["metadata"]
            if metadata.get("deletionTimestamp"):
                return f"its old pod {name} has not ended yet"
            if (metadata.get("labels") or {}).get(CLOSED) != workload.closed_by:
                return f"its pod {name} is not replaced yet"
            if not is_ready(pod) or not pod["status"].get("podIP"):
                return f"its pod {name} is not ready"
        return None

    def _beside(self, workload: Workload, pods: Sequence[Json]) -> str | None:
        other = self._stranger(workload, pods)
        return f"the pod {other} mounts its claim too" if other else None

    async def close(self, run: str, ours: Ours) -> None:
        workload = await self._workload()
        await ours()
        await self._patch(workload, workload.closing(run))

    async def dry_run(self, run: str) -> Swept | Finding:
        if self._settings.how == "job":
            again = f"crabpot-dry-{run}-again"
            if (await self._api.call("GET", f"{self._jobs}/{again}")).ok:
                return await self._dry_by_job(again, run)
            done = await self._dry_by_job(f"crabpot-dry-{run}", run)
            if isinstance(done, Swept) and isinstance(read_dry_run(done.output), str):
                # Nobody followed it from its start, as after a worker's death: it is done once more.
                started = await self._launched(again, run, beside=True, resumed=False)
                return Wait("its log was not read to the end; it is done once more") if isinstance(started, Launched) else started
            return done
        done = await self._by_exec({}, "--dry-run")
        return Wait(done.why) if isinstance(done, Lost) else done

    async def sweep(self, run: str, number: int, *, resumed: bool) -> Swept | Finding:
        if self._settings.how == "job":
            return await self._by_job(f"crabpot-sweep-{run}-{number}", run, beside=False, resumed=resumed)
        if resumed:
            return Lost("the worker that swept was cut off")
        # Only in a pod of this run's: one that somebody has opened meanwhile has another name, and not this label.
        return await self._by_exec({CLOSED: run})

    async def restart(self, ours: Ours) -> None:
        workload = await self._workload()
        await ours()
        await self._patch(workload, workload.restarting(secrets.token_hex(6)))

    async def settled(self, old: tuple[str, ...]) -> Finding:
        if alive := await self._end_jobs():
            return Wait(f"the sweep {alive} has not ended yet")
        standing = await self.standing()
        if any(door.process in old for door in standing.doors):
            return Wait("its old pods have not ended yet")
        if standing.unsettled or not standing.doors:
            return Wait(standing.unsettled or "none of its pods runs")
        return Well()

    async def open(self, ours: Ours) -> None:
        if alive := await self._end_jobs():
            raise ClusterUnavailable(f"the sweep {alive} has not ended yet")
        workload = await self._workload()
        await ours()
        await self._patch(workload, workload.opening())

    async def _by_exec(self, labels: Json, *flags: str) -> Swept | Finding:
        workload = await self._workload()
        ready = [pod for pod in await self._pods() if self._is_ours(workload, pod) and is_ready(pod)]
        pod = next((pod for pod in ready if labels.items() <= (pod["metadata"].get("labels") or {}).items()), None)
        if pod is None or workload.container is None:
            return Lost("no pod of the registry is ready")
        try:
            async with asyncio.timeout(_EXECUTED):
                done = await self._api.execute(
                    self._settings.namespace, pod["metadata"]["name"], workload.container["name"], self._command(*flags)
                )
        except TimeoutError:
            return Lost(f"it took longer than {_EXECUTED:.0f} s, which is too long for `how: exec`")
        except ClusterDenied as error:
            return No(str(error))
        except (ClusterError, NotFound) as error:
            return Lost(str(error))
        if done.code:
            return No(f"{self._settings.program} garbage-collect exited with {done.code}: {(done.errors or done.output).strip()[-300:]}")
        return Swept(done.output)

    async def _by_job(self, name: str, run: str, *, beside: bool, resumed: bool) -> Swept | Finding:
        launched = await self._launched(name, run, beside=beside, resumed=resumed)
        return await self._end_of(launched) if isinstance(launched, Launched) else launched

    async def _dry_by_job(self, name: str, run: str) -> Swept | Finding:
        """Its log is followed from its start: to those who come after the end, a kubelet gives the newest part of a long one alone."""
        launched = await self._launched(name, run, beside=True, resumed=False)
        said = ""
        if isinstance(launched, Launched) and launched.pod is not None and not launched.failed:
            said = await self._follow(launched, launched.pod)
            launched = await self._launched_by_now(name, run)
        if isinstance(launched, Lost):  # nothing was swept: it is begun anew
            return Wait(launched.why)
        return await self._end_of(launched, said) if isinstance(launched, Launched) else launched

    async def _end_of(self, launched: Launched, said: str = "") -> Swept | Finding:
        if launched.failed:
            return await self._failed(launched)
        return Swept(said) if launched.done else launched.waits(datetime.now(UTC))

    async def _launched(self, name: str, run: str, *, beside: bool, resumed: bool) -> Launched | Finding:
        """A Job, made where there is none yet."""
        answer = await self._api.call("GET", f"{self._jobs}/{name}")
        if answer.definite and answer.status == 404:
            if resumed:
                return Lost(f"somebody has deleted the Job {name}")
            flags, workload = ("--dry-run",) if beside else (), await self._workload()
            closed = None if beside else [pod for pod in await self._pods() if self._is_closed_by(workload, pod, run)]
            if closed == []:
                return No("no pod of the registry is closed by this run")
            body = workload.job(name, run, self._command(*flags), closed)
            answer = await self._api.call("POST", self._jobs, body=body)
            if answer.definite and answer.status in (403, 422):
                return No(f"the Job {name} was refused: {answer.message}")
            if not answer.ok and answer.reason != "AlreadyExists":
                raise failure_of(answer, f"create the Job {name}")
            return Wait(f"the Job {name} starts")
        return Launched(_body(answer, f"read the Job {name}"), await self._pods(f"batch.kubernetes.io/job-name={name}"))

    async def _launched_by_now(self, name: str, run: str) -> Launched | Finding:
        """The same after its log has ended: that it has ended is told a moment later."""
        for _ in range(_TOLD_LATE):
            launched = await self._launched(name, run, beside=True, resumed=True)
            if not isinstance(launched, Launched) or launched.done or launched.failed:
                break
            await asyncio.sleep(1)
        return launched

    async def _failed(self, launched: Launched) -> No:
        said = ""
        if launched.pod is not None:
            path = f"/api/v1/namespaces/{self._settings.namespace}/pods/{launched.pod}/log"
            with suppress(NotFound):
                query = {"container": launched.container, "tailLines": 20, "limitBytes": 65536}
                async with self._api.stream(path, query, silence=60.0, doing="read a sweep's log", pool="logs") as answer:
                    said = (await answer.read()).decode(errors="replace")
        return No(f"the Job {launched.name} failed: {said.strip()[-300:] or 'it has no log'}")

    async def _follow(self, launched: Launched, pod: str) -> str:
        """What of a dry run's log tells of deletions, and its last words; a large registry's has gigabytes of other lines.

        Whatever was rotated away before a reader came is missed by the counts, which the registry prints before all that it names.
        """
        path = f"/api/v1/namespaces/{self._settings.namespace}/pods/{pod}/log"
        query = {"container": launched.container, "follow": "true"}
        told, last = list[str](), deque[str](maxlen=2)
        with suppress(NotFound):
            async with (
                asyncio.timeout(_FOLLOWED),
                self._api.stream(path, query, silence=_SILENT, doing="follow a dry run's log", pool="logs") as answer,
            ):
                async for line in lines_of(answer.content.iter_any(), _LINE):
                    (told if b"eligible for deletion" in line else last).append(line.decode(errors="replace"))
        return "\n".join([*last, *told])

    async def _end_jobs(self) -> str | None:
        """End every sweep of this registry, whoever began it; one that has not ended yet."""
        listed = await self._get(self._jobs, "list sweeps", {"labelSelector": self._sweeps})
        for job in listed["items"]:
            answer = await self._api.call("DELETE", f"{self._jobs}/{job['metadata']['name']}", body={"propagationPolicy": "Foreground"})
            if not answer.ok and not (answer.definite and answer.status == 404):
                raise failure_of(answer, "end a sweep")
        alive = [pod["metadata"]["name"] for pod in await self._pods(self._sweeps) if not has_ended(pod)]
        # One that has ended makes no pod any more.
        return next(iter(alive), None) or next((job["metadata"]["name"] for job in listed["items"] if not ends_of(job)), None)

    async def _workload(self) -> Workload:
        return Workload(self._settings, await self._get(self._path, f"read {self._settings.workload}"))

    async def _pods(self, selector: str = "") -> list[Json]:
        found: list[Json] = []
        query: dict[str, Any] = {"limit": _PAGE, **({"labelSelector": selector} if selector else {})}
        while True:
            listed = await self._get(f"/api/v1/namespaces/{self._settings.namespace}/pods", "list the registry's pods", query)
            found += listed["items"]
            if not (following := listed["metadata"].get("continue")):
                return found
            query["continue"] = following

    async def _get(self, path: str, doing: str, query: Json | None = None) -> Json:
        return _body(await self._api.call("GET", path, query=query), f"{doing} in {self._settings.namespace}")

    async def _patch(self, seen: Workload, change: Json) -> None:
        """Change the workload as it was seen: the API server refuses it where somebody has changed it since."""
        body = {**change, "metadata": {**change.get("metadata", {}), "resourceVersion": seen.body["metadata"]["resourceVersion"]}}
        _body(await self._api.call("PATCH", self._path, body=body, kind=PATCH), f"change {self._settings.workload}")

    def _is_ours(self, workload: Workload, pod: Json) -> bool:
        labels = pod["metadata"].get("labels") or {}
        return all(labels.get(key) == value for key, value in workload.body["spec"]["selector"]["matchLabels"].items())

    def _is_closed_by(self, workload: Workload, pod: Json, run: str) -> bool:
        return self._is_ours(workload, pod) and (pod["metadata"].get("labels") or {}).get(CLOSED) == run and not has_ended(pod)

    def _stranger(self, workload: Workload, pods: Sequence[Json]) -> str | None:
        """A pod that mounts the claim and is neither the registry's nor a sweep."""
        for pod in pods:
            swept = SWEEPS in (pod["metadata"].get("labels") or {})
            if mounts(pod, self._settings.claim) and not has_ended(pod) and not swept and not self._is_ours(workload, pod):
                return str(pod["metadata"]["name"])
        return None

    def _address(self, pod: Json) -> str:
        address = (pod.get("status") or {}).get("podIP") or ""
        return f"[{address}]:{self._settings.port}" if ":" in address else f"{address}:{self._settings.port}"

    def _command(self, *flags: str) -> tuple[str, ...]:
        return (self._settings.program, "garbage-collect", *flags, self._settings.config)


def _body(answer: Answer, doing: str) -> Json:
    if answer.definite and answer.status == 404:
        raise NotFound(f"could not {doing}: {answer.message}")
    if not answer.ok or answer.body is None:
        raise failure_of(answer, doing)
    return answer.body
