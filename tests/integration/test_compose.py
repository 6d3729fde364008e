"""docker-compose.yml: no Docker engine runs here, so the commands that it names are started on this machine with the settings that it names.

What differs is said in one place (`_Translation`): addresses, folders, and this machine's own cluster instead of k3s.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_client
import yaml

from ledger.projects import read_projects
from ledger.settings import Settings
from tests.conftest import free_port
from tests.integration.registry_server import OCI_MANIFEST, RegistryServer, digest_of

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("worker", "beat", "watch", "serve")
TOKEN = "a-token-for-the-test"


class _Translation:
    """From the containers' addresses and folders to this machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis, self.registry, self.serve = free_port(), free_port(), free_port()
        self._words = {
            f"{_address('redis')}:6379": f"127.0.0.1:{self.redis}",
            "0.0.0.0:5000": f"127.0.0.1:{self.registry}",
            "0.0.0.0:8080": f"127.0.0.1:{self.serve}",
            "127.0.0.1:8080": f"127.0.0.1:{self.serve}",
            "/tmp/": f"{folder}/",
        }

    def text(self, given: str) -> str:
        for ours, here in self._words.items():
            given = given.replace(ours, here)
        return given

    def environment(self, name: str) -> dict[str, str]:
        given = {key: self.text(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}
        given |= {key: TOKEN for key, value in given.items() if value.startswith("${")}
        for mount in SERVICES[name].get("volumes", ()):
            here, there, *_ = mount.split(":")
            if here.startswith("./"):
                given = {key: value.replace(there, str(ROOT / here)) for key, value in given.items()}
        if name in OURS:  # this machine's own cluster for k3s; nothing is to be built, so its executor only fails
            del given["CRABPOT_KUBECONFIG"]
            given |= {"CRABPOT_CLUSTER": "local", "CRABPOT_STATE": str(self.folder / "state"), "CRABPOT_EXECUTOR": "false"}
        return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "PYTHONUNBUFFERED": "1", **given}

    def command(self, name: str) -> list[str]:
        if name == "registry":  # the image's own command
            config = self.folder / "registry.yml"
            config.write_text(
                yaml.safe_dump({"version": "0.1", "storage": {"filesystem": {"rootdirectory": str(self.folder / "registry")}}})
            )
            return [_installed("docker-registry"), "serve", str(config)]
        command = [self.text(word) for word in SERVICES[name]["command"]]
        if name == "redis":
            command += ["--port", str(self.redis), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return command


class Running:
    """Every service of the file but k3s, as processes of this machine."""

    def __init__(self, translation: _Translation) -> None:
        self.translation = translation
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str) -> None:
        with self._log(name).open("w") as log:
            self.processes[name] = subprocess.Popen(
                self.translation.command(name), env=self.translation.environment(name), cwd=ROOT, stdout=log, stderr=log, text=True, start_new_session=True
            )  # fmt: skip

    def _log(self, name: str) -> Path:
        return self.translation.folder / f"{name}.log"

    def until(self, name: str, look: Callable[[], object], seconds: float = 40.0) -> None:
        """Wait for what a service does when it is up."""
        end = time.monotonic() + seconds
        while not look():
            assert self.processes[name].poll() is None, f"{name} ended:\n{self._log(name).read_text()}"
            assert time.monotonic() < end, f"{name} did not come up:\n{self._log(name).read_text()}"
            time.sleep(0.05)

    def stop(self) -> dict[str, int]:
        """End them as compose does, the last first: each one's exit code."""
        codes = {}
        for name, process in reversed(self.processes.items()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(5)
            codes[name] = process.returncode
        self.processes.clear()
        return codes

    def get(self, path: str, *, token: str | None = TOKEN) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"http://127.0.0.1:{self.translation.serve}{path}", headers=headers, trust_env=False, timeout=10)

    def answers(self, url: str) -> bool:
        try:
            return httpx.get(url, trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def leads(self) -> bool:
        return "crabpot_leader 1.0" in self.get("/metrics").text


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    translation = _Translation(tmp_path_factory.mktemp("compose"))
    running = Running(translation)
    try:
        running.start("redis")
        with redis_client.Redis(port=translation.redis, socket_timeout=5) as client:
            running.until("redis", lambda: _pings(client))
        running.start("registry")
        running.until("registry", lambda: running.answers(f"http://127.0.0.1:{translation.registry}/v2/"))
        for name in OURS:
            running.start(name)
        running.until("serve", lambda: running.answers(f"http://127.0.0.1:{translation.serve}/readyz"))
        yield running
    finally:
        running.stop()


def _pings(client: redis_client.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis_client.exceptions.RedisError:
        return False


def _address(name: str) -> str:
    return str(SERVICES[name]["networks"]["crabpot"]["ipv4_address"])


def _installed(program: str) -> str:
    found = shutil.which(program)
    assert found, f"install {program} (Debian: apt-get install {program})"
    return found


def test_redis_is_fit_to_hold_the_ledger(running: Running) -> None:
    with redis_client.Redis(port=running.translation.redis, decode_responses=True) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_the_registry_lets_images_be_deleted(running: Running) -> None:
    server = RegistryServer(f"127.0.0.1:{running.translation.registry}", running.processes["registry"])
    raw = server.push_image("team/app", "1", media_type=OCI_MANIFEST)
    with server.http() as http:
        assert http.delete(f"team/app/manifests/{digest_of(raw)}").status_code == 202


def test_serve_is_ready_and_asks_for_its_token(running: Running) -> None:
    assert running.get("/readyz", token=None).status_code == 200
    assert running.get("/v1/builds", token=None).status_code == 401
    assert running.get("/v1/builds").json()["builds"] == []


def test_the_watcher_leads(running: Running) -> None:
    running.until("watch", running.leads)


def test_beat_lives_and_keeps_its_schedule_where_it_may_write(running: Running) -> None:
    running.until("beat", lambda: list(running.translation.folder.glob("schedule*")))
    assert running.processes["beat"].poll() is None


def test_a_build_goes_from_serve_by_the_watcher_to_the_worker(running: Running) -> None:
    """All of them speak to one Redis with one prefix, and the worker takes the steps."""
    projects = read_projects(ROOT / "deploy/compose/projects.yaml").projects["demo"]
    (request,) = projects.requests("demo", "refs/heads/main", "1" * 40)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{running.translation.serve}/v1/builds"
    answer = httpx.post(url, content=request.to_json(), headers=headers, trust_env=False)
    assert answer.status_code == 201, answer.text
    build = answer.json()["id"]
    running.until("worker", lambda: running.get(f"/v1/builds/{build}").json()["attempt"] > 0)


def test_all_end_when_they_are_told_to(running: Running) -> None:
    """The last test of the module: nothing hangs until it is killed, and nothing ends in an error."""
    codes = running.stop()
    assert set(codes) == set(SERVICES) - {"k3s"}
    assert set(codes.values()) <= {0, -signal.SIGTERM}, codes


@pytest.mark.parametrize("name", OURS)
def test_the_settings_that_the_file_names_exist(name: str) -> None:
    known = {f"CRABPOT_{setting.upper()}" for setting in Settings.model_fields}
    assert {key for key in SERVICES[name]["environment"] if key.startswith("CRABPOT_")} <= known


def test_our_containers_are_hardened_and_start_after_what_they_need() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["build"] == "."
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "redis" in service["depends_on"]
    assert not any(service.get("privileged") for name, service in SERVICES.items() if name != "k3s")
    assert all("healthcheck" in SERVICES[name] for name in ("redis", "registry", "k3s", "serve"))
    needed = {needed: condition for service in SERVICES.values() for needed, condition in service.get("depends_on", {}).items()}
    assert set(needed) == {"redis", "registry", "k3s"}
    assert all(condition == {"condition": "service_healthy"} for condition in needed.values())


def test_the_projects_file_pushes_to_the_registry_s_fixed_address() -> None:
    project = read_projects(ROOT / "deploy/compose/projects.yaml").projects["demo"]
    host = f"{_address('registry')}:5000"
    assert project.registries[host].insecure
    assert {rule.image.partition("/")[0] for rule in project.rules} == {host}


def test_the_image_holds_what_the_commands_name() -> None:
    """The Dockerfile cannot be built here; that what it copies exists, and that its stages agree, can be seen."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    kept = {
        line.removeprefix("!").removesuffix("/**") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert kept == set(copied), "the context holds what is copied, and nothing else"
    assert lines[-1] == 'CMD ["crabpot", "--help"]'
    assert any(line.startswith("FROM gcr.io/distroless/") and line.endswith(":nonroot") for line in lines)
