"""Which entry of a docker config opens which repository, and that none of its secrets shows."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import RegistryDenied, SettingsInvalid
from worker.registry import Anonymous, ByRegistry, Credential, DockerConfig


def config(**auths: Any) -> DockerConfig:
    return DockerConfig.parse(json.dumps({"auths": auths}))


def user(name: str) -> dict[str, str]:
    return {"username": name, "password": "carrot"}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded("ada:carrot")}, Credential(username="ada", password="carrot")),
        ({"auth": encoded("ada:with:colons\0\0")}, Credential(username="ada", password="with:colons")),
        ({"auth": encoded("ada:"), "identitytoken": "t"}, Credential(username="ada", identity_token="t")),
        ({"username": "ada", "password": "carrot"}, Credential(username="ada", password="carrot")),
        ({"username": "ada", "password": "carrot", "auth": encoded("old:old")}, Credential(username="ada", password="carrot")),
        ({"identitytoken": "t"}, Credential(identity_token="t")),
        ({"email": "ada@example.com"}, None),
        ({}, None),
    ],
)
async def test_forms_of_an_entry(entry: dict[str, Any], expected: Credential | None) -> None:
    assert await config(**{"r.test": entry}).find("r.test", "team/app") == expected


@pytest.mark.parametrize(
    ("key", "registry", "repository"),
    [
        ("r.test", "r.test", "a"),
        ("r.test:5000", "r.test:5000", "a"),
        ("https://r.test", "r.test", "a"),
        ("http://r.test:5000/", "r.test:5000", "a"),
        ("https://r.test/v2/", "r.test", "a"),
        ("https://r.test/v1", "r.test", "a"),
        ("R.test", "r.test", "a"),
        ("r.test", "R.TEST", "a"),
        ("r.test/team", "r.test", "team/app"),
        ("r.test/team/app", "r.test", "team/app"),
        ("https://r.test/team/", "r.test", "team/app"),
        ("https://index.docker.io/v1/", "docker.io", "library/x"),
        ("docker.io", "index.docker.io", "library/x"),
        ("registry-1.docker.io", "docker.io", "library/x"),
        ("[::1]:5000", "[::1]:5000", "a"),
    ],
)
async def test_a_key_opens_what_lies_under_it(key: str, registry: str, repository: str) -> None:
    assert await config(**{key: user("ada")}).find(registry, repository) == Credential(username="ada", password="carrot")


@pytest.mark.parametrize(
    ("key", "registry", "repository"),
    [
        ("r.test", "r.test:5000", "a"),
        ("r.test", "x.r.test", "a"),
        ("r.test/team", "r.test", "teams/app"),
        ("r.test/team", "r.test", "team2"),
        ("r.test/v2", "r.test", "a"),
    ],
)
async def test_a_key_opens_nothing_else(key: str, registry: str, repository: str) -> None:
    assert await config(**{key: user("ada")}).find(registry, repository) is None


async def test_the_longest_key_wins_and_the_plain_one_among_equals() -> None:
    mixed = config(
        **{"r.test/team/app": user("app"), "r.test": user("plain"), "https://r.test/v2/": user("scheme"), "r.test/team": user("team")}
    )
    found = [await mixed.find("r.test", repository) for repository in ("team/app/cache", "team/app", "team/other", "other")]
    assert [one.username for one in found if one] == ["app", "app", "team", "plain"]


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": "!!!"},
        {"auth": encoded("no colon")},
        {"auth": base64.b64encode(b"\xff\xfe:x").decode()},
        {"username": 1},
        {"registrytoken": "s3cr3t"},
    ],
)
async def test_a_broken_entry_is_named_but_hurts_only_its_own_registry(entry: dict[str, Any]) -> None:
    mixed = config(**{"r.test": entry, "other.test": user("ada")})
    with pytest.raises(RegistryDenied, match=r"auths\.r\.test") as caught:
        await mixed.find("r.test", "a")
    assert "s3cr3t" not in str(caught.value)
    assert await mixed.find("other.test", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "no object"),
        ('{"auths": []}', None),
        ('{"auths": ["x"]}', "auths"),
        ('{"auths": {"r.test": "s3cr3t"}}', "auths"),
        ('{"credHelpers": "x"}', "credHelpers"),
        ('{"credHelpers": {"r.test": "../../bin/sh"}}', r"credHelpers\.r\.test"),
        ('{"credsStore": "a b"}', "credsStore"),
        ('{"credsStore": ["x"]}', "credsStore"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_config_says_where(text: str, says: str | None) -> None:
    if says is None:  # an empty list, as PHP writes an empty object
        assert DockerConfig.parse(text) == DockerConfig()
        return
    with pytest.raises(SettingsInvalid, match=says) as caught:
        DockerConfig.parse(text, origin="config.json")
    assert str(caught.value).startswith("config.json")
    assert "s3cr3t" not in str(caught.value)


async def test_sources_by_registry() -> None:
    source = ByRegistry({"r.test": config(**{"r.test": user("ada")}), "open.test": Anonymous()})
    assert await source.find("r.test", "a") == Credential(username="ada", password="carrot")
    assert await source.find("open.test", "a") is None
    assert await source.find("other.test", "a") is None


def test_no_repr_shows_a_secret() -> None:
    for value in (
        Credential(username="ada", password="s3cr3t", identity_token="s3cr3t"),
        config(**{"r.test": user("ada") | {"password": "s3cr3t"}}),
    ):
        assert "s3cr3t" not in f"{value!r}{value}"


@given(
    name=st.text(st.characters(exclude_characters=":\0", exclude_categories=["Cs"]), min_size=1),
    password=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
async def test_basic_is_read_back_as_it_was_written(name: str, password: str) -> None:
    credential = Credential(username=name, password=password)
    read = config(**{"r.test": {"auth": credential.basic.removeprefix("Basic ")}})
    assert await read.find("r.test", "a") == credential
