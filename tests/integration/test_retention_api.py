"""Plans and clusters' reports over REST."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
import pytest

from ledger.chores import ChoreState
from ledger.projects import parse_projects
from producer.api.app import create_app

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
async def http(ledger, settings, monkeypatch):
    monkeypatch.setenv("PROD_TOKEN", "carrot")
    await ledger.store_projects(parse_projects("version: 1\nclusters: {prod: {token: {env: PROD_TOKEN}}}\nprojects: {}\n"))
    app = create_app(ledger, settings.model_copy(update={"api_token": "other"}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://crabpot", headers={"Authorization": "Bearer other"}) as client:
        yield client


async def test_a_cluster_reports_with_its_own_token_only(http, ledger):
    body = {"images": {f"a.test/x@{DIGEST}": "pod a/b", "a.test/y:1": "job c"}}
    for token, name in (("other", "prod"), ("carrot", "none"), ("", "prod")):
        answer = await http.put(f"/v1/clusters/{name}/images", json=body, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401
    mine = {"Authorization": "Bearer carrot"}
    assert (await http.put("/v1/clusters/prod/images", json=body, headers=mine)).status_code == 204
    assert await ledger.usage.report("prod", await ledger.now()) == {DIGEST: "pod a/b", "a.test/y:1": "job c"}
    for wrong in ({"images": {"a.test/y": "untagged"}}, {"images": 1}, {}):
        assert (await http.put("/v1/clusters/prod/images", json=wrong, headers=mine)).status_code == 400
    assert (await http.get("/v1/retention/plans", headers=mine)).status_code == 401


async def test_a_cluster_that_workers_ask_takes_no_report(http, ledger):
    said = "{prod: {token: {env: PROD_TOKEN}}, asked: {kubeconfig: /etc/asked.yaml}, here: {in_cluster: true}}"
    await ledger.store_projects(parse_projects(f"version: 1\nclusters: {said}\nprojects: {{}}\n"))
    for name in ("asked", "here"):
        for token in ("carrot", "other", ""):
            answer = await http.put(f"/v1/clusters/{name}/images", json={"images": {}}, headers={"Authorization": f"Bearer {token}"})
            assert (answer.status_code, "takes no reports" in answer.json()["detail"]) == (401, True)
        assert await ledger.usage.report(name, await ledger.now()) is None


async def test_plans_are_listed_approved_once_and_undone(http, ledger):
    sha = "b" * 64
    await ledger.plans.store(sha, "{}", "a.test", await ledger.now(), {"delete": 2})
    await ledger.plans.store("c" * 64, "{}", "a.test", datetime(2026, 1, 1, tzinfo=UTC), {})
    assert [one["plan"][0] for one in (await http.get("/v1/retention/plans")).json()["plans"]] == ["b", "c"]
    assert (await http.get(f"/v1/retention/plans/{sha[:8]}")).json()["delete"] == 2
    answer = await http.post(f"/v1/retention/plans/{sha}/approve", json={"by": "ada", "despite": ["prod"]})
    assert (answer.status_code, answer.json()["state"], answer.json()["approved_by"]) == (202, "approved", "ada")
    answer = await http.post(f"/v1/retention/plans/{sha}/approve", json={"despite": ["prod", "pord"]})
    assert (answer.status_code, answer.json()["problems"][0]["path"], answer.json()["problems"][0]["given"]) == (400, "despite", "'pord'")
    assert (await http.post(f"/v1/retention/plans/{'c' * 64}/approve")).status_code == 409
    assert (await http.post(f"/v1/retention/plans/{'d' * 64}/undo")).status_code == 404
    assert (await http.post(f"/v1/retention/plans/{sha}/undo")).status_code == 202
    assert {chore.name for chore in await ledger.chores.all()} == {f"apply:{sha}", f"undo:{sha}"}


async def test_a_plan_is_asked_for_and_its_chore_tells_the_hash(http, ledger):
    asked = await http.post("/v1/retention/plans", json={"registry": "a.test:5000"})
    assert (asked.status_code, asked.json()["chore"], asked.json()["state"]) == (202, "plan:a.test:5000", "waiting")
    assert (await http.post("/v1/retention/plans", json={"registry": "a.test:5000"})).status_code == 200
    assert asked.headers["location"] == "/v1/chores/plan:a.test:5000"
    claim = await ledger.chores.claim("plan:a.test:5000")
    await claim.end(ChoreState.DONE, "b" * 64)
    found = (await http.get(asked.headers["location"])).json()
    assert (found["state"], found["said"]) == ("done", "b" * 64)
    assert (await http.get("/v1/chores/plan:none.test")).status_code == 404
    for body, field in (({}, "registry"), ({"registry": "http://x"}, "registry"), ({"registry": "a.test", "force": True}, "force")):
        answer = await http.post("/v1/retention/plans", json=body)
        assert (answer.status_code, answer.json()["problems"][0]["path"]) == (400, field)
    anyone = {"Authorization": "Bearer carrot"}
    assert (await http.post("/v1/retention/plans", json={"registry": "a.test"}, headers=anyone)).status_code == 401


async def test_a_registry_is_adopted_with_the_times_that_are_told(http, ledger):
    asked = await http.post("/v1/retention/adoptions", json={"registry": "a.test:5000"})
    assert (asked.status_code, asked.json()["chore"], asked.json()["registry"]) == (202, "adopt:a.test:5000", "a.test:5000")
    assert (await http.post("/v1/retention/adoptions", json={"registry": "a.test:5000", "times": {}})).status_code == 200
    times = {"a.test/team/app:1": "2025-01-01T00:00:00Z", "a.test/team/app:2": "2025-01-01T02:00:00+02:00"}
    asked = await http.post("/v1/retention/adoptions", json={"repository": "a.test/team/app", "times": times})
    assert (asked.status_code, asked.headers["location"]) == (202, "/v1/chores/adopt:a.test/team/app")
    assert (await http.get(asked.headers["location"])).json()["state"] == "waiting"
    at = datetime(2025, 1, 1, tzinfo=UTC)
    assert await ledger.shelf.told("a.test/team/app") == {"1": at, "2": at}
    refused = await http.post("/v1/retention/adoptions", json={"repository": "a.test/team/app", "times": times})
    assert (refused.status_code, "is under way" in refused.json()["detail"]) == (409, True)
    anyone = {"Authorization": "Bearer carrot"}
    assert (await http.post("/v1/retention/adoptions", json={"registry": "a.test"}, headers=anyone)).status_code == 401


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "registry"),
        ({"registry": "a.test", "repository": "a.test/app"}, "registry"),
        ({"registry": "http://x"}, "registry"),
        ({"registry": "a.test/app"}, "registry"),
        ({"repository": "a.test"}, "repository"),
        ({"repository": "a.test/app:1"}, "repository"),
        ({"registry": "a.test", "force": True}, "force"),
        ({"registry": "a.test", "times": ["a.test/app:1"]}, "times"),
        ({"registry": "a.test", "times": {"a.test/app:1": "yesterday"}}, "times.a.test/app:1"),
        ({"registry": "a.test", "times": {"b.test/app:1": "2025-01-01T00:00:00Z"}}, "times.b.test/app:1"),
        ('{"registry": "a.test", "registry": "b.test"}', "registry"),
        ('{"registry": "a.test", "times": {"a.test/app:1": 1, "a.test/app:1": 2}}', "a.test/app:1"),
        ('{"registry": "a.test", "times": {"\\ud800": 1}}', ""),
        ("[]", "request"),
        ("{", ""),
    ],
)
async def test_a_wrong_adoption_is_refused_naming_the_field_and_nothing_is_begun(http, ledger, body, path):
    answer = await http.post("/v1/retention/adoptions", content=body if isinstance(body, str) else json.dumps(body))
    assert (answer.status_code, [one["path"] for one in answer.json()["problems"]]) == (400, [path])
    assert await ledger.chores.all() == []
