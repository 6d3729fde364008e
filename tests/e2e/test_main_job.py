"""The main job: a real `git push` to a real forge, its own signed webhook, Kaniko cloning from it, the image in a real registry."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ledger.build import Build
from tests.e2e.conftest import WEBHOOK_SECRET
from tests.e2e.harness import BIN, Crabpot
from tests.e2e.harness_cluster import until
from tests.e2e.harness_forge import Repository
from tests.e2e.harness_images import Image

DOCKERFILE = """FROM {registry}/base/busybox:1
ARG GREETING
ENV GREETING=$GREETING
COPY page.txt /page.txt
RUN echo "built to say $GREETING" && sleep 2
"""


@dataclass(frozen=True)
class Server:
    """The REST API as a program on another machine uses it."""

    crabpot: Crabpot

    def get(self, path: str, **query: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.crabpot.token}"}
        return httpx.get(f"{self.crabpot.url}{path}", params=query, headers=headers, trust_env=False, timeout=30)

    def builds_of(self, commit: str) -> list[str]:
        """The ids of a commit's builds."""
        found = self.get("/v1/builds", project="app").raise_for_status().json()["builds"]
        return [build["id"] for build in found if build["request"]["source"]["commit"] == commit]

    def webhooks(self, status: int) -> int:
        """How many webhooks were answered so."""
        lines = self.get("/metrics").raise_for_status().text.splitlines()
        name = "crabpot_http_request_seconds_count{"
        counts = [line for line in lines if line.startswith(name) and "/webhooks/github" in line and f'status="{status}"' in line]
        return sum(round(float(line.rpartition(" ")[2])) for line in counts)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(BIN), "CRABPOT_URL": self.crabpot.url, "CRABPOT_API_TOKEN": self.crabpot.token}
        return subprocess.run([str(BIN / "crabpot"), *arguments], env=environment, text=True, capture_output=True, check=False, timeout=90)


@pytest.fixture(scope="module")
def server(crabpot: Crabpot) -> Server:
    return Server(crabpot)


@dataclass(frozen=True)
class Pushed:
    commit: str
    build: Build


@pytest.fixture(scope="module")
def pushed(crabpot: Crabpot, server: Server, app: Repository) -> Pushed:
    """One push, and the build that came of it by the forge's webhook alone."""
    app.add_webhook(f"{crabpot.url}/webhooks/github", WEBHOOK_SECRET)
    commit = app.commit({"Dockerfile": DOCKERFILE.format(registry=crabpot.cluster.registry), "page.txt": "one"})
    app.push()
    builds = until(lambda: server.builds_of(commit), "the push became a build", 20)
    assert len(builds) == 1
    return Pushed(commit, crabpot.succeed(builds[0]))


def test_a_push_becomes_an_image_with_its_tags(crabpot: Crabpot, app: Repository, pushed: Pushed) -> None:
    image = f"{crabpot.cluster.registry}/e2e/{app.name}"
    assert pushed.build.digest
    assert {Image(f"{image}:{tag}").digest for tag in (pushed.commit, "main", "latest")} == {pushed.build.digest}
    found = crabpot.pushed(pushed.build)
    assert found.text("/page.txt") == "one"
    assert "GREETING=hello from the forge" in found.config["config"]["Env"]


def test_the_image_says_where_it_comes_from(crabpot: Crabpot, app: Repository, pushed: Pushed) -> None:
    labels = crabpot.pushed(pushed.build).labels
    assert labels["org.opencontainers.image.source"] == app.url
    assert labels["org.opencontainers.image.revision"] == pushed.commit
    assert labels["org.opencontainers.image.ref.name"] == "refs/heads/main"
    assert labels["dev.crabpot.attempt"] == f"{pushed.build.id}.1"


