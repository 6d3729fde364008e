"""The command line as a process: against a server, and against its own private socket; what it prints and how it exits."""

from __future__ import annotations

import asyncio
import json
import subprocess
from datetime import timedelta
from functools import partial
from typing import ClassVar

import pytest
import yaml

from ledger.build import Reason, State
from ledger.logbook import Line
from ledger.projects import parse_projects
from tests.faults.listed_kubernetes import listed_kubernetes
from tests.faults.scripted_kubernetes import no
from tests.integration.commands import run_crabpot
from tests.integration.front_door import served
from tests.requests import COMMIT, NOW, request_fields
from worker.cluster.workloads import Workload

MINUTE = timedelta(minutes=1)
IMAGE = "registry.example.com/team/demo:1.0.0"
URL = "https://git.example.com/team/demo.git"


@pytest.fixture
def crabpot(ledger, redis_url):
    """The command with the ledger's Redis and no server."""
    return partial(run_crabpot, CRABPOT_REDIS_URL=redis_url)


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


@pytest.mark.parametrize("build", ["a/b", "a?b", "", "..", "%2e"])
async def test_an_odd_id_is_just_not_there(crabpot, build):
    code, out, err = await crabpot("show", build)
    assert (code, out, "Traceback" in err) == (3, "", False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"project: demo\nproject: other\n", "line 2"),
        (b"priority: .nan\n", "line 1"),
        (b"a: &a [*a]\n", "neither YAML nor JSON"),
        (b"\xff\xfe", "neither YAML nor JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "mapping"),
    ],
)
async def test_a_file_that_is_no_request(crabpot, tmp_path, text, said):
    (tmp_path / "request.yaml").write_bytes(text)
    code, out, err = await crabpot("submit", "--file", str(tmp_path / "request.yaml"))
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert said in err


async def test_a_date_in_a_file_stays_as_it_is_written(crabpot, ledger):
    text = yaml.safe_dump(request_fields()) + "build_args:\n  DAY: 2026-11-24\n"
    code, out, err = await crabpot("submit", "--file", "-", given=text)
    assert (code, err) == (0, "")
    assert (await ledger.read(out.strip())).request.build_args == {"DAY": "2026-11-24"}


@pytest.fixture
async def another_server():
    """A server that is not crabpot's, as a wrong CRABPOT_URL finds it: gives its address; the answer is set on it."""

    class Server:
        answer = b""
        answers: ClassVar[list[bytes]] = []
        """What is answered first, one after the other."""
        url = ""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(Server.answers.pop(0) if Server.answers else Server.answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        Server.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield Server


@pytest.mark.parametrize("command", [["list"], ["wait", "x"]])
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 301 Moved\r\nLocation: https://crabpot.example.com/\r\nContent-Length: 0\r\n\r\n", 2),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", 4),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 2),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", 2),
        (b"garbage\r\n\r\n", 4),
    ],
)
async def test_a_server_that_is_not_crabpots(crabpot, another_server, command, answer, code):
    another_server.answer = answer
    found, _, err = await crabpot(*command, CRABPOT_URL=another_server.url)
    assert (found, "Traceback" in err) == (code, False)
    assert "CRABPOT_URL" in err or another_server.url in err


async def test_a_wait_outlasts_a_server_that_is_restarted(crabpot, another_server):
    """An answer that ends before the build, an answer that is cut, nobody for a moment: asked again."""
    ok = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    another_server.answers = [
        ok + b'{"state": "queued"}\n',
        ok.replace(b"close", b"close\r\nContent-Length: 90") + b'{"state": "running"}\n',
        b"",
        b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 27\r\n\r\n{"detail": "Redis is away"}',
    ]
    another_server.answer = ok + b'{"state": "succeeded", "digest": "sha256:1"}\n'
    code, out, err = await crabpot("wait", "x", CRABPOT_URL=another_server.url)
    assert (code, out, err) == (0, "queued\nrunning\nsucceeded: sha256:1\n", "")


