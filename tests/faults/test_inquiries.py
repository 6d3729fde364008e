"""Asking a cluster what it runs, over a bad line and with too few rights: all of the answer, or a silence that says why."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes_asyncio.config import incluster_config

from ledger.errors import ClusterDenied, ClusterError
from ledger.site import ClusterSource
from tests.cluster_objects import HOST, cron_job, making, pod_of, replica_set, running
from tests.faults.kubernetes_api import write_kubeconfig
from tests.faults.listed_kubernetes import ListedKubernetes, listed_kubernetes
from tests.faults.scripted_kubernetes import FAST, Reply, answer, cut, no, page, silence
from tests.integration.registry_server import Certificate
from worker.cluster.workloads import Workload
from worker.retention.inquiries import LATELY, NOW, Inquiries, Silence

GONE = no(410, "Expired", "The provided continue parameter is too old")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ListedKubernetes]:
    async with listed_kubernetes(tmp_path) as found:
        yield found


@pytest.fixture
def inquiries() -> Inquiries:
    return Inquiries(FAST)


async def ask(inquiries: Inquiries, cluster: ListedKubernetes, **more) -> dict[str, str]:
    found = await inquiries.ask("prod", cluster.source(**more), NOW)
    assert not isinstance(found, Silence), found.why
    return dict(found)


async def why(inquiries: Inquiries, cluster: ListedKubernetes) -> str:
    found = await inquiries.ask("prod", cluster.source(), NOW)
    assert isinstance(found, Silence), found
    return found.why


def add_pods(cluster: ListedKubernetes, count: int) -> set[str]:
    cluster.add(Workload.POD, *(running(pod_of(f"{HOST}/app:{number}")) for number in range(count)))
    return {f"{HOST}/app:{number}" for number in range(count)}


async def test_every_kind_is_asked_for_in_all_namespaces_page_by_page(cluster, inquiries):
    tags = add_pods(cluster, 450)
    cluster.add(Workload.DEPLOYMENT, making("web", f"{HOST}/web:2"))
    assert (await ask(inquiries, cluster)).keys() == tags | {f"{HOST}/web:2"}
    assert {kind for kind, _ in cluster.asked} == set(Workload)
    assert [query.get("continue") for kind, query in cluster.asked if kind is Workload.POD] == [None, "200", "400"]


async def test_the_settings_say_how_many_revisions_count(cluster, inquiries):
    cluster.add(Workload.REPLICA_SET, *(replica_set(number, f"{HOST}/web:{number}") for number in range(1, 15)))
    assert len(await ask(inquiries, cluster)) == 11  # the present one, and the ten old ones that Kubernetes keeps
    assert (await ask(inquiries, cluster, revisions=1)).keys() == {f"{HOST}/web:14"}


async def test_a_list_that_expires_begins_again_and_forgets_nothing(cluster, inquiries):
    tags = add_pods(cluster, 450)
    cluster.troubles[Workload.POD].extend([None, GONE])
    assert (await ask(inquiries, cluster)).keys() == tags
    assert [query.get("continue") for kind, query in cluster.asked if kind is Workload.POD] == [None, "200", None, "200", "400"]


async def test_a_list_that_always_expires_is_no_answer(cluster, inquiries):
    add_pods(cluster, 450)
    cluster.troubles[Workload.POD].extend([None, GONE] * 3)
    assert "expired 3 times" in await why(inquiries, cluster)


async def test_all_rights_that_are_missing_are_named(cluster, inquiries):
    cluster.forever[Workload.CRON_JOB] = no(403, "Forbidden", 'User "ada" cannot list resource "cronjobs" in API group "batch"')
    cluster.forever[Workload.POD] = no(403, "Forbidden", "no pods for ada")
    said = await why(inquiries, cluster)
    assert "may not list cronjobs.batch, list pods in all namespaces" in said
    assert 'User "ada" cannot list resource "cronjobs"' in said
    assert "deploy/running" in said
    assert await inquiries.lacking("prod", cluster.source()) == [Workload.CRON_JOB, Workload.POD]


@pytest.mark.parametrize("kind", list(Workload))
async def test_without_any_one_kind_there_is_no_answer(cluster, inquiries, kind):
    cluster.forever[kind] = no(403, "Forbidden", "no")
    assert f"list {kind}" in await why(inquiries, cluster)


@pytest.mark.parametrize(
    "trouble", [no(500), page(502), cut, no(429, "TooManyRequests", Retry_After="0")], ids=["500", "page", "cut", "429"]
)
async def test_what_passes_is_asked_again_and_what_does_not_is_no_answer(cluster, inquiries, trouble: Reply):
    tags = add_pods(cluster, 250)
    cluster.troubles[Workload.POD].extend([trouble, None, trouble, trouble])
    assert (await ask(inquiries, cluster)).keys() == tags
    cluster.forever[Workload.JOB] = trouble
    assert await why(inquiries, cluster)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "Status", "metadata": {}, "status": "Success"}, 200),
        ({"items": []}, 200),
        ([], 200),
        ({"kind": "PodList", "metadata": {}}, 200),
    ],
)
async def test_what_is_no_list_is_not_taken_for_an_empty_one(cluster, inquiries, body, code):
    cluster.forever[Workload.POD] = answer(code, body)
    assert "could not list pods" in await why(inquiries, cluster)


async def test_an_empty_list_may_be_null(cluster, inquiries):
    cluster.forever[Workload.POD] = answer(200, {"kind": "PodList", "metadata": {}, "items": None})
    assert await ask(inquiries, cluster) == {}


async def test_a_kind_that_the_server_does_not_know_is_no_answer(cluster, inquiries):
    cluster.forever[Workload.CRON_JOB] = no(404, "NotFound", "the server could not find the requested resource")
    assert "could not list cronjobs.batch" in await why(inquiries, cluster)


async def test_a_server_that_wants_to_be_left_alone_for_long_is_not_waited_for(cluster, inquiries):
    cluster.forever[Workload.POD] = no(429, "TooManyRequests", "too many", Retry_After="300")
    assert "too many" in await why(inquiries, cluster)
    assert cluster.count(Workload.POD) == 1


async def test_who_never_answers_is_silent(cluster):
    cluster.forever[Workload.JOB] = silence
    assert "longer than 0.2 s" in await why(Inquiries(FAST, patience=0.2), cluster)
    with pytest.raises(ClusterError, match=r"longer than 0\.2 s"):
        await Inquiries(FAST, patience=0.2).lacking("prod", cluster.source())
    assert "did not answer in time" in await why(Inquiries(replace(FAST, answer=0.05)), cluster)


async def test_an_expired_token_is_told_and_a_new_one_is_read(cluster, inquiries):
    cluster.forever[Workload.DEPLOYMENT] = no(401, "Unauthorized", "Unauthorized")
    said = await why(inquiries, cluster)
    assert "Unauthorized" in said
    assert "expired" in said
    assert cluster.count(Workload.STATEFUL_SET) == 0
    with pytest.raises(ClusterDenied, match="Unauthorized"):
        await inquiries.lacking("prod", cluster.source())
    cluster.forever.clear()
    cluster.kubeconfig.write_text(cluster.kubeconfig.read_text().replace('"token": "t"', '"token": "new"'))
    await ask(inquiries, cluster)
    assert cluster.credentials[-1] == "Bearer new"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("hello", "no kubeconfig"),
        ("a: [", "no kubeconfig"),
        ("", "no kubeconfig"),
        ("\0", "no kubeconfig"),
        ("[1]", "no kubeconfig"),
        ('{"current-context": "gone", "contexts": []}', "gone"),
    ],
)
async def test_a_bad_kubeconfig_is_named(cluster, inquiries, text, said):
    cluster.kubeconfig.unlink()
    if text is not None:
        cluster.kubeconfig.write_text(text)
    found = await why(inquiries, cluster)
    assert str(cluster.kubeconfig) in found
    assert said in found


@contextmanager
def no_way_into(folder: Path) -> Iterator[None]:
    """Nobody may enter a folder. For root there is no such folder, so its rights are laid down meanwhile."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


