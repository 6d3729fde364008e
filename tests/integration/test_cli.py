"""The command line as a process: against a server, and against its own private socket; what it prints and how it exits."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from ledger.build import Reason, State
from ledger.logbook import Line
from tests.integration.front_door import served
from tests.requests import COMMIT, NOW, request_fields

CRABPOT = str(Path(sys.executable).parent / "crabpot")
MINUTE = timedelta(minutes=1)
IMAGE = "registry.example.com/team/demo:1.0.0"
URL = "https://git.example.com/team/demo.git"


@pytest.fixture
def crabpot(ledger, redis_url):
    """Run the command with the ledger's Redis and no server; (exit code, standard output, standard error)."""

    async def run(*arguments: str, given: str | None = None, **environment: str) -> tuple[int, str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CRABPOT_")}
        process = await asyncio.create_subprocess_exec(
            CRABPOT, *arguments, env={**clean, "CRABPOT_REDIS_URL": redis_url, **environment},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate((given or "").encode())
        return process.returncode or 0, out.decode(), err.decode()

    return run


async def submitted(crabpot, **environment: str) -> str:
    code, out, err = await crabpot(
        "submit", "--project", "demo", "--git", URL, "--commit", COMMIT, "-t", IMAGE, "--build-arg", "A=b c=d", **environment
    )
    assert (code, err) == (0, "")
    return out.strip()


async def failed(ledger, build: str) -> None:
    record = await ledger.admit(MINUTE)
    run = record.current.runs[0].model_copy(
        update={"reason": Reason.BUILD_FAILED, "exit_code": 1, "log_tail": ("make: *** no rule",), "ended": NOW}
    )
    attempts = record.with_attempt(record.current.model_copy(update={"runs": (run,)}))
    await ledger.logs.append(build, 1, [Line(NOW, "make: *** no rule")], complete=True)
    await ledger.transition(record, State.FAILED, due=None, reason=Reason.BUILD_FAILED, message="a RUN ended with 2", attempts=attempts)


async def test_a_build_from_submit_to_its_reason(crabpot, ledger):
    build = await submitted(crabpot)
    assert (await ledger.read(build)).request.build_args == {"A": "b c=d"}
    code, out, _ = await crabpot("list")
    assert (code, out.split("\t")[:4]) == (0, [build, "demo", "queued", IMAGE])
    _, out, _ = await crabpot("show", build)
    assert "waits for:    its turn" in out
    await failed(ledger, build)
    _, out, _ = await crabpot("show", build)
    for told in (
        "state:        failed",
        "reason:       build_failed",
        "why:          a RUN ended with 2",
        "exit code:    1",
        "  make: *** no rule",
    ):
        assert told in out
    assert await crabpot("logs", "-f", build) == (0, "make: *** no rule\n", "")
    code, out, _ = await crabpot("wait", build)
    assert (code, out) == (1, "failed: build_failed: a RUN ended with 2\n")
    code, out, _ = await crabpot("show", "--json", build)
    assert json.loads(out)["reason"] == "build_failed"


async def test_the_same_through_a_server(crabpot, ledger, settings):
    async with served(ledger, settings.model_copy(update={"api_token": "t0ken"})) as client:
        server = {"CRABPOT_URL": str(client.base_url), "CRABPOT_API_TOKEN": "t0ken", "CRABPOT_REDIS_URL": "redis://127.0.0.1:1/0"}
        build = await submitted(crabpot, **server)
        assert (await crabpot("cancel", build, **server))[1] == f"{build} is cancelled\n"
        code, _, err = await crabpot("cancel", build, **server)
        assert (code, "ended already" in err) == (5, True)
        assert (await crabpot("wait", build, **server))[0] == 5
        code, _, err = await crabpot("list", **{**server, "CRABPOT_API_TOKEN": "wrong"})
        assert (code, "CRABPOT_API_TOKEN" in err) == (2, True)


async def test_a_request_from_a_file_with_options_over_it(crabpot, ledger):
    text = yaml.safe_dump(request_fields(priority=3))
    code, out, _ = await crabpot("submit", "--file", "-", "--priority", "7", "--idempotency-key", "k", given=text)
    assert code == 0
    assert (await ledger.read(out.strip())).request.priority == 7
    assert (await crabpot("submit", "--file", "-", "--idempotency-key", "k", given=text))[1] == out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nope"], 3, "crabpot list"),
        (["submit", "--project", "demo"], 2, "source: got nothing; must be given"),
        (["submit", "--project", "demo", "--git", URL, "--commit", COMMIT, "-t", "elsewhere.example.com/x:1"], 2, "policy.destinations"),
        (["submit", "--project", "nope", "--git", URL, "--commit", COMMIT, "-t", IMAGE], 3, "projects file"),
        (["submit", "--build-arg", "A"], 2, "NAME=VALUE"),
        (["submit", "--commit", COMMIT], 2, "--git"),
        (["submit", "--git", "http://127.0.0.1:9/none.git"], 2, "--commit"),
        (["list", "--state", "odd"], 2, "odd"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
async def test_an_error_is_one_line_and_an_exit_code(crabpot, arguments, code, said):
    found, out, err = await crabpot(*arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


async def test_nobody_there(crabpot):
    code, _, err = await crabpot("list", CRABPOT_REDIS_URL="redis://127.0.0.1:1/0")
    assert (code, "CRABPOT_REDIS_URL" in err) == (4, True)
    code, _, err = await crabpot("list", CRABPOT_URL="http://127.0.0.1:1")
    assert (code, "CRABPOT_URL" in err) == (4, True)
    code, _, err = await crabpot("list", CRABPOT_REDIS_URL="http://x")
    assert (code, "redis://" in err) == (2, True)


async def test_a_wait_has_its_time(crabpot):
    build = await submitted(crabpot)
    code, _, err = await crabpot("wait", build, "--timeout", "0.3")
    assert (code, "still queued" in err) == (124, True)


async def test_serve_refuses_to_be_open(crabpot):
    code, _, err = await crabpot("serve", CRABPOT_BIND="0.0.0.0:0")
    assert (code, "CRABPOT_API_TOKEN" in err) == (2, True)


async def test_help_needs_no_redis_and_lists_everything(crabpot):
    code, out, _ = await crabpot("--help", CRABPOT_REDIS_URL="nonsense")
    assert code == 0
    for name in ("submit", "list", "show", "logs", "cancel", "wait", "doctor", "serve", "watch", "124"):
        assert name in out
