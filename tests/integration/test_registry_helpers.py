"""Docker credential helpers: real programs on PATH, good, broken and slow."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from ledger.errors import RegistryDenied, RegistryUnavailable
from worker.registry import Credential, DockerConfig, DockerConfigFile


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def install(folder: Path, name: str, script: str) -> None:
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


ECHO = """read server; echo "{\\"ServerURL\\": \\"$server\\", \\"Username\\": \\"$1 of $server\\", \\"Secret\\": \\"carrot\\"}" """


async def test_a_helper_for_its_registry_and_the_store_for_the_rest(helpers: Path) -> None:
    install(helpers, "cloud", ECHO)
    install(helpers, "desk", ECHO.replace("carrot", "turnip"))
    config = DockerConfig.parse(
        '{"credHelpers": {"cloud.test": "cloud"}, "credsStore": "desk", "auths": {"cloud.test": {"username": "x", "password": "y"}, "other.test": {}}}'
    )
    assert await config.find("cloud.test", "team/app") == Credential(username="get of cloud.test", password="carrot")
    assert await config.find("other.test", "team/app") == Credential(username="get of other.test", password="turnip")
    assert await config.find("docker.io", "library/x") == Credential(username="get of https://index.docker.io/v1/", password="turnip")


async def test_an_identity_token_from_a_helper(helpers: Path) -> None:
    install(helpers, "token", """echo '{"Username": "<token>", "Secret": "refresh"}'""")
    assert await DockerConfig(store="token").find("r.test", "a") == Credential(identity_token="refresh")


async def test_a_helper_without_a_credential(helpers: Path) -> None:
    install(helpers, "empty", "echo 'credentials not found in native keychain'; exit 1")
    assert await DockerConfig(store="empty").find("r.test", "a") is None


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("echo 's3cr3t happened'; echo s3cr3t >&2; exit 3", RegistryUnavailable, "exit code 3"),
        ("echo s3cr3t", RegistryDenied, "Username and Secret"),
        ("""echo '{"Username": "ada", "Password": "s3cr3t"}'""", RegistryDenied, "Username and Secret"),
    ],
)
async def test_a_broken_helper_is_named_and_its_words_are_not_repeated(
    helpers: Path, script: str, error: type[Exception], says: str
) -> None:
    install(helpers, "broken", script)
    with pytest.raises(error, match=says) as caught:
        await DockerConfig(store="broken").find("r.test", "a")
    assert "docker-credential-broken" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


async def test_a_helper_that_is_not_installed() -> None:
    with pytest.raises(RegistryDenied, match="docker-credential-nowhere cannot be run"):
        await DockerConfig(store="nowhere").find("r.test", "a")


async def test_a_slow_helper_is_killed_with_what_it_started(helpers: Path, tmp_path: Path) -> None:
    """What it started holds the other end of a pipe for as long as it lives."""
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.fdopen(os.open(alive, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    install(helpers, "slow", f"sleep 600 > {alive} & echo begun > {alive}; wait")
    config = DockerConfig(store="slow", helper_timeout=2)
    with reader:
        with pytest.raises(RegistryUnavailable, match="within 2 s"):
            await config.find("r.test", "a")
        told = [select.select([reader], [], [], 10)[0] and reader.read(100) for _ in range(2)]
    assert told == [b"begun\n", b""], "and then its end"


async def test_a_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    source = DockerConfigFile(path)
    with pytest.raises(RegistryDenied, match="readable file"):
        await source.find("r.test", "a")
    path.write_text('{"auths": {"r.test": {"username": "ada", "password": "one"}}}')
    assert await source.find("r.test", "a") == Credential(username="ada", password="one")
    path.write_text('{"auths": {"r.test": {"username": "ada", "password": "two"}}}')
    assert await source.find("r.test", "a") == Credential(username="ada", password="two")
    path.write_text('{"auths": s3cr3t')
    with pytest.raises(RegistryDenied, match="not JSON") as caught:
        await source.find("r.test", "a")
    assert "s3cr3t" not in str(caught.value)
