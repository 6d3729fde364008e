"""What is read from a registry's answers: challenges, tokens, waiting times, refusals and manifests. No server needed."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledger.errors import (
    ManifestUnknown,
    RateLimited,
    RegistryConfused,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
    RegistryUnsupported,
)
from worker.registry.answers import Answer, parse_retry_after, refusal
from worker.registry.challenges import Challenge, parse_challenges
from worker.registry.manifests import ACCEPT, OCI_INDEX, OCI_MANIFEST, Manifest
from worker.registry.scopes import Scope, granted
from worker.registry.wire import api_host

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://t.test/token",service="s",scope="repository:a:pull,push"'],
            [Challenge("bearer", {"realm": "https://t.test/token", "service": "s", "scope": "repository:a:pull,push"})],
        ),
        (['Basic realm="a \\"b\\", c"'], [Challenge("basic", {"realm": 'a "b", c'})]),
        (["BEARER Realm=x , SERVICE = y"], [Challenge("bearer", {"realm": "x", "service": "y"})]),
        (['Basic realm="x", Bearer realm="y"'], [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})]),
        (["Basic", "Negotiate, Bearer realm=y"], [Challenge("basic"), Challenge("negotiate"), Challenge("bearer", {"realm": "y"})]),
        (["", " , ,"], []),
    ],
)
def test_challenges(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == expected


@given(st.lists(st.text()))
def test_any_header_is_read_to_an_end(headers: list[str]) -> None:
    parse_challenges(headers)


@pytest.mark.parametrize(
    "header", [" " * 60_000 + "=", "a" * 60_000, "a " * 30_000, 'a="' + "\\" * 60_000, "," * 60_000 + "(", "a=" * 30_000]
)
def test_a_hostile_header_costs_no_time(header: str) -> None:
    began = time.process_time()
    parse_challenges([header])
    assert time.process_time() - began < 1


def token(claims: object) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.c2ln"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            token({"access": [{"type": "repository", "name": "a", "actions": ["pull", "push"]}]}),
            [("repository", "a", frozenset({"pull", "push"}))],
        ),
        (token({"access": []}), []),
        (token({"access": [{"type": "repository", "name": "a", "actions": None}]}), [("repository", "a", frozenset())]),
        (token({"access": None}), None),
        (token({"access": [1]}), None),
        (token({}), None),
        (token([]), None),
        ("opaque", None),
        ("a.b.c", None),
        ("a.!.c", None),
    ],
)
def test_what_a_token_grants(text: str, expected: object) -> None:
    assert granted(text) == expected


@given(st.text())
def test_any_token_is_read_to_an_end(text: str) -> None:
    granted(text)


def test_a_scope_is_written_as_token_servers_read_it() -> None:
    assert str(Scope("team/app", ("pull", "push"))) == "repository:team/app:pull,push"
    assert str(Scope("catalog", ("*",), kind="registry")) == "registry:catalog:*"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("17", 17.0),
        (" 17 ", 17.0),
        ("0", 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Friday, 02-Jan-26 03:04:15 GMT", 10.0),
        ("Fri Jan  2 03:04:15 2026", 10.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1e9", None),
        ("9" * 30, None),
        ("٣", None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW) == seconds


@example("0\x1f")  # blank to `strip`, and not to `float`
@given(st.text())
def test_any_retry_after_is_read_to_an_end(text: str) -> None:
    wait = parse_retry_after(text, NOW)
    assert wait is None or wait >= 0


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(
        status=status, headers=httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()}), body=body, host="r.test"
    )


def coded(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": "m"}]}).encode()


@pytest.mark.parametrize(
    ("given_answer", "error", "wait"),
    [
        (answer(429, retry_after="5"), RateLimited, 5),
        (answer(403, coded("TOOMANYREQUESTS")), RateLimited, None),
        (answer(401), RegistryDenied, None),
        (answer(403), RegistryDenied, None),
        (answer(405, coded("UNSUPPORTED")), RegistryUnsupported, None),
        (answer(412, coded("PRECONDITION")), RegistryDenied, None),
        (answer(405), RegistryUnavailable, None),
        (answer(408), RegistryUnavailable, None),
        (answer(500), RegistryUnavailable, None),
        (answer(503, retry_after="5"), RegistryUnavailable, 5),
        (answer(404, coded("MANIFEST_UNKNOWN"), content_type="text/plain"), ManifestUnknown, None),
        (answer(404, content_type="application/json"), ManifestUnknown, None),
        (answer(404, content_type="text/html"), RegistryUnavailable, None),
        (answer(404, content_type="text/html", docker_distribution_api_version="registry/2.0"), ManifestUnknown, None),
        (answer(400, coded("MANIFEST_INVALID")), RegistryConfused, None),
        (answer(418), RegistryConfused, None),
        (answer(400, b'{"errors": 1}'), RegistryConfused, None),
        (answer(400, b'{"errors": [1]}'), RegistryConfused, None),
        (answer(400, b"\xff"), RegistryConfused, None),
    ],
)
def test_refusals(given_answer: Answer, error: type[RegistryError], wait: float | None) -> None:
    refused = refusal(given_answer, "do it", now=NOW)
    assert type(refused) is error
    assert refused.retry_after == wait
    assert str(refused).startswith(f"cannot do it: r.test answered {given_answer.status}")


def test_docker_hubs_api_has_another_host() -> None:
    assert api_host("docker.io") == "registry-1.docker.io"
    assert api_host("r.test:5000") == "r.test:5000"


def described(size: int, **more: object) -> dict[str, object]:
    return {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "a" * 64, "size": size, **more}


def test_a_manifest_is_what_its_bytes_are() -> None:
    raw = json.dumps({"schemaVersion": 2, "config": described(3), "layers": [described(4), described(5)]}, indent=3).encode()
    manifest = Manifest.parse(raw, f"{OCI_MANIFEST}; charset=utf-8")
    assert (manifest.media_type, manifest.image_size, manifest.raw) == (OCI_MANIFEST, 12, raw)
    assert manifest.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert "schemaVersion" not in repr(manifest)


def test_without_a_content_type_the_manifests_own_is_taken() -> None:
    raw = json.dumps({"mediaType": OCI_INDEX, "manifests": []}).encode()
    assert Manifest.parse(raw, None).is_index
    assert Manifest.parse(raw, "application/json").is_index
    assert not Manifest.parse(b"{}", None).is_index


@pytest.mark.parametrize("platform", [{"os": "linux", "architecture": "amd64"}, None, "junk"])
def test_the_first_child_that_is_an_image(platform: object) -> None:
    attestation = described(1, platform={"os": "unknown", "architecture": "unknown"})
    raw = json.dumps({"mediaType": OCI_INDEX, "manifests": [attestation, described(2, platform=platform)]}).encode()
    manifest = Manifest.parse(raw, OCI_INDEX)
    first = manifest.child(None)
    assert first is not None
    assert first.size == 2
    assert (manifest.child("linux/amd64") is first) is isinstance(platform, dict)
    with pytest.raises(RegistryConfused, match="says no image size"):
        _ = manifest.image_size


def test_an_index_that_is_an_image_too_is_refused() -> None:
    with pytest.raises(RegistryConfused, match="at once"):
        Manifest.parse(json.dumps({"manifests": [], "layers": []}).encode(), OCI_INDEX)


LEAF = st.none() | st.integers(-1, 1) | st.floats() | st.text(max_size=3) | st.just("sha256:" + "a" * 64)
DESCRIPTOR = st.dictionaries(
    st.sampled_from(["digest", "size", "platform"]), LEAF | st.dictionaries(st.sampled_from(["os", "architecture"]), LEAF)
)


@settings(max_examples=200)
@given(
    body=st.dictionaries(
        st.sampled_from(["mediaType", "config", "layers", "manifests", "x"]), LEAF | DESCRIPTOR | st.lists(LEAF | DESCRIPTOR, max_size=2)
    ),
    content_type=st.none() | st.sampled_from(ACCEPT.split(", ")) | st.text(),
)
def test_any_manifest_is_read_or_refused(body: dict[str, object], content_type: str | None) -> None:
    raw = json.dumps(body).encode()
    try:
        manifest = Manifest.parse(raw, content_type)
    except RegistryConfused:
        return
    assert manifest.raw == raw
