"""Starting a pod through a bad line: never two, never given up while the answer is open, and a refusal only where it is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ledger.errors import ClusterDenied, ClusterError, ClusterUnavailable, LaunchRefused, NoRoom, PodConflict
from tests.faults.scripted_kubernetes import FAST, LAUNCH, Reply, answer, cut, no, page, pod_json, serve, silence
from worker.cluster import Phase

CREATED = answer(201, pod_json())
THERE = answer(200, pod_json())
EXISTS = no(409, "AlreadyExists", 'pods "x" already exists')
ABSENT = no(404, "NotFound", 'pods "x" not found')
QUOTA = no(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: builds, requested: pods=1, used: pods=8, limited: pods=8')


async def test_a_create_is_one_request(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", CREATED)
        pod = await cluster.launch(LAUNCH)
        assert (pod.name, pod.uid, pod.phase) == (LAUNCH.pod, "uid-1", Phase.PENDING)
        (seen,) = server.seen
        assert seen.body["metadata"]["name"] == LAUNCH.pod
        assert seen.query["timeout"] == "10s"  # the server gives up before we do


@pytest.mark.parametrize(
    "bad", [silence, cut, page(502), no(500, "InternalError"), no(504, "Timeout")], ids=["silence", "cut", "page", "500", "504"]
)
async def test_an_open_create_is_repeated_under_its_name_and_adopted(tmp_path: Path, bad: Reply) -> None:
    async with serve(tmp_path, pace=replace(FAST, answer=0.5)) as (server, cluster):
        server.on("create", bad, EXISTS)
        server.on("read", THERE)
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"
        assert {seen.body["metadata"]["name"] for seen in server.seen if seen.kind == "create"} == {LAUNCH.pod}
        assert server.count("create") > 1


@pytest.mark.parametrize("bad", [silence, cut, page(503), no(503, "ServiceUnavailable")], ids=["silence", "cut", "page", "503"])
async def test_an_answer_that_stays_open_is_never_a_refusal(tmp_path: Path, bad: Reply) -> None:
    async with serve(tmp_path, pace=replace(FAST, launch=2.0, answer=0.5)) as (server, cluster):
        server.on("create", bad)
        with pytest.raises(ClusterUnavailable):
            await cluster.launch(LAUNCH)
        assert server.count("create") > 1


@pytest.mark.parametrize(("bad", "creates"), [(cut, 1), (no(429, "TooManyRequests", "later"), 2)], ids=["in doubt", "not done"])
async def test_a_create_in_doubt_is_repeated_only_while_the_pod_is_wanted(tmp_path: Path, bad: Reply, creates: int) -> None:
    """It may have been made, have ended, and be gone."""

    async def wanted() -> bool:
        return False

    async with serve(tmp_path) as (server, cluster):
        server.on("create", bad, CREATED)
        if creates == 1:
            with pytest.raises(ClusterUnavailable):
                await cluster.launch(LAUNCH, wanted)
        else:
            await cluster.launch(LAUNCH, wanted)
        assert server.count("create") == creates


async def test_quota_that_our_own_open_create_used_up_is_no_refusal(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", cut, QUOTA)
        server.on("read", THERE)
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"


async def test_after_an_open_create_not_even_absence_makes_a_refusal(tmp_path: Path) -> None:
    async with serve(tmp_path, pace=replace(FAST, launch=0.5)) as (server, cluster):
        server.on("create", cut, QUOTA)
        server.on("read", ABSENT)
        with pytest.raises(ClusterUnavailable):
            await cluster.launch(LAUNCH)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (QUOTA, NoRoom),
        (
            no(403, "Forbidden", 'pods is forbidden: User "u" cannot create resource "pods" in API group "" in the namespace "one"'),
            ClusterDenied,
        ),
        (no(401, "Unauthorized", "Unauthorized"), ClusterDenied),
        (no(403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'), LaunchRefused),
        (no(403, "Forbidden", 'admission webhook "w" denied the request: no'), LaunchRefused),
        (
            no(403, "Forbidden", 'pods "x" is forbidden: error looking up service account one/builder: serviceaccount "builder" not found'),
            LaunchRefused,
        ),
        (no(400, "BadRequest", "cannot be handled as a Pod"), LaunchRefused),
        (no(404, "NotFound", 'namespaces "one" not found'), LaunchRefused),
        (no(422, "Invalid", 'Pod "x" is invalid: spec.containers[0].resources: Invalid value'), LaunchRefused),
    ],
    ids=["quota", "rbac", "401", "podsecurity", "webhook", "account", "400", "namespace", "422"],
)
async def test_definite_refusals(tmp_path: Path, reply: Reply, error: type[ClusterError]) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", reply)
        with pytest.raises(error) as raised:
            await cluster.launch(LAUNCH)
        assert type(raised.value) is error
        assert server.count("read") == 0


async def test_quota_that_a_pod_that_has_just_ended_still_uses_is_waited_for(tmp_path: Path) -> None:
    async with serve(tmp_path, pace=replace(FAST, room=5.0)) as (server, cluster):
        server.on("create", QUOTA, QUOTA, CREATED)
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"


async def test_a_pod_that_a_webhook_changed_beyond_recognition_is_no_refusal(tmp_path: Path) -> None:
    """It may be there: nothing is given up. A second create finds it, and it is not ours to adopt."""
    stranger = pod_json()
    stranger["metadata"]["labels"] = {}
    async with serve(tmp_path) as (server, cluster):
        server.on("create", answer(201, stranger), EXISTS)
        server.on("read", answer(200, stranger))
        with pytest.raises(PodConflict):
            await cluster.launch(LAUNCH)
        assert server.count("create") == 2


async def test_fresh_credentials_after_401(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", no(401, "Unauthorized"), CREATED)
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"


async def test_a_strangers_pod_is_not_adopted(tmp_path: Path) -> None:
    for stranger in (pod_json(launch=replace(LAUNCH, attempt=2)), {"metadata": {"name": LAUNCH.pod, "uid": "u"}, "spec": {}, "status": {}}):
        async with serve(tmp_path) as (server, cluster):
            server.on("create", EXISTS)
            server.on("read", answer(200, stranger))
            with pytest.raises(PodConflict):
                await cluster.launch(LAUNCH)


async def test_a_pod_that_went_between_is_created_again(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", EXISTS, CREATED)
        server.on("read", ABSENT)
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"


@pytest.mark.parametrize(
    "reply",
    [
        no(409, "Conflict", "Operation cannot be fulfilled on resourcequotas: the object has been modified"),
        no(403, "Forbidden", 'pods "x" is forbidden: status unknown for quota: builds, resources: pods'),
        no(403, "Forbidden", 'pods "x" is forbidden: error looking up service account one/default: serviceaccount "default" not found'),
    ],
    ids=["quota changes", "new quota", "new namespace"],
)
async def test_a_refusal_that_passes_by_itself_is_waited_for(tmp_path: Path, reply: Reply) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", reply, CREATED)
        assert (await cluster.launch(LAUNCH)).uid == "uid-1"


async def test_throttling_is_obeyed(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, cluster):
        server.on("create", no(429, "TooManyRequests", "later", Retry_After="30"))
        with pytest.raises(ClusterUnavailable) as raised:
            await cluster.launch(LAUNCH)
        assert raised.value.retry_after == 30
        assert server.count("create") == 1


async def test_no_server_is_unavailable_and_no_credentials_are_denied(tmp_path: Path) -> None:
    async with serve(tmp_path, pace=replace(FAST, launch=0.1)) as (_, cluster):
        await cluster._api._connect()
        cluster._api._configuration.host = "http://127.0.0.1:9"
        with pytest.raises(ClusterUnavailable):
            await cluster.launch(LAUNCH)
    async with serve(tmp_path) as (_, cluster):
        (tmp_path / "kubeconfig").unlink()
        with pytest.raises(ClusterDenied, match="CRABPOT_KUBECONFIG"):
            await cluster.pods()
