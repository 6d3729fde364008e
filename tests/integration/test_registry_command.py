"""`crabpot registry` as a process against real registries: what it prints, what it refuses, and whose credentials it uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger.projects import parse_projects
from tests.integration.commands import run_crabpot
from tests.integration.registry_kinds import KINDS
from tests.integration.registry_server import (
    OCI_MANIFEST,
    PASSWORD,
    USER,
    RegistryServer,
    Reply,
    Request,
    digest_of,
    run_registry,
    scripted,
)


@pytest.fixture
def crabpot(registry: RegistryServer, tmp_path: Path):
    """Run `crabpot registry …` as a user without a docker config; (exit code, standard output, standard error)."""

    async def run(*arguments: str, host: str = registry.host, **environment: str) -> tuple[int, str, str]:
        options = [] if "--project" in arguments else ["--insecure", host]
        return await run_crabpot("registry", *arguments, *options, **{"HOME": str(tmp_path), **environment})

    return run


def tag(registry: RegistryServer, repository: str, name: str, raw: bytes) -> None:
    with registry.http() as http:
        http.put(f"{repository}/manifests/{name}", content=raw, headers={"Content-Type": OCI_MANIFEST}).raise_for_status()


async def test_looking_around(registry: RegistryServer, crabpot) -> None:
    raw = registry.push_image("look/app", "1", layers=(b"x" * 3000,), labels={"team": "red"}, created="2026-01-02T03:04:05Z")
    index = registry.push_index("look/app", "both", {"linux/amd64": raw})
    assert "look/app\n" in (await crabpot("ls", registry.host))[1]
    assert (await crabpot("tags", f"{registry.host}/look/app"))[1] == "1\nboth\n"
    assert (await crabpot("tags", "--digests", f"{registry.host}/look/app"))[1] == f"1\t{digest_of(raw)}\nboth\t{digest_of(index)}\n"
    code, out, _ = await crabpot("tags", "--digests", "--json", f"{registry.host}/look/app")
    assert (code, json.loads(out)[0]) == (0, {"tag": "1", "digest": digest_of(raw)})
    code, out, _ = await crabpot("show", f"{registry.host}/look/app:1")
    assert code == 0
    for part in (digest_of(raw), "KiB", "2026-01-02T03:04:05Z", "team=red", digest_of(b"x" * 3000)):
        assert part in out
    code, out, _ = await crabpot("show", "--json", f"{registry.host}/look/app:both")
    assert [one["platform"] for one in json.loads(out)["platforms"]] == ["linux/amd64"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "{host}/none/app:1"), 3, "manifest"),
        (("tags", "{host}/none/app"), 3, "tags"),
        (("rm", "--yes", "{host}/none/app:1"), 3, "there is no"),
        (("untag", "{host}/none/app:1"), 3, ""),
        (("untag", "{host}/none/app"), 2, "name a tag"),
        (("show", "app:1"), 2, "name the registry"),
        (("ls", "http://x"), 2, "registry"),
        (("rm", "--yes", "{host}/a:1", "{host}/b:1"), 2, "one repository"),
        (("cp", "{host}/a:1", "{host}/b@sha256:" + "0" * 64), 2, "a target has a tag"),
    ],
)
async def test_what_is_wrong_is_said_with_an_exit_code(registry: RegistryServer, crabpot, arguments, code, said) -> None:
    found, out, err = await crabpot(*(argument.format(host=registry.host) for argument in arguments))
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


async def test_an_image_is_shown_where_nobody_knows_what_refers_to_it(crabpot) -> None:
    config = b"{}"
    about = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": len(config)}
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": about, "layers": []}).encode()

    def behave(request: Request) -> Reply:
        if "/referrers/" in request.path:
            return Reply(403)
        return Reply(200, {"Content-Type": OCI_MANIFEST}, config if "/blobs/" in request.path else raw)

    async with scripted(behave) as server:
        code, out, err = await crabpot("show", f"{server.host}/team/app:1", host=server.host)
        assert (code, digest_of(raw) in out, "what refers to it is not known" in err) == (0, True, True)
        code, out, _ = await crabpot("show", "--json", f"{server.host}/team/app:1", host=server.host)
        assert (code, json.loads(out)["referrers"]) == (0, None)


async def test_copying(registry: RegistryServer, crabpot, tmp_path: Path) -> None:
    raw = registry.push_image("copy/app", "1", layers=(b"copied",))
    code, out, _ = await crabpot("cp", f"{registry.host}/copy/app:1", f"{registry.host}/copied/app")
    assert (code, out) == (0, f"{registry.host}/copied/app:1@{digest_of(raw)}\n")
    with run_registry(tmp_path / "other") as other:
        arguments = ("cp", "--json", "--insecure", other.host, f"{registry.host}/copy/app@{digest_of(raw)}", f"{other.host}/far/app:2")
        code, out, _ = await crabpot(*arguments)
        assert (code, json.loads(out)) == (0, {"image": f"{other.host}/far/app:2", "digest": digest_of(raw)})
        with other.http() as http:
            assert http.get("far/app/manifests/2", headers={"Accept": OCI_MANIFEST}).content == raw


async def test_removing_asks_for_every_tag_and_leaves_parts_of_indexes(registry: RegistryServer, crabpot) -> None:
    raw = registry.push_image("rm/app", "1", layers=(b"rm",))
    tag(registry, "rm/app", "latest", raw)
    child = registry.push_image("rm/app", "amd", layers=(b"amd",))
    registry.push_index("rm/app", "both", {"linux/amd64": child})
    name = f"{registry.host}/rm/app"
    code, _, err = await crabpot("rm", "--yes", f"{name}:1")
    assert (code, "is also latest" in err) == (5, True)
    code, _, err = await crabpot("rm", "--yes", f"{name}:amd")
    assert (code, "part of the index" in err) == (5, True)
    code, _, err = await crabpot("rm", f"{name}:1", f"{name}:latest")
    assert (code, "--yes" in err) == (2, True)
    code, out, _ = await crabpot("rm", "--dry-run", f"{name}:1", f"{name}:latest")
    assert (code, out) == (0, f"{digest_of(raw)}\t1, latest\twould be removed\n")
    assert (await crabpot("tags", name))[1] == "1\namd\nboth\nlatest\n"
    code, out, _ = await crabpot("rm", "--yes", "--json", f"{name}:1", f"{name}:latest")
    assert json.loads(out)["removed"] == [{"digest": digest_of(raw), "tags": ["1", "latest"]}]
    assert (await crabpot("tags", name))[1] == "amd\nboth\n"
    code, _, err = await crabpot("untag", f"{name}:amd")
    assert (code, "cannot take a tag away alone" in err) == (1, True)


async def test_what_is_used_is_not_removed_and_without_a_ledger_that_is_said(registry, crabpot, ledger, redis_url: str) -> None:
    registry.push_image("rm/pinned", "1", layers=(b"pinned",))
    name = f"{registry.host}/rm/pinned:1"
    await ledger.shelf.pin(name, "the audit")
    for command in (("rm", "--yes"), ("untag",)):
        code, _, err = await crabpot(*command, name, CRABPOT_REDIS_URL=redis_url)
        assert (code, f"{name} stays (pinned: the audit)" in err) == (5, True), err
    await ledger.shelf.unpin(name)
    file = "version: 1\nprojects: {}\nclusters: {prod: {token: {env: PROD_TOKEN}}, other: {token: {env: OTHER_TOKEN}}}\n"
    await ledger.store_projects(parse_projects(file))
    await ledger.usage.store("prod", {name: "deployment shop/web"}, await ledger.now())
    code, _, err = await crabpot("rm", "--yes", name, CRABPOT_REDIS_URL=redis_url)
    assert (code, "stays (running: deployment shop/web of the cluster prod)" in err, "the cluster other did not say" in err) == (
        5,
        True,
        True,
    )
    code, out, err = await crabpot("rm", "--yes", name, CRABPOT_REDIS_URL="redis://127.0.0.1:1/0")
    assert (code, "removed" in out, "nobody could see what is used or pinned" in err) == (0, True, True)


async def test_untagging_where_the_registry_can(crabpot, tmp_path: Path) -> None:
    if KINDS["distribution-3"].binary is None:
        pytest.skip("there is no distribution 3")
    with KINDS["distribution-3"].run(tmp_path / "three") as three:
        raw = three.push_image("untag/app", "1")
        tag(three, "untag/app", "2", raw)
        name = f"{three.host}/untag/app"
        assert (await crabpot("untag", f"{name}:1", host=three.host))[0] == 0
        assert (await crabpot("tags", name, host=three.host))[1] == "2\n"
        code, _, err = await crabpot("untag", f"{name}:2", host=three.host)
        assert (code, "last tag" in err) == (5, True)


async def test_a_tag_whose_manifest_is_gone_is_removed_alone_where_the_registry_can(
    registry: RegistryServer, crabpot, tmp_path: Path
) -> None:
    if KINDS["distribution-3"].binary is None:
        pytest.skip("there is no distribution 3")
    with KINDS["distribution-3"].run(tmp_path / "three") as three:
        for server in (registry, three):
            for one in ("1", "2"):
                raw = server.push_image("broken/app", one, layers=(one.encode(),))
                server.lose_manifest("broken/app", raw)
            server.push_image("broken/app", "sound")
        name = f"{three.host}/broken/app"
        code, _, err = await crabpot("rm", "--yes", f"{name}:1", f"{name}:sound", host=three.host)
        assert (code, "remove that tag first" in err) == (1, True)
        code, out, _ = await crabpot("rm", "--dry-run", f"{name}:1", host=three.host)
        assert (code, out) == (0, "its manifest was gone\t1\twould be removed\n")
        code, out, _ = await crabpot("rm", "--yes", "--json", f"{name}:1", host=three.host)
        assert (code, json.loads(out)["removed"]) == (0, [{"digest": None, "tags": ["1"]}])
        code, out, _ = await crabpot("untag", f"{name}:2", host=three.host)
        assert (code, "was gone already" in out) == (0, True)
        assert (await crabpot("tags", name, host=three.host))[1] == "sound\n"
        for command in (("rm", "--yes"), ("untag",)):
            code, _, err = await crabpot(*command, f"{registry.host}/broken/app:1")
            assert (code, "push any image to it, and remove that" in err) == (1, True)


async def test_a_broken_tag_that_is_pinned_stays(registry: RegistryServer, crabpot, ledger, redis_url: str) -> None:
    registry.lose_manifest("broken/pinned", registry.push_image("broken/pinned", "1", layers=(b"broken and pinned",)))
    name = f"{registry.host}/broken/pinned:1"
    await ledger.shelf.pin(name, "the audit")
    code, _, err = await crabpot("rm", "--yes", name, CRABPOT_REDIS_URL=redis_url)
    assert (code, f"{name} stays (pinned: the audit)" in err) == (5, True)


async def test_tags_of_retention_are_hidden_and_are_no_last_tag(registry: RegistryServer, crabpot) -> None:
    raw, name = registry.push_image("bin/app", "1", layers=(b"bin",)), f"{registry.host}/bin/app"
    hidden = f"crabpot-quarantine-{digest_of(b'gone')[7:]}"
    tag(registry, "bin/app", hidden, raw)
    assert (await crabpot("tags", name))[1] == "1\n"
    assert json.loads((await crabpot("tags", "--json", name))[1]) == [{"tag": "1"}]
    assert (await crabpot("tags", "--all", name))[1] == f"1\n{hidden}\n"
    code, _, err = await crabpot("untag", f"{name}:1")
    assert (code, "last tag" in err) == (5, True)


async def test_credentials_of_the_user_of_a_file_and_of_a_project(crabpot, tmp_path: Path, ledger, redis_url: str) -> None:
    with run_registry(tmp_path / "closed", htpasswd=True) as closed:
        closed.push_image("closed/app", "1")
        name = f"{closed.host}/closed/app"
        code, _, err = await crabpot("tags", name, host=closed.host)
        assert (code, "none is configured" in err) == (1, True)
        auths = {"auths": {closed.host: {"username": USER, "password": PASSWORD}}}
        (tmp_path / "file.json").write_text(json.dumps(auths))
        assert (await crabpot("tags", "--docker-config", str(tmp_path / "file.json"), name, host=closed.host))[1] == "1\n"
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker/config.json").write_text(json.dumps(auths))
        assert (await crabpot("tags", name, host=closed.host))[1] == "1\n"
        (tmp_path / ".docker/config.json").unlink()
        text = f"version: 1\nprojects:\n  shop:\n    registries: {{'{closed.host}': {{insecure: true, docker_config: {tmp_path}/file.json}}}}\n"
        await ledger.store_projects(parse_projects(text))
        settings = {"CRABPOT_REDIS_URL": redis_url, "CRABPOT_CLUSTER": "local", "CRABPOT_STATE": str(tmp_path / "state")}
        assert await crabpot("tags", "--project", "shop", name, **settings) == (0, "1\n", "")
        code, _, err = await crabpot("tags", "--project", "none", name, **settings)
        assert (code, "no project none" in err) == (3, True)
        code, _, err = await crabpot("tags", "--project", "shop", "--insecure", closed.host, name, **settings)
        assert (code, "leave the other options out" in err) == (2, True)
