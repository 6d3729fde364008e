"""Collecting a registry of several pods, and one whose pods serve TLS: each pod is asked at its own address, and proved."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.harness_cluster import Cluster
from tests.e2e.harness_collect import DeployedRegistry, Tls, deployed_registry
from tests.e2e.harness_collect_runs import Content, collect, no_sweep_is_left
from tests.e2e.harness_servers import relay
from worker.collect.steps import Collection, Step

pytestmark = pytest.mark.timeout(300)
NAME = "localhost"


@pytest.fixture(scope="module")
def replicated(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRegistry]:
    """Two pods on one claim."""
    with deployed_registry(cluster, tmp_path_factory.mktemp("replicated"), replicas=2) as found:
        yield found


@pytest.fixture(scope="module")
def secured(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRegistry]:
    """Two pods that serve TLS, reached by a name of which their certificate speaks, and no certificate speaks of their addresses."""
    folder = tmp_path_factory.mktemp("secured")
    tls = Tls.make(folder / "tls", NAME)
    with ExitStack() as stack:

        def known_as(node: str, port: int) -> str:
            return f"{NAME}:{stack.enter_context(relay(node, port))}"

        yield stack.enter_context(deployed_registry(cluster, folder, replicas=2, tls=tls, known_as=known_as))


def processes(registry: DeployedRegistry) -> list[int]:
    """The registry's processes on this machine, one of each ready pod."""
    pods = registry.cluster.get(registry.namespace, "pods")
    assert pods
    ids = {
        status["containerID"].rpartition("/")[2]
        for pod in pods["items"]
        for status in pod["status"].get("containerStatuses", ())
        if status["ready"]
    }
    lines = registry.cluster.ctr("tasks", "ls").splitlines()[1:]
    return [int(line.split()[1]) for line in lines if line.split()[0] in ids]


@contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("how", ["job", "exec"])
async def test_every_pod_is_proved_read_only_and_read_write(ledger, replicated, tmp_path, how):
    content = Content(replicated, f"two-{how}")
    states = await collect(ledger, replicated, replicated.account(tmp_path, how), how, run=f"two-{how}")
    end = states[-1]
    assert end.trouble is None, end.trouble
    assert len(next(state.witness for state in states if state.step is Step.SURVEY)) == 2
    assert content.garbage not in replicated.blobs()
    content.check()
    no_sweep_is_left(replicated)


async def test_a_pod_that_does_not_answer_is_waited_for_and_nothing_is_begun(ledger, replicated, tmp_path):
    content = Content(replicated, "silent")
    account = replicated.account(tmp_path, "job")
    first = processes(replicated)
    assert len(first) == 2
    states: list[Collection] = []
    generation = replicated.workload()["metadata"]["generation"]
    with stopped(first[0]):
        running = asyncio.create_task(collect(ledger, replicated, account, "job", run="silent", states=states))
        async with asyncio.timeout(60):
            while not (waits := [state.waits for state in states if state.waits]):
                await asyncio.sleep(0.1)
        assert not running.done()
        # Whichever comes first: its own answer, or what the cluster says of it.
        assert "did not answer in time" in waits[0] or "of its 2 pods 1 are ready" in waits[0], waits
        assert states[-1].step is Step.LOOK
        assert replicated.workload()["metadata"]["generation"] == generation
        assert await ledger.holds.all() == []
    end = (await running)[-1]
    assert end.trouble is None, end.trouble
    assert content.garbage not in replicated.blobs()
    content.check()


async def test_pods_that_serve_tls_are_asked_by_the_registrys_name(ledger, secured, tmp_path):
    """The certificate is held against the name that the registry has in the settings, at each pod's address."""
    content = Content(secured, "secured")
    end = (await collect(ledger, secured, secured.account(tmp_path, "job"), "job", run="secured"))[-1]
    assert end.trouble is None, end.trouble
    assert content.garbage not in secured.blobs()
    content.check()


async def test_a_certificate_of_nobody_we_know_is_refused_before_anything_is_changed(ledger, secured, tmp_path):
    other = Tls.make(tmp_path / "other", NAME)
    generation = secured.workload()["metadata"]["generation"]
    states: list[Collection] = []
    stranger = dataclasses.replace(secured, authority=other.authority)
    running = asyncio.create_task(collect(ledger, stranger, secured.account(tmp_path, "job"), "job", run="stranger", states=states))
    async with asyncio.timeout(30):
        while not (waits := [state.waits for state in states if state.waits]):
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait({running})
    assert "certificate verify failed" in waits[0].lower().replace("_", " "), waits
    assert "name its CA certificate" in waits[0]
    assert states[-1].step is Step.LOOK
    assert secured.workload()["metadata"]["generation"] == generation
