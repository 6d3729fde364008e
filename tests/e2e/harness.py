"""crabpot as it is installed: the chart's accounts on the cluster, and each process on this machine with a token of its own account."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from ledger.build import Build, State
from ledger.limits import Scope
from ledger.request import BuildRequest
from ledger.settings import Settings
from ledger.store import Ledger
from producer.cancel import cancel_build
from producer.submit import submit_build_async, wait_for_build_async
from tests.conftest import free_port
from tests.e2e.harness_cluster import ROOT, Cluster, until
from tests.e2e.harness_images import Image

T = TypeVar("T")
CHART = ROOT / "deploy/helm/crabpot"
BIN = Path(sys.executable).parent
GRACE = 30
"""Seconds: the chart's terminationGracePeriodSeconds."""
COMMANDS = {
    "worker": [str(BIN / "celery"), "--app", "worker.app", "worker", "--loglevel", "info", "--without-mingle", "--without-gossip"],
    "watch": [str(BIN / "crabpot"), "watch"],
    "serve": [str(BIN / "crabpot"), "serve"],
    "beat": [
        str(BIN / "celery"),
        "--app",
        "worker.app",
        "beat",
        "--loglevel",
        "warning",
        "--scheduler",
        "celery.beat:Scheduler",
        "--pidfile=",
    ],
}
POLICY = {
    "destinations": ["**"], "sources": ["**"], "host_paths": ["/"], "claims": ["**"], "config_maps": ["**"], "secrets": ["**"],
    "service_accounts": ["**"], "node_names": ["**"], "node_labels": ["**"], "tolerations": ["**"], "affinity": True,
    "runtime_classes": ["**"], "priority_classes": ["**"], "insecure_registries": ["**"], "mirrors": ["**"],
}  # fmt: skip
"""What the tests' own project may use: everything."""


