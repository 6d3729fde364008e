"""Launches as processes of this machine: the embedded default, with the same semantics as pods.

Each launch is a folder (`folder.py`) and a detached runner (`runner.py`); all that use the same state directory see the same launches.
They must run on one machine, as one user, and share its process ids (one container, if any).

What a machine cannot do as a cluster does is refused by name. Not enforced: limits of CPU, memory and disk, and that a folder is
read-only. The launch's image and namespace mean nothing here: the program that is executed is the one that was configured.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from ledger.errors import ClusterUnavailable, LaunchRefused, PodConflict, WatchExpired
from worker.cluster import Launch, LogLine, Phase, Pod, PodName, Snapshot, Wanted, always
from worker.cluster.changes import Changes
from worker.cluster.folder import LOG, MESSAGE, LaunchFolder, Spec, create
from worker.cluster.log_lines import read_line

_SNAPSHOTS = 64
"""How many versions can be watched from."""
_START_AGAIN = timedelta(seconds=10)
"""After this long a launch without a runner has lost the process that was about to start it."""
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
"""Variables of this process that an executor gets; the others (ours may hold secrets) are none of its business."""
_PACKAGES = str(Path(__file__).parents[2])


class LocalCluster:
    """Processes of this machine; see `worker.cluster.Cluster`."""

    def __init__(self, state: Path, executor: Sequence[str]) -> None:
        """`state`: a folder of this machine's own (no network file system). `executor`: the program that takes Kaniko's flags."""
        self._state = state.resolve()
        self._pods, self._staging = self._state / "pods", self._state / "staging"
        for folder in (self._pods, self._staging):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        program, *arguments = executor
        self._executor = (sys.executable if program == "python" else program, *arguments)
        self._changes = Changes(self._pods)
        self._id, self._snapshots = uuid4(), dict[str, dict[str, Pod]]()

    async def launch(self, launch: Launch, wanted: Wanted = always) -> Pod:  # noqa: ARG002 - nothing is lost between this and the folder
        _refuse(launch)
        path = self._pods / launch.pod
        with _translated(f"launch {launch.pod}"):
            created = create(path, self._staging, _spec(launch, self._executor))
            pod = self._read(launch.pod)
            if pod is None:
                raise ClusterUnavailable(f"the launch {launch.pod} was removed while it was looked at")
            if (pod.build, pod.attempt, pod.platform) != (launch.build, launch.attempt, launch.platform):
                raise PodConflict(f"a launch {launch.pod} exists that this attempt did not make; look at {path}")
            if created or pod.phase is Phase.PENDING:
                await self._start(launch.pod)
            return self._read(launch.pod) or replace(pod, phase=Phase.GONE)

    async def _start(self, name: str) -> None:
        """Start a runner; of several the first that claims the launch runs it. Returns when it is claimed."""
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worker.cluster.runner",
            str(self._pods / name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, "PYTHONPATH": _PACKAGES},
            cwd="/",
        )
        _, errors = await process.communicate()
        pod = self._read(name)
        if pod and pod.phase is Phase.PENDING:
            raise ClusterUnavailable(f"the runner of {name} did not start: {errors.decode(errors='replace').strip()[-500:]}")

    async def pods(self) -> Snapshot:
        with _translated("list launches"):
            found = self._read_all()
            for name, pod in found.items():
                if pod.phase is Phase.PENDING and not pod.deleting and datetime.now(UTC) - (pod.created or _EPOCH) > _START_AGAIN:
                    with suppress(ClusterUnavailable):
                        await self._start(name)
        version = f"{self._id}/{uuid4()}"
        self._snapshots[version] = found
        while len(self._snapshots) > _SNAPSHOTS:
            del self._snapshots[next(iter(self._snapshots))]
        return Snapshot(pods=tuple(found.values()), version=version)

    async def watch(self, since: str) -> AsyncIterator[Pod]:
        if since not in self._snapshots:
            raise WatchExpired("this version is of another process, or too old; list again")
        known = dict(self._snapshots[since])
        with _translated("watch launches"), self._changes.subscribe(_is_status) as changes:
            changed = known.keys() | self._names()
            while True:
                for name in sorted(changed):
                    before, now = known.pop(name, None), self._read(name)
                    if before and (now is None or now.uid != before.uid):
                        yield replace(before, phase=Phase.GONE)
                    if now:
                        known[name] = now
                        if now != before:
                            yield now
                changed = await changes.next()

    async def logs(self, pod: PodName, *, since: datetime | None = None) -> AsyncIterator[LogLine]:
        with _translated(f"read the log of {pod}"), self._changes.subscribe(lambda name, _: name == pod) as changes:
            followed = self._read(pod)
            try:
                file = (self._pods / pod / LOG).open("rb")
            except FileNotFoundError:
                return
            rest = b""
            with file:
                while True:
                    now = self._read(pod)  # before the file is read: what comes after the end was there before it
                    while chunk := file.read(1 << 16):
                        *lines, rest = (rest + chunk).split(b"\n")
                        for raw in lines:
                            if (line := read_line(raw)) and (since is None or line.time >= since):
                                yield line
                        await asyncio.sleep(0)
                    if now is None or followed is None or now.uid != followed.uid or now.phase is Phase.ENDED:
                        return
                    await changes.next()

    async def release(self, pod: PodName, uid: str) -> None:
        with _translated(f"release {pod}"), self._life(pod, uid) as folder:
            if folder:
                folder.release()
                folder.remove_if_done(self._staging)

    async def explain(self, pod: PodName, uid: str) -> tuple[str, str] | None:  # noqa: ARG002 - a folder tells all that there is
        return None

    async def delete(self, pod: PodName, uid: str, grace: timedelta) -> None:
        with _translated(f"delete {pod}"), self._life(pod, uid) as folder:
            if folder:
                folder.ask_end(grace)
                if not folder.never_start():
                    _tell(folder)
                folder.remove_if_done(self._staging)

    def cover(self, namespaces: Iterable[str]) -> None:
        """There is one folder for all."""

    async def close(self) -> None:
        await self._changes.close()

    def _names(self) -> set[str]:
        return {entry.name for entry in self._pods.iterdir()}

    def _read_all(self) -> dict[str, Pod]:
        return {name: pod for name in sorted(self._names()) if (pod := self._read(name))}

    def _read(self, name: str) -> Pod | None:
        """The launch now; None if there is none. Its end will be told to who listens, even if its runner is killed."""
        try:
            with LaunchFolder.open(self._pods / name) as folder:
                pod = folder.pod()
                if pod.phase is Phase.RUNNING:
                    self._changes.await_runner(folder)
                return None if folder.remove_if_done(self._staging) else pod
        except FileNotFoundError:
            return None

    @contextmanager
    def _life(self, name: PodName, uid: str) -> Iterator[LaunchFolder | None]:
        """The launch's folder if it is still that life of the name."""
        try:
            folder = LaunchFolder.open(self._pods / name)
        except FileNotFoundError:
            yield None
            return
        with folder, suppress(FileNotFoundError):  # removed meanwhile
            yield folder if folder.spec.uid == uid else None


