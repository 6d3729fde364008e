"""`crabpot retention inventory` and `try` as processes: what one prints, the other decides as a plan would."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import run_crabpot
from tests.integration.harbor_server import NEVER, artifact, harbor
from tests.integration.registry_server import PASSWORD, USER, RegistryServer, Reply, digest_of, run_registry, scripted
from tests.integration.retention_site import OLD, RECENT, RetentionSite
from worker.retention.decisions import read_plan
from worker.retention.inventory import Inventory, Origin, Repository, read_inventory

POLICY = {"delete": ["*"], "keep": [{"last": 1}, {"matching": ["stable"]}], "grace": "0s", "max_share": 1.0}


@pytest.fixture(scope="module")
def registry(registry_of_kind: RegistryServer) -> RegistryServer:
    return registry_of_kind


@pytest.fixture
def crabpot(tmp_path: Path):
    return partial(run_crabpot, "retention", HOME=str(tmp_path))


def policy_file(folder: Path, repository: str, policy: dict[str, Any]) -> Path:
    path = folder / "policy.yaml"
    path.write_text(json.dumps({"repositories": [repository], **policy}))  # JSON is YAML
    return path


def in_words(decisions: Any) -> list[tuple[str, str, list[str]]]:
    return sorted((one["image"], one["action"], one["reasons"]) for one in decisions)


async def test_a_policy_that_is_tried_decides_as_a_plan_does(site: RetentionSite, crabpot, tmp_path: Path, redis_url: str) -> None:
    project = {"CRABPOT_REDIS_URL": redis_url, "CRABPOT_CLUSTER": "local", "CRABPOT_STATE": str(tmp_path / "state")}
    await site.settle(POLICY)
    old = site.registry.push_image(site.repository, "old", layers=(b"old",), created=OLD)
    for tag, created in (("stable", OLD), ("older", OLD), ("new", RECENT)):
        site.registry.push_image(site.repository, tag, layers=(tag.encode(),), created=created)
    site.registry.push_index(site.repository, "both", {"linux/amd64": old})
    sha = await site.plan()
    site.registry.push_image(site.repository, "undated", layers=(b"undated",))
    for memory, options in ((project, ["--project", "team"]), ({}, ["--insecure", site.registry.host])):
        code, out, err = await crabpot("inventory", site.name, *options, **memory)
        assert (code, err) == (0, "")
        [repository] = read_inventory(out).repositories
        times = {tag.name: tag.origin for tag in repository.tags}
        assert times == dict.fromkeys(("old", "stable", "older", "new", "both"), Origin.IMAGE) | {
            "undated": Origin.SEEN if memory else None
        }
        (tmp_path / "saved.json").write_text(out)
        policy = policy_file(tmp_path, site.name, POLICY)
        code, tried, err = await crabpot("try", policy, "--inventory", tmp_path / "saved.json", "--json")
        assert (code, err) == (0, "")
        assert await crabpot("try", policy, "--inventory", "-", "--json", given=out) == (0, tried, "")
        if memory:  # a plan has the same memory
            sha = await site.plan()
            [made] = read_plan(await site.ledger.plans.text(sha), sha).repositories
            planned = [
                {
                    "image": f"{made.name}:{one.tag}" if one.tag else f"{made.name}@{one.digest}",
                    "action": str(one.action),
                    "reasons": [str(reason) for reason in one.reasons],
                }
                for one in made.decisions
            ]
            assert in_words(json.loads(tried)["decisions"]) == in_words(planned)
            assert {one["action"] for one in planned} == {"keep", "delete"}
        else:
            assert json.loads(tried)["delete"] == 0
            assert "nobody knows when undated was pushed" in tried


async def test_all_that_a_registry_lists_or_what_is_named(registry: RegistryServer, crabpot) -> None:
    for name in ("listed/a", "listed/b"):
        registry.push_image(name, "1", created=OLD)
    insecure = ("--insecure", registry.host)
    found = read_inventory((await crabpot("inventory", registry.host, *insecure))[1])
    assert {f"{registry.host}/listed/a", f"{registry.host}/listed/b"} <= {one.name for one in found.repositories}
    code, out, _ = await crabpot("inventory", f"{registry.host}/listed/b", f"{registry.host}/listed/none", *insecure)
    assert code == 0
    assert [(one.name, len(one.tags)) for one in read_inventory(out).repositories] == [
        (f"{registry.host}/listed/b", 1),
        (f"{registry.host}/listed/none", 0),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inventory",), "REGISTRY|REPOSITORY"),
        (("inventory", "a.test/x", "b.test/y"), "name one registry"),
        (("inventory", "a.test/x:1"), "is meant with all its tags"),
        (("try", "{policy}", "--inventory", "/nowhere"), "No such file"),
        (("try", "{policy}", "--inventory", "{policy}"), "no stored inventory"),
        (("try", "{policy}", "--inventory", "{bytes}"), "no stored inventory"),
    ],
)
async def test_what_is_wrong_is_said(crabpot, tmp_path: Path, arguments, said) -> None:
    (tmp_path / "bytes").write_bytes(b'{"\xff"}')
    places = {"policy": policy_file(tmp_path, "a.test/x", POLICY), "bytes": tmp_path / "bytes"}
    code, out, err = await crabpot(*(argument.format(**places) for argument in arguments))
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


async def test_trouble_is_told_and_saved_with_the_rest(crabpot) -> None:
    def behave(request: Any) -> Reply:
        if request.path == "/v2/":
            return Reply()
        if request.path == "/v2/team/bad/tags/list":
            return Reply(403, {}, b'{"errors":[{"code":"DENIED","message":"not you"}]}')
        return Reply(404, {"Docker-Distribution-Api-Version": "registry/2.0"})

    async with scripted(behave) as server:
        name = f"{server.host}/team"
        code, out, err = await crabpot("inventory", f"{name}/bad", f"{name}/good", "--insecure", server.host)
        assert (code, f"{name}/bad was not wholly read" in err, "DENIED: not you" in err) == (1, True, True)
        bad, good = read_inventory(out).repositories
        assert good == Repository(name=f"{name}/good", untold=good.untold)
        assert "DENIED" in str(bad.trouble)


async def test_what_a_registry_tells_of_pulls_is_saved_too(crabpot, tmp_path: Path) -> None:
    lately = (datetime.now(UTC) - timedelta(days=3)).replace(microsecond=0)
    with run_registry(tmp_path / "behind") as behind:
        raws = {tag: behind.push_image("team/app", tag, layers=(tag.encode(),), created=OLD) for tag in ("used", "unused")}
        behind.push_image("team/app", "new", layers=(b"new",), created=RECENT)
        async with harbor(behind=behind) as server:
            server.artifacts["team/app"] = [
                artifact(digest_of(raws["used"]), lately.isoformat(), {"used": NEVER}),
                artifact(digest_of(raws["unused"]), NEVER, {"unused": NEVER}),
            ]
            (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: {"username": USER, "password": PASSWORD}}}))
            reach = ("--insecure", server.host, "--docker-config", tmp_path / "config.json")
            code, out, err = await crabpot("inventory", f"{server.host}/team/app", *reach)
            assert (code, err) == (0, "")
            [repository] = read_inventory(out).repositories
            pulled = {tag.name: tag.pulled for tag in repository.tags}
            assert pulled == {"used": lately, "unused": datetime(1, 1, 1, tzinfo=UTC), "new": None}
            policy = policy_file(tmp_path, f"{server.host}/team/app", {**POLICY, "keep": [{"pulled": "30d"}]})
            code, out, _ = await crabpot("try", policy, "--inventory", "-", "--json", given=out)
            assert {one["image"].rpartition(":")[2]: one["action"] for one in json.loads(out)["decisions"]} == {
                "used": "keep",
                "unused": "delete",
                "new": "keep",
            }


def test_an_inventory_of_before_there_were_pulls_is_read() -> None:
    text = '{"version":1,"registry":"a.test","taken":"2026-01-01T00:00:00+00:00","untags":true,"repositories":[{"name":"a.test/x","trouble":null,"manifests":[],"tags":[{"name":"1","digest":"sha256:1"}]}]}'
    found = read_inventory(text)
    assert isinstance(found, Inventory)
    assert (found.repositories[0].tags[0].pulled, found.repositories[0].untold) == (None, None)
    assert found.text() == json.dumps(json.loads(text), separators=(",", ":"), sort_keys=True)