def test_the_stream_tells_the_build_s_life_in_order(crabpot: Crabpot, pushed: Pushed) -> None:
    names = crabpot.event_names(pushed.build.id)
    assert names == ["build.queued", "build.started", *["artifact.published"] * 3, "build.finished"]
    events = crabpot.events(pushed.build.id)
    assert len({event["id"] for event in events}) == len(events)
    finished = events[-1]["data"]["customData"]
    assert (finished["outcome"], finished["commit"], finished["digest"]) == ("success", pushed.commit, pushed.build.digest)


def test_the_log_is_told_over_rest(server: Server, pushed: Pushed) -> None:
    assert "built to say hello from the forge" in server.get(f"/v1/builds/{pushed.build.id}/logs").raise_for_status().text


def test_the_command_line_on_another_machine(server: Server, pushed: Pushed) -> None:
    waited = server.cli("wait", pushed.build.id)
    assert waited.returncode == 0, waited.stderr
    shown = server.cli("show", "--json", pushed.build.id)
    assert json.loads(shown.stdout)["digest"] == pushed.build.digest, shown.stderr
    assert pushed.build.id in server.cli("list").stdout
    assert "built to say hello from the forge" in server.cli("logs", pushed.build.id).stdout


def test_the_next_push_moves_the_mutable_tags_and_no_other(crabpot: Crabpot, server: Server, app: Repository, pushed: Pushed) -> None:
    commit = app.commit({"page.txt": "two"})
    app.push()
    (build,) = until(lambda: server.builds_of(commit), "the push became a build", 20)
    record = crabpot.succeed(build)
    image = f"{crabpot.cluster.registry}/e2e/{app.name}"
    assert record.digest != pushed.build.digest
    assert {Image(f"{image}:{tag}").digest for tag in (commit, "main", "latest")} == {record.digest}
    assert Image(f"{image}:{pushed.commit}").digest == pushed.build.digest


def test_a_webhook_of_what_was_built_already_or_is_not_to_be_builds_nothing(server: Server, app: Repository, pushed: Pushed) -> None:
    def delivered_and_ignored(deliver: Any) -> None:
        before = server.webhooks(200)
        deliver()
        until(lambda: server.webhooks(200) > before, "the webhook was answered", 20)

    count = len(server.get("/v1/builds", project="app").json()["builds"])
    hook = app.forge.call("GET", f"repos/{app.name}/hooks").json()[0]["id"]
    delivered_and_ignored(
        lambda: app.forge.call("POST", f"repos/{app.name}/hooks/{hook}/tests")
    )  # the forge tells of its newest commit again
    delivered_and_ignored(lambda: app.push("refs/heads/no-rule"))
    assert len(server.get("/v1/builds", project="app").json()["builds"]) == count


def test_a_webhook_that_nobody_signed_is_refused(crabpot: Crabpot, server: Server, app: Repository) -> None:
    body = {"ref": "refs/heads/main", "after": "1" * 40, "repository": {"full_name": app.name}}
    for signature in ({}, {"X-Hub-Signature-256": "sha256=" + "0" * 64}):
        headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "forged", **signature}
        answer = httpx.post(f"{crabpot.url}/webhooks/github", json=body, headers=headers, trust_env=False)
        assert answer.status_code == 401
    assert server.builds_of("1" * 40) == []


def test_the_api_asks_for_its_token(crabpot: Crabpot) -> None:
    assert httpx.get(f"{crabpot.url}/v1/builds", trust_env=False).status_code == 401
    assert httpx.get(f"{crabpot.url}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("account", "allowed"),
    [
        ("worker", {"create pods", "get pods", "get secrets:worker-login"}),
        ("watch", {"list pods", "watch pods", "patch pods", "delete pods", "get pods/log", "list events"}),
        ("serve", set[str]()),
    ],
)
def test_an_account_may_do_what_its_process_does_and_nothing_else(crabpot: Crabpot, account: str, allowed: set[str]) -> None:
    kubeconfig = crabpot.kubeconfig(account)
    assert crabpot.cluster.rights(kubeconfig, crabpot.namespace) == allowed
    for elsewhere in (crabpot.system, "kube-system"):
        assert crabpot.cluster.rights(kubeconfig, elsewhere) == set()
