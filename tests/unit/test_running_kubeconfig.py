"""`deploy/running/kubeconfig` holds a token: whatever umask its caller has, nobody else may read the file. What it leads to is tested in tests/e2e."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "deploy/running/kubeconfig"
KUBECTL = """#!/bin/sh
case "$*" in
  *current-context*) echo mine ;;
  *cluster.server*) echo https://prod.example.com:6443 ;;
  *certificate-authority-data*) echo Y2VydA== ;;
  *"get secret"*) printf '%s' "$TOKEN" ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path):
    """Run it in a folder of its own, as somebody whose files all may read."""
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL)
    program.chmod(0o755)
    (tmp_path / "work").mkdir()

    def run(command: str, token: str = "carrot") -> subprocess.CompletedProcess[str]:
        told = {"PATH": f"{program.parent}:{os.environ['PATH']}", "TOKEN": base64.b64encode(token.encode()).decode(), "SCRIPT": str(SCRIPT)}
        return subprocess.run(
            ["sh", "-c", f"umask 022; {command}"], cwd=tmp_path / "work", env=told, text=True, capture_output=True, check=False
        )

    return run


def token_of(text: str) -> str:
    config = yaml.safe_load(text)
    assert config["clusters"][0]["cluster"] == {"server": "https://prod.example.com:6443", "certificate-authority-data": "Y2VydA=="}
    return str(config["users"][0]["user"]["token"])


def test_the_file_that_it_writes_is_its_owners_alone(script, tmp_path: Path):
    done = script('"$SCRIPT" prod prod.kubeconfig')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [file] = (tmp_path / "work").iterdir()
    assert (file.name, file.stat().st_mode & 0o777, token_of(file.read_text())) == ("prod.kubeconfig", 0o600, "carrot")


def test_who_has_an_older_file_open_that_all_could_read_sees_no_token(script, tmp_path: Path):
    file = tmp_path / "work/prod.kubeconfig"
    file.write_text("old")
    file.chmod(0o644)
    with file.open() as held:
        assert script('"$SCRIPT" prod prod.kubeconfig').returncode == 0
        assert held.read() == "old"
    assert (file.stat().st_mode & 0o777, token_of(file.read_text())) == (0o600, "carrot")


def test_a_file_that_the_shell_made_for_it_gets_no_token(script, tmp_path: Path):
    done = script('"$SCRIPT" prod >prod.kubeconfig')
    assert (done.returncode, (tmp_path / "work/prod.kubeconfig").read_text()) == (2, "")
    assert "kubeconfig prod FILE" in done.stderr


def test_elsewhere_it_is_printed(script):
    assert token_of(script('"$SCRIPT"').stdout) == "carrot"
    assert token_of(script('"$SCRIPT" prod | cat').stdout) == "carrot"


def test_a_token_that_is_not_there_yet_leaves_the_file_as_it_was(script, tmp_path: Path):
    file = tmp_path / "work/prod.kubeconfig"
    file.write_text("old")
    done = script('"$SCRIPT" prod prod.kubeconfig', token="")
    assert (done.returncode, "no token yet" in done.stderr, file.read_text()) == (1, True, "old")
    assert [one.name for one in file.parent.iterdir()] == ["prod.kubeconfig"]
