"""What `crabpot doctor` finds out by asking what plans ask, and how it goes on where one of its own looks is broken."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.errors import LedgerUnavailable
from ledger.fitness import Finding
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from ledger.usage import Usage
from tests.cluster_objects import HOST, cron_job, making, pod_of, running
from tests.faults.listed_kubernetes import ListedKubernetes, listed_kubernetes
from tests.faults.scripted_kubernetes import no
from worker.cluster.workloads import Workload
from worker.doctor import diagnose
from worker.registry.client import RegistryClient
from worker.retention.inquiries import Inquiries


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ListedKubernetes]:
    async with listed_kubernetes(tmp_path) as found:
        yield found


async def settle(ledger: Ledger, clusters: dict[str, object], **more: object) -> None:
    await ledger.store_projects(parse_projects(json.dumps({"version": 1, "projects": {}, "clusters": clusters, **more})))


async def looked(settings: Settings) -> dict[str, Finding]:
    return {finding.name: finding async for finding in diagnose(settings)}


async def test_a_cluster_is_asked_what_a_plan_asks_it(ledger, settings, cluster):
    await settle(ledger, {"prod": {"kubeconfig": str(cluster.kubeconfig)}})
    cluster.add(Workload.POD, running(pod_of(f"{HOST}/app:1", f"{HOST}/app:2")))
    cluster.add(Workload.DEPLOYMENT, making("web", f"{HOST}/web:1"))
    found = (await looked(settings))["cluster prod"]
    assert (found.well, "; it names 3 images" in found.found) == (True, True)
    cluster.add(Workload.CRON_JOB, cron_job("odd", f"{HOST}/app@sha512:{'a' * 128}", suspend=False))
    found = (await looked(settings))["cluster prod"]
    assert not found.well
    assert "cron job shop/odd names the image" in found.found
    assert found.found.endswith("; nothing is deleted automatically")
    cluster.objects.clear()
    cluster.forever[Workload.POD] = no(403, "Forbidden", "no pods for ada")
    asked = len(cluster.asked)
    assert "may not list pods" in (await looked(settings))["cluster prod"].found
    assert len(cluster.asked) == asked + len(Workload)  # what may not be listed is known; all of it is not asked for in vain


async def test_a_look_that_is_broken_is_told_and_the_others_go_on(ledger, settings, cluster, monkeypatch):
    rules = [{"ref": "refs/heads/main", "image": f"{HOST}/{name}", "tags": ["latest"]} for name in ("first", "second")]
    project = {"repository": "https://git.example.com/team/demo.git", "rules": rules}
    asked = {"kubeconfig": str(cluster.kubeconfig)}
    await settle(ledger, {"broken": asked, "edge": {"token": {"env": "T"}}, "prod": asked}, projects={"demo": project})
    lacking, ping = Inquiries.lacking, RegistryClient.ping

    async def breaks(self, name, source):
        if name == "broken":
            raise RuntimeError("password=hunter22 is in the way")
        return await lacking(self, name, source)

    async def breaks_once(self, registry):
        monkeypatch.setattr(RegistryClient, "ping", ping)
        raise ZeroDivisionError("division by zero")

    async def away(self, name, now):
        raise LedgerUnavailable

    monkeypatch.setattr(Inquiries, "lacking", breaks)
    monkeypatch.setattr(RegistryClient, "ping", breaks_once)
    monkeypatch.setattr(Usage, "report", away)
    found = await looked(settings)
    broken = found["cluster broken"]
    assert (broken.well, "crabpot has a fault here: RuntimeError: " in broken.found, "hunter22" in broken.found) == (False, True, False)
    assert "standard error" in broken.mend
    assert (found["cluster edge"].well, "Redis did not answer" in found["cluster edge"].found) == (False, True)
    assert "fault" not in found["cluster edge"].found
    assert found["cluster prod"].well
    assert "ZeroDivisionError" in found[f"registry {HOST}/first"].found
    assert "ZeroDivisionError" not in found[f"registry {HOST}/second"].found