async def test_the_commit_of_a_ref_is_that_of_no_other(crabpot, ledger, tmp_path):
    """`git ls-remote` answers with every ref whose name ends in what was asked for."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    commits = []
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path)], check=True)
    for message in "one", "two":
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)
        commits.append(subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip())
    subprocess.run([*git, "update-ref", "refs/remotes/origin/HEAD", commits[0]], check=True)
    subprocess.run([*git, "tag", "-a", "v1.0.0", "-m", "v1", commits[0]], check=True)
    rewritten = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{tmp_path}.insteadOf", "GIT_CONFIG_VALUE_0": URL}

    async def resolved(*options: str) -> str:
        code, out, err = await crabpot("submit", "--project", "demo", "--git", URL, *options, "-t", IMAGE, **rewritten)
        assert (code, err) == (0, "")
        return (await ledger.read(out.strip())).request.source.commit

    assert await resolved() == commits[1]
    assert await resolved("--ref", "refs/tags/v1.0.0") == commits[0]
    code, _, err = await crabpot("submit", "--project", "demo", "--git", URL, "--ref", "main", "-t", IMAGE, **rewritten)
    assert (code, "refs/heads/main" in err) == (2, True)


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


async def test_limits_pauses_and_retries(crabpot, ledger):
    build = await submitted(crabpot)
    code, out, err = await crabpot("limits", "project/demo", "1")
    assert (code, err, "project/demo\t1\t0\tby hand; the file says 2\t" in out) == (0, "", True)
    assert "project/demo\t2\t0\t\t" in (await crabpot("limits", "project/demo", "--reset"))[1]
    assert "paused for" in (await crabpot("pause"))[1]
    code, out, _ = await crabpot("show", build)
    assert "a pause of all since" in out and "`crabpot resume` ends it" in out
    assert "paused" not in (await crabpot("resume"))[1]
    assert "class/amd64" in (await crabpot("limits", "--json"))[1]
    code, _, err = await crabpot("limits", "demo", "3")
    assert (code, "must be all, project/NAME" in err) == (2, True)
    assert (await crabpot("limits", "all"))[0] == 2
    assert (await crabpot("retry", build))[0] == 5
    await crabpot("cancel", build)
    code, out, err = await crabpot("retry", build)
    assert (code, err, (await ledger.read(out.strip())).state) == (0, "", State.QUEUED)


async def test_a_drain_waits_for_what_runs(crabpot, ledger):
    build = await submitted(crabpot)
    running = await ledger.admit(MINUTE)
    code, out, err = await crabpot("pause", "--drain", "--timeout", "0.2")
    assert (code, out, "still run" in err) == (124, "", True)
    draining = asyncio.create_task(crabpot("pause", "--drain", "--json"))
    await asyncio.sleep(0.5)
    await ledger.transition(running, State.FAILED, due=None, reason=Reason.BUILD_FAILED)
    code, out, _ = await draining
    assert (code, json.loads(out)["limits"][0]["taken"]) == (0, 0)
    assert await ledger.admit(MINUTE) is None
    assert (await ledger.read(build)).state is State.FAILED


async def test_a_submit_goes_on_trying_while_the_queue_is_full(crabpot, ledger, projects):
    demo = projects.projects["demo"].model_copy(update={"max_queued": 1})
    await ledger.store_projects(projects.model_copy(update={"projects": {"demo": demo}}))
    await submitted(crabpot)
    arguments = ("submit", "--project", "demo", "--git", URL, "--commit", COMMIT, "-t", IMAGE)
    code, out, err = await crabpot(*arguments)
    assert (code, out, "max_queued" in err) == (4, "", True)
    trying = asyncio.create_task(crabpot(*arguments, "--timeout", "30"))
    await asyncio.sleep(0.5)
    await ledger.admit(MINUTE)
    code, out, err = await trying
    assert (code, err, (await ledger.read(out.strip())).state) == (0, "", State.QUEUED)


async def test_the_doctor_looks_at_the_ledger(crabpot, ledger):
    build = await submitted(crabpot)
    code, out, _ = await crabpot("doctor", "--ledger")
    assert (code, "agrees with the records of 1 builds" in out) == (0, True)
    await ledger.connection.command("ZREM", ledger.connection.keys.due, build)
    code, out, _ = await crabpot("doctor", "--ledger")
    assert (code, f"{build} in due is missing" in out, "--mend" in out) == (1, True, True)
    code, out, _ = await crabpot("doctor", "--ledger", "--mend", "--json")
    assert (code, json.loads(out)["found"]) == (0, f"{build} in due is missing; mended")
    assert (await crabpot("doctor", "--ledger"))[0] == 0
    assert (await crabpot("doctor", "--mend"))[0] == 2


async def test_the_doctor_asks_each_cluster_what_it_may_list(crabpot, ledger, tmp_path):
    async with listed_kubernetes(tmp_path) as cluster:
        cluster.forever[Workload.JOB] = no(403, "Forbidden", "no jobs for ada")
        asked = {"kubeconfig": str(cluster.kubeconfig)}
        said = {"some": asked, "away": {"kubeconfig": "/nowhere/prod.yaml"}, "edge": {"token": {"env": "T"}}}
        await ledger.store_projects(parse_projects(json.dumps({"version": 1, "projects": {}, "clusters": said})))
        environment = {"CRABPOT_CLUSTER": "local", "CRABPOT_STATE": str(tmp_path)}
        _, out, _ = await crabpot("doctor", **environment)
        assert (
            "FAULT cluster some: its account may not list jobs.batch; nothing is deleted automatically\n      bind the ClusterRole of"
            in out
        )
        assert "FAULT cluster away: no credentials for a cluster in /nowhere/prod.yaml: there is no such file" in out
        assert "FAULT cluster edge: has not reported for an hour" in out
        cluster.forever.clear()
        await ledger.usage.store("edge", {}, await ledger.now())
        _, out, _ = await crabpot("doctor", **environment)
        assert "ok    cluster some: answers, and may be asked for deployments.apps, " in out
        assert "ok    cluster edge: has reported within the hour" in out
        _, out, _ = await crabpot("doctor", "--json", **environment)
        assert "cluster some" in {json.loads(line)["name"] for line in out.splitlines()}


async def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(crabpot, ledger, tmp_path):
    environment = {"CRABPOT_CLUSTER": "local", "CRABPOT_STATE": str(tmp_path)}
    code, out, _ = await crabpot("doctor", **environment)
    assert code == 1
    assert "FAULT watcher: none leads\n      start `crabpot watch`" in out
    assert "ok    redis persistence: appendonly yes" in out
    assert "FAULT registry registry.example.com/team/demo:" in out
    code, out, _ = await crabpot("doctor", "--json", CRABPOT_REDIS_URL="redis://127.0.0.1:1/0")
    assert (code, json.loads(out)["mend"].startswith("start Redis")) == (1, True)
    code, out, _ = await crabpot("doctor", **environment, CRABPOT_PROJECTS=str(tmp_path / "none.yaml"))
    assert "FAULT projects file:" in out