async def test_a_kubeconfig_in_a_folder_that_may_not_be_entered_is_named(cluster, inquiries):
    with no_way_into(cluster.kubeconfig.parent):
        found = await why(inquiries, cluster)
        assert f"no credentials for a cluster in {cluster.kubeconfig}: " in found
        assert "Permission denied" in found
        with pytest.raises(ClusterDenied, match="Permission denied"):
            await inquiries.lacking("prod", cluster.source())


async def test_a_kubeconfig_that_no_file_can_be_named_by_is_named(inquiries):
    found = await inquiries.ask("prod", ClusterSource(kubeconfig=f"/{'a' * 300}"), NOW)
    assert isinstance(found, Silence)
    assert "no credentials for a cluster in /aaa" in found.why
    assert "File name too long" in found.why


async def test_a_bad_certificate_is_named(cluster, inquiries):
    text = cluster.kubeconfig.read_text().replace("http://", "https://")
    cluster.kubeconfig.write_text(text.replace('"server"', '"certificate-authority-data": "aGVsbG8=", "server"'))
    assert f"the certificates of {cluster.kubeconfig}" in await why(inquiries, cluster)


async def test_an_unreachable_cluster_is_silent(tmp_path, inquiries):
    source = ClusterSource(kubeconfig=str(write_kubeconfig(tmp_path / "away", "http://127.0.0.1:1")))
    found = await inquiries.ask("prod", source, NOW)
    assert isinstance(found, Silence)
    assert "127.0.0.1" in found.why


