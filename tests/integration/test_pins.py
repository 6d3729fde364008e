"""Pins by the command and over REST: what they name, what they refuse, and what they tell."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import httpx
import pytest
from click.testing import CliRunner

from ledger.errors import CrabpotError, ManifestUnknown, NotFound
from producer.api.app import create_app
from tests.integration.registry_server import RegistryServer, digest_of
from worker.registry_command import command

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def crabpot(settings, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Run `crabpot registry …` against the test's ledger; (exit code, output) or the error that it ends with."""
    monkeypatch.setenv("CRABPOT_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")

    async def run(*words: str, host: str = registry.host) -> tuple[int, str]:
        options = ("--insecure", host) if words[0] == "pin" else ()
        done = await asyncio.to_thread(CliRunner().invoke, command, (*words, *options))
        if isinstance(done.exception, CrabpotError):
            raise done.exception
        return done.exit_code, done.output

    return run


@pytest.fixture
async def http(ledger, settings):
    app = create_app(ledger, settings.model_copy(update={"api_token": "carrot"}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://crabpot", headers={"Authorization": "Bearer carrot"}) as client:
        yield client


async def test_an_image_is_pinned_by_tag_or_digest_listed_and_unpinned(crabpot, registry: RegistryServer, ledger) -> None:
    raw = registry.push_image("pin/app", "1.4")
    name, digest = f"{registry.host}/pin/app", digest_of(raw)
    assert await crabpot("pin", f"{name}:1.4", "--reason", "the customer's") == (0, f"{name}:1.4 is pinned\n")
    code, out = await crabpot("pin", f"{name}:1.4@{digest}", "--reason", "kept", "--json")
    assert (code, json.loads(out)["pin"], json.loads(out)["image"]) == (0, digest, f"{name}:1.4@{digest}")
    assert await ledger.shelf.pins() == {f"{name}:1.4": "the customer's", digest: "kept"}
    listed = json.loads((await crabpot("pins", "--json"))[1])
    assert [(one["pin"], one["reason"], one["by"]) for one in listed] == [(f"{name}:1.4", "the customer's", "ada"), (digest, "kept", "ada")]
    [pinned, _] = await ledger.shelf.pinned()
    assert timedelta(0) <= await ledger.now() - pinned.at < timedelta(minutes=1)
    assert f"{name}:1.4@{digest}\tada\t" in (await crabpot("pins"))[1]
    assert (await crabpot("unpin", digest))[0] == 0
    assert (await crabpot("unpin", f"{name}:1.4"))[0] == 0
    assert await ledger.shelf.pinned() == []
    with pytest.raises(NotFound, match="pins` shows"):
        await crabpot("unpin", f"{name}:1.4")


async def test_what_is_not_there_is_not_pinned_unless_it_is_to_come(crabpot, registry: RegistryServer, ledger) -> None:
    registry.push_image("slip/app", "1")
    slip = f"{registry.host}/slip/app:11"
    for image in (slip, f"{registry.host}/slip/none:1", f"{registry.host}/slip/app@{DIGEST}"):
        with pytest.raises(ManifestUnknown, match=r"nothing was pinned.*--absent"):
            await crabpot("pin", image, "--reason", "x")
    assert await ledger.shelf.pins() == {}
    assert (await crabpot("pin", slip, "--reason", "x", "--absent"))[0] == 0
    assert await ledger.shelf.pins() == {slip: "x"}


async def test_a_registry_that_does_not_answer_keeps_no_image_from_its_pin(crabpot, ledger) -> None:
    code, out = await crabpot("pin", "127.0.0.1:1/team/app:1", "--reason", "x", host="127.0.0.1:1")
    assert code == 0
    assert "pinned all the same" in out
    assert await ledger.shelf.pins() == {"127.0.0.1:1/team/app:1": "x"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pin", "r.example.com/team/app", "--reason", "x"), "name a tag or a digest"),
        (("pin", "r.example.com/team/app:1"), "--reason"),
        (("pin", "r.example.com/team/app:1", "--reason", " "), "say why"),
        (("pin", "app:1", "--reason", "x"), "name the registry"),
        (("unpin", "r.example.com/team/app"), "name a tag or a digest"),
        (("unpin", "sha256:0"), "64 lower-case"),
    ],
)
async def test_what_is_wrong_is_said(crabpot, ledger, words, said) -> None:
    code, out = await crabpot(*words)
    assert (code, said in " ".join(out.split())) == (2, True), out
    assert await ledger.shelf.pins() == {}


async def test_a_pin_from_before_tells_what_is_known_of_it(crabpot, ledger) -> None:
    await ledger.connection.command("HSET", ledger.connection.keys.pins, DIGEST, "put back")
    told = {"pin": DIGEST, "image": DIGEST, "reason": "put back", "by": None, "at": None}
    assert [one.told() for one in await ledger.shelf.pinned()] == [told]
    assert (await crabpot("pins"))[1] == f"{DIGEST}\t\t\tput back\n"


async def test_pins_over_rest(http, ledger) -> None:
    put = await http.put("/v1/registry/pins/r.example.com:5000/team/app:1", json={"reason": "x", "by": "ada"})
    assert (put.status_code, put.json()["pin"], put.json()["by"]) == (200, "r.example.com:5000/team/app:1", "ada")
    assert (await http.put(f"/v1/registry/pins/r.example.com/team/app@{DIGEST}", json={"reason": "y"})).json()["by"] == "REST"
    assert (await http.put(f"/v1/registry/pins/r.example.com/team/app@{DIGEST}", json={"reason": "z"})).status_code == 200
    pins = (await http.get("/v1/registry/pins")).json()["pins"]
    assert [(one["pin"], one["image"], one["reason"]) for one in pins] == [
        ("r.example.com:5000/team/app:1", "r.example.com:5000/team/app:1", "x"),
        (DIGEST, f"r.example.com/team/app@{DIGEST}", "z"),
    ]
    assert (await http.delete(f"/v1/registry/pins/{DIGEST}")).status_code == 204
    assert (await http.delete(f"/v1/registry/pins/{DIGEST}")).status_code == 404
    assert (await http.delete("/v1/registry/pins/r.example.com:5000/team/app:1")).status_code == 204
    assert await ledger.shelf.pinned() == []
    for method, path, body, field in (
        ("PUT", "r.example.com/team/app", {"reason": "x"}, "image"),
        ("PUT", "app:1", {"reason": "x"}, "image"),
        ("PUT", "r.example.com/team/app:1", {}, "reason"),
        ("PUT", "r.example.com/team/app:1", {"reason": " "}, "reason"),
        ("PUT", "r.example.com/team/app:1", {"reason": "x", "why": "y"}, "why"),
        ("DELETE", "r.example.com/team/app", None, "image"),
    ):
        answer = await http.request(method, f"/v1/registry/pins/{path}", json=body)
        assert (answer.status_code, answer.json()["problems"][0]["path"]) == (400, field), answer.text
    assert (await http.get("/v1/registry/pins", headers={"Authorization": "Bearer other"})).status_code == 401
