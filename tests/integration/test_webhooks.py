"""The push webhook: a signed push becomes builds, once; everything else is refused or ignored with its reason."""

from __future__ import annotations

import pytest

from ledger.build import State
from ledger.settings import Settings
from ledger.site import SecretSource
from tests.integration.front_door import SECRET, push, served, signed

A, B = "a" * 40, "b" * 40
HOOK = "/webhooks/github"


@pytest.fixture
async def forge(ledger, projects, settings, monkeypatch):
    monkeypatch.setenv("DEMO_SECRET", SECRET)
    demo = projects.projects["demo"].model_copy(update={"webhook_secret": SecretSource(env="DEMO_SECRET")})
    await ledger.store_projects(projects.model_copy(update={"projects": {**projects.projects, "demo": demo}}))
    async with served(ledger, settings) as client:
        yield client


async def test_a_signed_push_becomes_a_build_from_our_own_clone_url(forge, ledger):
    answer = await forge.post(HOOK, **signed(push(A)))
    assert answer.status_code == 202
    build = await ledger.read(answer.json()["builds"][0])
    assert build.request.source.url == "https://git.example.com/team/demo.git"
    assert build.request.source.commit == A
    assert build.request.destinations == (f"registry.example.com/team/demo:{A}", "registry.example.com/team/demo:latest")


async def test_the_same_push_makes_no_second_build(forge, ledger):
    first = await forge.post(HOOK, **signed(push(A)))
    again = await forge.post(HOOK, **signed(push(A)))
    redelivered = await forge.post(HOOK, **signed(push(A), delivery="d2"))
    assert (first.status_code, again.status_code, redelivered.status_code) == (202, 200, 200)
    assert "delivery" in again.json()["ignored"]
    assert "last one accepted" in redelivered.json()["ignored"]
    for number, commit in enumerate((B, A, B)):
        assert (await forge.post(HOOK, **signed(push(commit), delivery=f"e{number}"))).status_code == 202
    assert (await ledger.count())[State.QUEUED] == 4


async def test_a_ref_that_was_deleted_may_come_back_at_its_commit(forge, ledger):
    assert (await forge.post(HOOK, **signed(push(A)))).status_code == 202
    assert (await forge.post(HOOK, **signed(push("0" * 40, deleted=True), delivery="d2"))).status_code == 200
    assert (await forge.post(HOOK, **signed(push(A), delivery="d3"))).status_code == 202
    assert (await ledger.count())[State.QUEUED] == 2


@pytest.mark.parametrize(
    "delivery",
    [
        signed(push(A), secret="wrong"),
        signed(push(A, name="team/unknown")),
        signed(push(A, name="team/other")),  # a project without a secret
        {**signed(push(A)), "headers": {**signed(push(A))["headers"], "X-Hub-Signature-256": ""}},
        {
            **signed(push(A)),
            "headers": {
                **signed(push(A))["headers"],
                "X-Hub-Signature-256": signed(push(A))["headers"]["X-Hub-Signature-256"].replace("sha256", "sha1"),
            },
        },
        {**signed(push(A)), "content": signed(push(B))["content"]},
    ],
)
async def test_a_stranger_learns_nothing(forge, ledger, delivery):
    answer = await forge.post(HOOK, **delivery)
    known = await forge.post(HOOK, **signed(push(A), secret="wrong"))
    assert (answer.status_code, answer.text) == (401, known.text)
    assert (await ledger.count())[State.QUEUED] == 0


@pytest.mark.parametrize(
    ("delivery", "why"),
    [
        (signed(push("0" * 40)), "deleted"),
        (signed(push(A, deleted=True)), "deleted"),
        (signed(push(A, ref="refs/heads/other")), "no rule"),
        (signed(push(A), event="ping"), "works"),
        (signed(push(A), event="issues"), "only push events"),
    ],
)
async def test_what_makes_no_build_says_why(forge, delivery, why):
    answer = await forge.post(HOOK, **delivery)
    assert answer.status_code == 200
    assert why in answer.json()["ignored"]


@pytest.mark.parametrize(
    ("delivery", "field"),
    [
        (signed(b"{"), "body"),
        (signed([1]), "body"),
        (signed({"ref": "refs/heads/main"}), "repository.full_name"),
        (signed(push(A, ref="main")), "refs/heads/main"),
        (signed(push("abc")), "commit"),
        (signed(push(A), delivery=""), "X-GitHub-Delivery"),
        (
            {**signed(push(A)), "headers": {**signed(push(A))["headers"], "Content-Type": "application/x-www-form-urlencoded"}},
            "Content-Type",
        ),
    ],
)
async def test_a_bad_request_names_its_field(forge, delivery, field):
    answer = await forge.post(HOOK, **delivery)
    assert answer.status_code == 400
    assert field in answer.json()["detail"]


async def test_a_body_beyond_the_cap_is_not_read(ledger, redis_url):
    async with served(ledger, Settings(redis_url=redis_url, webhook_body_limit="1k")) as client:

        async def body():
            for _ in range(100):
                yield b"x" * 100

        for content in (b"x" * 2000, body()):
            assert (await client.post(HOOK, content=content, headers={"Content-Type": "application/json"})).status_code == 413