class Process:
    """One process of crabpot's on this machine, ended by its id; what it says goes to a file."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            # A session of its own, so that an interrupt of the tests does not reach it before they end it in order.
            self._process = subprocess.Popen(
                command, env=dict(environment), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """As the kernel does it: no handler runs, nothing is given back."""
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """As Kubernetes does it. A process that does not end in its grace is a fault; it is made to tell where it hangs."""
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGABRT)
                self._process.wait(10)
                raise AssertionError(f"{self.name} did not end within {GRACE} s of SIGTERM:\n{self.tail(200)}") from None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Loop:
    """An event loop in a thread, on which the tests keep one ledger open: they wait for builds from ordinary functions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="e2e", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(seconds):
                return await work

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Crabpot:
    """One crabpot: a release of the chart, two namespaces, a prefix in Redis, and its processes."""

    def __init__(
        self, cluster: Cluster, redis_url: str, folder: Path, name: str, projects: Mapping[str, Any], readable: Sequence[str] = ()
    ) -> None:
        self.cluster, self.folder, self.readable = cluster, folder, tuple(readable)
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.namespace, self.system = f"e2e-{self.name}", f"e2e-{self.name}-system"
        self.token, self.port = secrets.token_hex(16), free_port()
        self.url = f"http://{cluster.host}:{self.port}"
        self.processes: dict[str, Process] = {}
        self.settings = Settings(redis_url=redis_url, prefix=self.name, namespace=self.namespace)
        self.process_redis_url = redis_url
        """What the processes are told; a soak puts a line of its own in between."""
        self._secrets: dict[str, str] = {}
        self._images: dict[str, Image] = {}
        self._projects = {"version": 1, **projects}
        self._loop = Loop()
        self._ledger = Ledger.open(self.settings)

    # Coming up and going down

    def install(self) -> None:
        """The chart without processes: no node of the tests' cluster can pull an image of ours."""
        values = {
            "processes": {"enabled": False},
            "builds": {
                "namespaces": [{"name": self.namespace, "create": True, "podSecurity": "privileged", "secrets": list(self.readable)}]
            },
        }
        path = self.folder / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        command = ["helm", "--kubeconfig", self.cluster.kubeconfig, "install", "crabpot", str(CHART), "--namespace", self.system]
        done = subprocess.run([*command, "--create-namespace", "--values", str(path)], text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        for account in ("worker", "watch", "serve"):
            self.cluster.kubeconfig_of(self.system, f"crabpot-{account}", self.kubeconfig(account))
        (self.folder / "projects.yaml").write_text(yaml.safe_dump(self._projects))

    def kubeconfig(self, account: str) -> Path:
        return self.folder / f"{account}.kubeconfig"

    def set_secret(self, name: str, value: str) -> None:
        """A variable that serve's processes are given, as a webhook's secret is."""
        self._secrets[name] = value

    def _environment(self, name: str) -> dict[str, str]:
        """A process's environment, from nothing: no credential of whoever runs the tests gets in."""
        environment = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "CRABPOT_REDIS_URL": self.process_redis_url,
            "CRABPOT_PREFIX": self.settings.prefix,
            "CRABPOT_NAMESPACE": self.namespace,
            "CRABPOT_EXECUTOR_IMAGE": self.cluster.executor_image,
            "CRABPOT_MEMORY": "1Gi",
            "CRABPOT_START_TIMEOUT": "8s",  # how long a kill between admission and creation costs
            "CRABPOT_PROJECTS": str(self.folder / "projects.yaml"),
            "CRABPOT_PUBLIC_URL": self.url,
        }
        if name == "serve":
            return environment | {"CRABPOT_BIND": f"{self.cluster.host}:{self.port}", "CRABPOT_API_TOKEN": self.token, **self._secrets}
        return environment | {"CRABPOT_KUBECONFIG": str(self.kubeconfig(name))}

    def start(self, *names: str) -> None:
        """Start processes: `worker`, `watch`, `serve`, or several of one kind as `worker-1`, `worker-2`."""
        for name in names:
            kind = name.partition("-")[0]
            self.processes[name] = Process(name, COMMANDS[kind], self._environment(kind), self.folder / f"{name}.log")
        if "watch" in names:
            self._until_alive("watch", lambda: self._loop.run(self._ledger.leases.holder("watch")))
        if "serve" in names:
            self._until_alive("serve", self._ready)

    def nudge(self) -> None:
        """Ask the workers for an admission, as the watcher does: for tests in which none runs."""
        command = [str(BIN / "celery"), "--app", "worker.app", "call", "crabpot.dispatch"]
        done = subprocess.run(command, env=self._environment("nudge"), cwd=ROOT, text=True, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr

    def _until_alive(self, name: str, look: Any) -> None:
        def found() -> Any:
            assert self.processes[name].alive, f"{name} ended:\n{self.processes[name].tail()}"
            return look()

        until(found, f"{name} is up", 30)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, *names: str) -> None:
        stopping = [self.processes.pop(name) for name in names or tuple(self.processes) if name in self.processes]
        hung = []
        for process in stopping:
            try:
                process.stop()
            except AssertionError as error:
                hung.append(error)
        if hung:
            raise hung[0]

    def kill(self, name: str) -> None:
        self.processes.pop(name).kill()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self._loop.run(self._ledger.close())
            self._loop.close()
            self._release_pods()

    def _release_pods(self) -> None:
        """Nobody is left to take our finalizer off, and the namespace could not go."""
        left = self.cluster.kubectl("--namespace", self.namespace, "get", "pods", "--output", "name").split()
        for pod in left:
            release = ("--type", "merge", "--patch", '{"metadata":{"finalizers":null}}')
            self.cluster.kubectl("--namespace", self.namespace, "patch", pod, *release, missing_ok=True)

    # Builds

    def request(self, name: str, **fields: Any) -> dict[str, Any]:
        """A request of the open project, pushed as `e2e/<this crabpot>/<name>:1.0.0` unless it says otherwise."""
        given: dict[str, Any] = {
            "project": "open",
            "destinations": [self.image(name)],
            "registries": {"insecure": [self.cluster.registry]},
            "deadlines": {"running": "3m", "pending": "2m"},
        }
        return {**given, **fields}

    def image(self, name: str, tag: str = "1.0.0") -> str:
        return f"{self.cluster.registry}/e2e/{self.name}/{name}:{tag}"

    def config_map(self, name: str, files: Mapping[str, str]) -> dict[str, str]:
        """A context of a few files; the request's source."""
        self.cluster.apply(self.namespace, {"kind": "ConfigMap", "metadata": {"name": name}, "data": dict(files)})
        return {"kind": "config_map", "config_map": name}

    def secret(self, name: str, data: Mapping[str, str], *, readable: bool = False) -> None:
        labels = {"crabpot.dev/readable": "true"} if readable else {}
        self.cluster.apply(self.namespace, {"kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": dict(data)})

    def submit(self, request: Mapping[str, Any]) -> str:
        return self._loop.run(submit_build_async(BuildRequest.parse(dict(request)), ledger=self._ledger)).id

    def store_projects(self) -> None:
        """What serve and watch do when they start, for tests that begin without either."""
        from ledger.projects import read_projects

        self._loop.run(self._ledger.store_projects(read_projects(self.folder / "projects.yaml")))

    def read(self, build: str) -> Build:
        return self._loop.run(self._ledger.read(build))

    def wait(self, build: str, seconds: float = 90.0) -> Build:
        """The build's record once it has ended."""
        try:
            return self._loop.run(wait_for_build_async(build, ledger=self._ledger), seconds)
        except TimeoutError:
            raise AssertionError(f"the build has not ended in {seconds:g} s\n{self.tell(build)}") from None

    def succeed(self, build: str, seconds: float = 90.0) -> Build:
        """The build's record, which must have ended well."""
        record = self.wait(build, seconds)
        assert record.state is State.SUCCEEDED, self.tell(build)
        return record

    def until_state(self, build: str, *states: State, seconds: float = 60.0) -> Build:
        def look() -> Build | None:
            record = self.read(build)
            assert record.state in states or not record.state.final, self.tell(build)
            return record if record.state in states else None

        return until(look, f"{build} is {' or '.join(states)}", seconds)

    def cancel(self, build: str) -> None:
        self._loop.run(cancel_build(self._ledger, build))

    def leader(self) -> str | None:
        return self._loop.run(self._ledger.leases.holder("watch"))

    def limit(self, scope: str, limit: int | None) -> None:
        """Set a limit by hand; None gives it back to the projects file."""
        limits, where = self._ledger.limits, Scope.parse(scope)
        self._loop.run(limits.give_back(where) if limit is None else limits.set(where, limit))

    def pause(self, scope: str) -> None:
        self._loop.run(self._ledger.limits.pause(Scope.parse(scope)))

    def resume(self, scope: str) -> None:
        self._loop.run(self._ledger.limits.resume(Scope.parse(scope)))

    def slots(self) -> dict[str, datetime]:
        return self._loop.run(self._ledger.slots())

    def events(self, build: str) -> list[dict[str, Any]]:
        """The build's events in the stream, in order."""
        found = [json.loads(event) for _, event in self._loop.run(self._ledger.events("0-0", block=0.1, count=5000))]
        return [event for event in found if event["data"].get("customData", {}).get("build") == build]

    def event_names(self, build: str) -> list[str]:
        """As `build.queued`, `artifact.published`."""
        return [event["type"].split(".", 2)[2].rsplit(".", 3)[0] for event in self.events(build)]

    def log(self, build: str) -> str:
        record = self.read(build)
        lines = self._loop.run(self._ledger.logs.tail(build, record.attempt, 10_000))
        return "\n".join(line.text for line in lines)

    def pod(self, build: str) -> dict[str, Any] | None:
        """The pod of the build's current attempt as the administrator sees it, None where there is none."""
        record = self.read(build)
        return self.cluster.get(self.namespace, "pod", record.current.runs[0].pod) if record.attempt else None

    def pods(self) -> list[dict[str, Any]]:
        """All pods of its namespace as the administrator sees them."""
        return json.loads(self.cluster.kubectl("--namespace", self.namespace, "get", "pods", "--output", "json"))["items"]

    def keep_pod(self, name: str) -> dict[str, Any]:
        """The pod of that build once it is there."""
        return until(lambda: self.pod(name), f"a pod of {name}", 60)

    def pushed(self, build: Build) -> Image:
        """The image that the build's record says it made."""
        assert build.digest
        name = f"{build.request.images[0].name}@{build.digest}"
        return self._images.setdefault(name, Image(name))

    def tell(self, build: str) -> str:
        """All that is known of a build, for a failed assertion."""
        record = self.read(build)
        tails = [f"--- {name}\n{process.tail()}" for name, process in self.processes.items() if name != "serve"]
        return "\n".join((record.model_dump_json(indent=1, exclude_defaults=True), "--- log", self.log(build)[-3000:], *tails))


@contextmanager
def crabpot_on(
    cluster: Cluster, redis_url: str, folder: Path, name: str, projects: Mapping[str, Any], readable: Sequence[str] = ()
) -> Iterator[Crabpot]:
    """A crabpot with its accounts installed and nothing started; all of it goes at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    crabpot = Crabpot(cluster, redis_url, folder, name, projects, readable)
    with cluster.namespaces(crabpot.system, crabpot.namespace):
        crabpot.install()
        try:
            yield crabpot
        finally:
            crabpot.close()


def open_project(cluster: Cluster, **fields: Any) -> dict[str, Any]:
    """The project whose builds may use everything."""
    return {"policy": POLICY, "registries": {cluster.registry: {"insecure": True}}, **fields}
