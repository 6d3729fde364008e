"""`crabpot promote` as people run it: a built image gets its release's tags, by the watcher's nudge and a worker's chore."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.harness import BIN, Crabpot
from tests.e2e.harness_images import Image


@pytest.fixture(scope="module")
def built(crabpot: Crabpot) -> Image:
    build = crabpot.submit(crabpot.request("promoted", source=crabpot.config_map("promoted", {"Dockerfile": "FROM scratch\nCOPY . /\n"})))
    return crabpot.pushed(crabpot.succeed(build))


def promote(crabpot: Crabpot, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "CRABPOT_URL": crabpot.url, "CRABPOT_API_TOKEN": crabpot.token}
    command = [str(BIN / "crabpot"), "promote", "--project", "open", "--timeout", "60", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=90)


def test_a_built_image_gets_tags_in_its_repository_and_in_another(crabpot: Crabpot, built: Image) -> None:
    elsewhere = crabpot.image("production/promoted", "1.0.0")
    done = promote(crabpot, built.reference, "stable", elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    stable = f"{built.reference.partition('@')[0]}:stable"
    assert set(done.stdout.splitlines()) == {f"{stable}@{built.digest}", f"{elsewhere}@{built.digest}"}
    for target in (stable, elsewhere):
        promoted = Image(target)
        assert (promoted.digest, promoted.files) == (built.digest, built.files)


def test_what_is_not_there_is_told(crabpot: Crabpot, built: Image) -> None:
    nobodys = f"{built.reference.partition('@')[0]}@sha256:{'0' * 64}"
    done = promote(crabpot, nobodys, "stable")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no {nobodys}" in done.stderr