async def test_a_context_that_is_not_there_is_named(cluster, inquiries):
    found = await inquiries.ask("prod", cluster.source(context="staging"), NOW)
    assert isinstance(found, Silence)
    assert "staging" in found.why


async def test_no_other_cluster_answers_for_the_one_that_workers_run_in(cluster, inquiries, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    found = await inquiries.ask("prod", ClusterSource(in_cluster=True), NOW)
    assert isinstance(found, Silence)
    assert "runs in no cluster" in found.why
    assert cluster.asked == []


async def test_the_cluster_that_workers_run_in_is_asked_by_their_own_account(tmp_path, inquiries, monkeypatch):
    certificate, token = Certificate.make(tmp_path), tmp_path / "token"
    token.write_text("of the worker")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate.path))
    async with listed_kubernetes(tmp_path, certificate.context()) as cluster:
        host, port = json.loads(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]["server"].removeprefix("https://").split(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "another"))
        tags = add_pods(cluster, 2)
        assert (await inquiries.ask("here", ClusterSource(in_cluster=True), NOW)).keys() == tags
        assert set(cluster.credentials) == {"Bearer of the worker"}


async def test_an_image_that_might_be_in_the_registry_and_cannot_be_found_there_is_a_silence(cluster, inquiries):
    cluster.add(Workload.CRON_JOB, cron_job("odd", f"{HOST}/app@sha512:{'a' * 128}", suspend=False))
    assert "cron job shop/odd names the image" in await why(inquiries, cluster)


async def test_an_object_that_is_none_is_a_silence_and_no_fault(cluster, inquiries):
    cluster.add(Workload.POD, {"metadata": {}})
    assert "fault" in await why(inquiries, cluster)


async def test_an_answer_is_used_for_a_while_and_so_is_a_silence(cluster, inquiries):
    add_pods(cluster, 1)
    first = await inquiries.ask("prod", cluster.source(), LATELY)
    add_pods(cluster, 2)
    assert await inquiries.ask("prod", cluster.source(), LATELY) is first
    assert cluster.count(Workload.POD) == 1
    assert len(await ask(inquiries, cluster)) == 2
    cluster.forever[Workload.POD] = no(403, "Forbidden", "no")
    await why(inquiries, cluster)
    asked = cluster.count(Workload.POD)
    assert isinstance(await inquiries.ask("prod", cluster.source(), LATELY), Silence)
    assert cluster.count(Workload.POD) == asked
    await inquiries.ask("prod", cluster.source(revisions=3), LATELY)
    assert cluster.count(Workload.POD) == asked + 1


async def test_several_that_ask_at_once_share_an_answer(cluster, inquiries):
    found = await asyncio.gather(*(inquiries.ask("prod", cluster.source(), LATELY) for _ in range(5)))
    assert found == [{}] * 5
    assert cluster.count(Workload.POD) == 1