_EPOCH = datetime.fromtimestamp(0, UTC)


def _tell(folder: LaunchFolder) -> None:
    """Make a living runner look at what is asked of it."""
    process = folder.runner_process()
    if process is None:
        if folder.runner_lives():
            raise ClusterUnavailable(f"the runner of {folder.spec.name} belongs to another container and cannot be told to end")
        return
    with suppress(ProcessLookupError):  # it has just ended by itself
        signal.pidfd_send_signal(process, signal.SIGTERM)
    os.close(process)


def _is_status(_: str, file: str) -> bool:
    return file not in (LOG, MESSAGE) and not file.startswith(".")


def _spec(launch: Launch, executor: tuple[str, ...]) -> Spec:
    for folder in launch.folders:
        if folder.writable and folder.host_path:
            Path(folder.host_path).mkdir(parents=True, exist_ok=True)
    return Spec(
        uid=str(uuid4()),
        name=launch.pod,
        build=launch.build,
        attempt=launch.attempt,
        platform=launch.platform,
        project=launch.project,
        created=datetime.now(UTC).isoformat(),
        executor=executor,
        arguments=launch.arguments,
        environment=launch.environment,
        folders={folder.path: folder.host_path for folder in launch.folders if folder.host_path},
        run_deadline=launch.run_deadline.total_seconds() if launch.run_deadline else None,
        labels=launch.labels,
        annotations=launch.annotations,
    )


def _refuse(launch: Launch) -> None:
    """LaunchRefused naming everything that only a cluster can give."""
    problems = [
        *(f"the claim {folder.claim}" for folder in launch.folders if folder.claim),
        *(f"the ConfigMap {folder.config_map}" for folder in launch.folders if folder.config_map),
        *(f"the Secret {mount.secret}" for mount in launch.secret_mounts),
        *(f"the Secret {variable.secret}" for variable in launch.secret_variables if not variable.optional),
        *(f"{word}" for word, given in _only_clusters(launch).items() if given),
        *(
            f"the folder {folder.host_path}, which does not exist"
            for folder in launch.folders
            if folder.host_path and not folder.writable and not Path(folder.host_path).is_dir()
        ),
    ]
    if problems:
        raise LaunchRefused(
            f"builds that run on this machine cannot have: {', '.join(dict.fromkeys(problems))}; "
            "leave it out of the request, or set CRABPOT_CLUSTER=kubernetes"
        )


def _only_clusters(launch: Launch) -> dict[str, object]:
    return {
        "a node selector": launch.node_selector,
        "a node name": launch.node_name,
        "tolerations": launch.tolerations,
        "affinity": launch.affinity,
        "a runtime class": launch.runtime_class,
        "a priority class": launch.priority_class,
        "a service account": launch.service_account,
        "image pull secrets": launch.image_pull_secrets,
    }


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClusterUnavailable(f"could not {doing} on this machine: {error}") from error
