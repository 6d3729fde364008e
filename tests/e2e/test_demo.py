"""`make demo`: one command on this machine, and a push becomes an image. What `make` itself does before (packages, .venv) is there already."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "deploy/demo"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(28080, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("there are no free ports in a row")


@pytest.fixture
def port() -> int:
    return free_ports(4)


@pytest.fixture
def demo(tmp_path: Path, port: int) -> Iterator[Run]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CRABPOT_", "DEMO_"))}
    environment = {**clean, "DEMO_STATE": str(tmp_path / "demo"), "DEMO_PORT": str(port)}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        # Not by a pipe: what the demo leaves running would hold it open.
        with (tmp_path / "said").open("w+") as said:
            done = subprocess.run(command, env=environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL, timeout=150, check=False)
            said.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, said.read())

    yield run
    run(DEMO / "down")


@pytest.mark.timeout(300)
def test_a_push_becomes_an_image_and_so_does_the_next(demo: Run, port: int, tmp_path: Path) -> None:
    for _ in range(2):
        up = demo(DEMO / "up")
        assert up.returncode == 0, up.stdout
        assert "succeeded" in up.stdout
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 2}/v2/demo/app/tags/list", timeout=10) as answer:
        assert len(json.load(answer)["tags"]) >= 2
    host = f"127.0.0.1:{port + 2}"
    crabpot = Path(sys.executable).parent / "crabpot"
    collected = demo("bash", "-c", f"set -a; . {DEMO / 'settings'}; {crabpot} gc run {host}")
    assert collected.returncode == 0, collected.stdout
    doctor = demo("bash", "-c", f"set -a; . {DEMO / 'settings'}; {crabpot} doctor")
    assert (doctor.returncode, "FAULT" in doctor.stdout) == (0, False), doctor.stdout
    down = demo(DEMO / "down")
    assert down.returncode == 0, down.stdout
    for offset in range(4):
        with socket.socket() as knock:
            assert knock.connect_ex(("127.0.0.1", port + offset)) != 0, f"something still listens on port {port + offset}"
    assert "not running" in demo(DEMO / "down").stdout
    taken = socket.create_server(("127.0.0.1", port + 1))
    refused = demo(DEMO / "up")
    taken.close()
    assert (refused.returncode, f"Port {port + 1} is in use" in refused.stdout) == (1, True)
