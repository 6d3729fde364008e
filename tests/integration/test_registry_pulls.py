"""When tags were pulled, as registries tell it: what is asked and with which rights, what is believed, and what a plan makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import RegistryError, RegistryUnsupported
from ledger.references import ImageReference
from ledger.settings import Settings
from tests.integration.harbor_server import BASIC, JSON, NEVER, Harbor, artifact, harbor
from tests.integration.registry_kinds import KINDS
from tests.integration.registry_server import (
    OCI_INDEX,
    PASSWORD,
    USER,
    RegistryServer,
    Reply,
    Request,
    digest_of,
    run_registry,
    scripted,
)
from tests.integration.retention_site import OLD, RECENT, retention_site
from worker.registry import Anonymous, Credential, Credentials, DockerConfig, RegistryReader
from worker.registry import pulls as module
from worker.registry.pulls import NEVER as NONE
from worker.registry.pulls import Pulls
from worker.retention.decisions import Action, Plan, read_plan
from worker.retention.pulled import ask_pulls

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def ada(host: str) -> DockerConfig:
    return DockerConfig(auths={host: {"username": USER, "password": PASSWORD}})


async def told(host: str, repository: str, credentials: Credentials | None = None, product: str | None = "Harbor") -> Pulls:
    async with RegistryReader(credentials or Anonymous(), insecure=frozenset({host})) as reader:
        return await reader.pulls(product, ImageReference(host, repository), NOW)


async def asked(host: str, repository: str, credentials: Credentials | None = None) -> Pulls:
    async with RegistryReader(credentials or Anonymous(), insecure=frozenset({host})) as reader:
        [(name, found)] = (await ask_pulls(reader, host, [repository], NOW)).items()
        assert name == f"{host}/{repository}"
        return found


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


async def test_harbor_tells_of_artifacts_and_of_tags_and_the_later_counts() -> None:
    async with harbor() as server:
        server.artifacts["team/shop/app"] = [
            artifact(ONE, "2026-02-01T10:00:00.123Z", {"by-digest": "2025-01-01T00:00:00.000Z", "never-itself": NEVER}),
            artifact(TWO, NEVER, {"never": NEVER}),
            artifact("sha256:" + "3" * 64, "2026-02-02T00:00:00.000Z", None),
        ]
        found = await asked(server.host, "team/shop/app", ada(server.host))
        late = at(2026, 2, 1, 10, 0, 0, 123_000)
        assert found == Pulls({"by-digest": (ONE, late), "never-itself": (ONE, late), "never": (TWO, NONE)})
        assert (found.of("by-digest", ONE), found.of("by-digest", TWO), found.of("other", ONE)) == (late, None, None)
        [request] = server.asked_its_api()
        assert request.path == "/api/v2.0/projects/team/repositories/shop%252Fapp/artifacts"
        assert request.query == {"with_tag": ["true"], "page": ["1"], "page_size": ["100"]}


async def test_harbor_is_read_page_by_page_with_one_look_for_the_credential() -> None:
    looked = []

    class Helper:
        async def find(self, registry: str, repository: str) -> Credential | None:
            looked.append(repository)
            return Credential(username=USER, password=PASSWORD)

    async with harbor() as server:
        server.artifacts["team/app"] = [
            artifact(f"sha256:{number:064x}", "2026-02-01T10:00:00.000Z", {f"t{number}": NEVER}) for number in range(250)
        ]
        found = await asked(server.host, "team/app", Helper())
        assert found.last.keys() == {f"t{number}" for number in range(250)}
        assert [request.query["page"] for request in server.asked_its_api()] == [["1"], ["2"], ["3"]]
        assert looked == ["team/app"]


async def test_the_password_goes_to_harbors_api_and_nowhere_else() -> None:
    async with harbor() as server, scripted(lambda request: Reply(200, JSON, b"[]")) as elsewhere:
        server.artifacts["team/app"] = [artifact(ONE, NEVER, {"a": "2026-02-01T10:00:00.000Z"})]
        await asked(server.host, "team/app", ada(server.host))
        sent = {request.path for request in server.requests if request.headers.get("authorization") == BASIC}
        assert sent == {"/api/v2.0/projects/team/repositories/app/artifacts"}
        server.instead = lambda request: Reply(302, {"Location": f"http://{elsewhere.host}{request.path}"})
        assert (await asked(server.host, "team/app", ada(server.host))).last == {}
        assert elsewhere.requests
        assert not any("authorization" in request.headers for request in elsewhere.requests)


async def test_the_password_is_not_sent_to_a_registry_whose_tokens_are_made_elsewhere() -> None:
    async with harbor(realm="http://tokens.example.com/service/token") as server:
        found = await asked(server.host, "team/app", ada(server.host))
        assert "tokens made by tokens.example.com" in str(found.untold)
        assert not server.asked_its_api()
    async with harbor(realm="no address") as server:
        assert "names no token server" in str((await asked(server.host, "team/app", ada(server.host))).untold)


async def test_a_credential_that_does_not_open_harbors_api_says_so() -> None:
    async with harbor() as server:
        server.artifacts["team/app"] = [artifact(ONE, NEVER, {"a": NEVER})]
        assert "answered 401" in str((await asked(server.host, "team/app")).untold)
        token = DockerConfig(auths={server.host: {"auth": "", "identitytoken": "identity"}})
        assert "user and password" in str((await asked(server.host, "team/app", token)).untold)
        server.instead = lambda request: Reply(403, JSON, b'{"errors":[{"code":"FORBIDDEN","message":"forbidden"}]}')
        assert "answered 403 (FORBIDDEN" in str((await asked(server.host, "team/app", ada(server.host))).untold)


async def test_an_open_harbor_is_sent_no_password() -> None:
    async with harbor(guarded=False) as server:
        server.artifacts["team/app"] = [artifact(ONE, NEVER, {"a": "2026-02-01T10:00:00.000Z"})]
        assert (await asked(server.host, "team/app", ada(server.host))).last.keys() == {"a"}
        assert not any("authorization" in request.headers for request in server.requests)


async def test_where_nothing_was_ever_pulled_pulls_may_not_be_written_down() -> None:
    """Harbor has a switch for that (PULL_TIME_UPDATE_DISABLE), and then answers as if."""
    async with harbor() as server:
        server.artifacts["team/app"] = [artifact(ONE, NEVER, {"a": NEVER, "b": NEVER})]
        found = await asked(server.host, "team/app", ada(server.host))
        assert found.last == {}
        assert "may not write pulls down" in str(found.untold)


GOOD = artifact(ONE, "2026-02-01T10:00:00.000Z", {"a": NEVER})


@pytest.mark.parametrize(
    "body",
    [
        b"<html>sign in</html>",
        b"{",
        b'"Pong"',
        b'{"artifacts": []}',
        b"[1]",
        b"[" * 100_000,
        b"[{}]",
        b'[{"digest": null}]',
        json.dumps([GOOD | {"digest": "sha256:1"}]).encode(),
        json.dumps([GOOD | {"digest": "sha512:" + "1" * 128}]).encode(),
        json.dumps([GOOD | {"tags": "a"}]).encode(),
        json.dumps([GOOD | {"tags": ["a"]}]).encode(),
        json.dumps([GOOD | {"tags": [{"name": 1, "pull_time": NEVER}]}]).encode(),
        json.dumps([GOOD | {"pull_time": "yesterday"}]).encode(),
        json.dumps([GOOD | {"pull_time": 1_700_000_000}]).encode(),
        json.dumps([GOOD | {"pull_time": "0001-01-01T00:00:00+23:00"}]).encode(),
        json.dumps([GOOD | {"pull_time": "2026-03-02T00:00:00.000Z"}]).encode(),
    ],
)
async def test_what_harbor_cannot_mean_is_not_believed(body: bytes) -> None:
    async with harbor() as server:
        server.instead = lambda request: Reply(200, JSON, body)
        found = await asked(server.host, "team/app", ada(server.host))
        assert found.last == {}
        assert server.host in str(found.untold)


@pytest.mark.parametrize("reply", [Reply(500), Reply(404, {"Content-Type": "text/plain"}), Reply(404, JSON, b"{}"), Reply(302), None])
async def test_an_api_that_fails_tells_nothing(reply: Reply | None) -> None:
    async with harbor() as server:
        server.instead = lambda request: reply
        found = await asked(server.host, "team/app", ada(server.host))
        assert (found.last, bool(found.untold)) == ({}, True)


async def test_what_harbor_says_nothing_of_is_not_known() -> None:
    silent = artifact(TWO, NEVER, {"silent": NEVER})
    async with harbor() as server:
        for one in ({**silent, "pull_time": None}, {**silent, "tags": [{"name": "silent"}]}):
            server.artifacts["team/app"] = [GOOD, one]
            assert (await told(server.host, "team/app", ada(server.host))).last.keys() == {"a"}


async def test_a_list_of_artifacts_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    more = JSON | {"Link": '</api/v2.0/x?page=2>; rel="next"'}
    async with harbor() as server:
        for body in (b"[]", b"null", json.dumps([GOOD]).encode()):
            server.instead = lambda request, body=body: Reply(200, more, body)
            assert "without an end" in str((await asked(server.host, "team/app", ada(server.host))).untold)
        monkeypatch.setattr(module, "_MAX_PAGES", 3)
        server.instead = lambda request: Reply(
            200, more, json.dumps([artifact(f"sha256:{int(request.query['page'][0]):064x}", NEVER, None)]).encode()
        )
        assert "without an end" in str((await asked(server.host, "team/app", ada(server.host))).untold)


async def test_a_registry_that_tells_no_pull_times(tmp_path: Path) -> None:
    with run_registry(tmp_path) as server:
        server.push_image("team/app", "1")
        assert "tells no pull times" in str((await asked(server.host, "team/app")).untold)
    found = await asked("127.0.0.1:1", "team/app")
    assert "did not answer" in str(found.untold)
    async with RegistryReader(Anonymous()) as reader:
        assert await ask_pulls(reader, "registry.invalid", [], NOW) == {}


def zot_answer(*images: tuple[str, Any, Any], total: int | None = None) -> dict[str, Any]:
    results = [{"Tag": tag, "Digest": digest, "LastPullTimestamp": at} for tag, digest, at in images]
    page = {"TotalCount": len(images) if total is None else total}
    return {"data": {"ImageList": {"Results": results, "Page": page}}}


LATELY = "2026-02-01T10:00:00.123456789Z"
BROKEN: list[Any] = [
    {"errors": [{"message": "no such field"}], "data": None},
    {"data": None},
    {"data": {"ImageList": {"Results": [], "Page": {}}}},
    {"data": {"ImageList": {"Results": {}, "Page": {"TotalCount": 1}}}},
    zot_answer(("a", ONE, "soon")),
    zot_answer(("a", ONE, "2026-03-02T00:00:00Z")),
    zot_answer(("a", "sha256:1", LATELY)),
    zot_answer((1, ONE, LATELY)),  # type: ignore[arg-type]
    zot_answer(("a", ONE, LATELY), total=3),
    zot_answer(("a", ONE, LATELY), total="many"),  # type: ignore[arg-type]
    [],
]


@pytest.mark.parametrize("body", BROKEN)
async def test_what_zot_cannot_mean_is_not_believed(body: Any) -> None:
    async with scripted(lambda request: Reply(200, JSON, json.dumps(body).encode())) as server:
        with pytest.raises(RegistryError, match=r"127\.0\.0\.1|answer about pulls"):
            await told(server.host, "team/app", product="zot")


async def test_zot_is_read_page_by_page_and_says_never_in_two_ways() -> None:
    images = [("a", ONE, LATELY), ("b", TWO, "1970-01-01T00:00:00Z"), ("c", TWO, "0001-01-01T00:00:00Z"), ("d", TWO, None)]
    queries = []

    def behave(request: Request) -> Reply:
        if request.path == "/v2/":
            return Reply()
        [query] = request.query["query"]
        queries.append(query)
        offset = int(query.partition("offset:")[2].partition(",")[0])
        return Reply(200, JSON, json.dumps(zot_answer(*images[offset : offset + 3], total=4)).encode())

    async with scripted(behave) as server:
        found = await told(server.host, "team/app", product="zot")
        late = at(2026, 2, 1, 10, 0, 0, 123_456)
        assert found.last == {"a": (ONE, late), "b": (TWO, NONE), "c": (TWO, NONE)}
        assert len(queries) == 2
        assert 'repo:"team/app"' in queries[0]


async def test_zot_without_its_search_extension_tells_none() -> None:
    async with scripted(lambda request: Reply() if request.path == "/v2/" else Reply(404)) as server:
        with pytest.raises(RegistryUnsupported, match="search extension is not on"):
            await told(server.host, "team/app", product="zot")


async def planned(settings: Settings, server: Harbor, policy: dict[str, Any]) -> Plan:
    """A plan of the repository behind a Harbor."""
    face = RegistryServer(server.host)
    async with retention_site(settings, face, "team/app") as site:
        await site.settle(policy)
        sha = await site.plan()
        return read_plan(await site.ledger.plans.text(sha), sha)


async def test_a_plan_keeps_what_was_pulled_lately(settings: Settings, tmp_path: Path) -> None:
    lately = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    with run_registry(tmp_path) as behind:
        raws = {
            name: behind.push_image("team/app", name, layers=(name.encode(),), labels={"n": name}, created=OLD)
            for name in ("used", "unused", "moved", "silent")
        }
        behind.push_image("team/app", "new", layers=(b"new",), created=RECENT)
        async with harbor(behind=behind, guarded=False) as server:
            server.artifacts["team/app"] = [
                artifact(digest_of(raws["used"]), NEVER, {"used": lately}),
                artifact(digest_of(raws["unused"]), "2024-02-01T00:00:00.000Z", {"unused": "2024-02-01T00:00:00.000Z"}),
                artifact(ONE, NEVER, {"moved": NEVER}),
            ]
            made = await planned(settings, server, {"keep": [{"pulled": "30d"}]})
            [repository] = made.repositories
            words = {one.tag: [str(reason) for reason in one.reasons] for one in repository.decisions}
            assert {one.tag for one in repository.of(Action.DELETE)} == {"unused"}
            assert words["used"] == ["rule: keep.0: pulled 30d"]
            assert words["moved"] == words["silent"] == ["rule: keep.0: pulled 30d", "unknown pull time"]
            paths = [request.path for request in server.requests]
            first = next(number for number, path in enumerate(paths) if "/manifests/" in path)
            assert any("/artifacts" in path for path in paths[:first]), "asked before our own reading counts as a pull"
            assert sum("/artifacts" in path for path in paths) == 1


async def test_a_plan_says_why_it_knows_no_pulls_and_asks_only_where_a_rule_wants_them(settings: Settings, tmp_path: Path) -> None:
    with run_registry(tmp_path) as behind:
        for name, created in (("old", OLD), ("new", RECENT)):
            behind.push_image("team/app", name, layers=(name.encode(),), created=created)
        async with harbor(behind=behind, guarded=False) as server:
            made = await planned(settings, server, {"keep": [{"pulled": "30d"}]})
            [old] = [one for one in made.repositories[0].decisions if one.tag == "old"]
            assert old.action is Action.KEEP
            assert "unknown pull time: cannot read when" in str(old.reasons[1])
            assert "repository not found" in str(old.reasons[1])
            server.requests.clear()
            made = await planned(settings, server, {"keep": [{"last": 1}]})
            assert {one.tag for one in made.repositories[0].of(Action.DELETE)} == {"old"}
            assert not any(request.path.startswith("/api/") for request in server.requests)


@pytest.fixture
def zot(tmp_path: Path) -> Iterator[RegistryServer]:
    """A real one that counts pulls."""
    with KINDS["zot"].run(tmp_path, extensions={"search": {"enable": True}}) as server:
        with server.http() as http:
            if http.get("_zot/ext/search").status_code == 404:
                pytest.skip("this zot has no search extension")
        yield server


async def test_a_real_zot_tells_of_pulls_by_tag_and_by_digest(zot: RegistryServer) -> None:
    raws = {tag: zot.push_image("team/app", tag, layers=(tag.encode(),), labels={"t": tag}) for tag in ("a", "b", "c", "d")}
    index = zot.push_index("team/app", "e", {"linux/amd64": raws["a"]})
    async with RegistryReader(Anonymous(), insecure=frozenset({zot.host})) as reader:

        async def found(repository: str = "team/app") -> Pulls:
            [told] = (await ask_pulls(reader, zot.host, [repository], datetime.now(UTC))).values()
            return told

        with zot.http() as http:
            http.head("team/app/manifests/a").raise_for_status()
            assert "nothing in team/app was ever pulled" in str((await found()).untold)
            begun = datetime.now(UTC) - timedelta(seconds=1)
            http.get("team/app/manifests/b").raise_for_status()
            http.get(f"team/app/manifests/{digest_of(raws['c'])}").raise_for_status()
            http.get("team/app/manifests/e", headers={"Accept": OCI_INDEX}).raise_for_status()
        pulls = await found()
        digests = {**{tag: digest_of(raw) for tag, raw in raws.items()}, "e": digest_of(index)}
        assert (pulls.untold, {tag: digest for tag, (digest, _) in pulls.last.items()}) == (None, digests)
        assert {tag for tag, (_, at) in pulls.last.items() if at >= begun} == {"b", "c", "e"}
        assert {at for tag, (_, at) in pulls.last.items() if tag in ("a", "d")} == {NONE}
        assert await found("none/app") == Pulls()


async def test_a_real_zot_takes_our_own_reading_for_a_pull_which_only_delays(settings: Settings, zot: RegistryServer) -> None:
    for tag in ("used", "unused"):
        zot.push_image("team/app", tag, layers=(tag.encode(),), labels={"t": tag}, created=OLD)
    zot.push_image("team/app", "new", layers=(b"new",), created=RECENT)
    with zot.http() as http:
        http.get("team/app/manifests/used").raise_for_status()
    async with retention_site(settings, zot, "team/app") as site:
        await site.settle({"keep": [{"pulled": "30d"}]})
        for expected in ({"unused"}, set()):
            sha = await site.plan()
            made = read_plan(await site.ledger.plans.text(sha), sha)
            assert {one.tag for one in made.repositories[0].of(Action.DELETE)} == expected
            await site.apply(sha)
            assert site.tags().keys() == {"used", "unused", "new"}
