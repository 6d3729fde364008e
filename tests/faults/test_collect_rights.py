"""What `crabpot doctor` says of the rights that a collection needs in Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ledger.collected import CollectedInKubernetes, CollectsItself
from ledger.settings import Settings
from tests.faults.scripted_kubernetes import answer, no, serve
from worker.collect.rights import check_collections

OWN = CollectsItself(registry="harbor.example.com", kind="own")


def registry(how: str) -> CollectedInKubernetes:
    return CollectedInKubernetes.model_validate(
        {"registry": "r.example.com", "kind": "kubernetes", "namespace": "images", "workload": "deployment/r", "claim": "c", "how": how}
    )


async def said(folder: Path, how: str, *denied: tuple[str, str]) -> Any:
    """The finding where these (verb, resource) are denied, and what was asked for."""
    asked: list[dict[str, str]] = []

    async def review(request: Any) -> Any:
        wanted = (await request.json())["spec"]["resourceAttributes"]
        asked.append(wanted)
        resource = "/".join(wanted[part] for part in ("resource", "subresource") if part in wanted)
        return await answer(201, {"status": {"allowed": (wanted["verb"], resource) not in denied}})(request)

    async with serve(folder) as (server, _):
        server.on("review", review)
        settings = Settings(cluster="kubernetes", kubeconfig=folder / "kubeconfig", namespace="builds")
        [finding] = [found async for found in check_collections(settings, (OWN, registry(how)))]
    return finding, asked


async def test_an_account_with_all_rights_is_well_and_asked_for_exactly_that_workload(tmp_path: Path) -> None:
    finding, asked = await said(tmp_path, "job")
    assert finding.well
    assert {"namespace": "images", "verb": "patch", "group": "apps", "resource": "deployments", "name": "r"} in asked
    assert {"namespace": "images", "verb": "get", "resource": "persistentvolumeclaims", "name": "c"} in asked
    assert {"namespace": "images", "verb": "create", "group": "batch", "resource": "jobs"} in asked


@pytest.mark.parametrize(
    ("how", "denied", "named"),
    [
        ("job", [("patch", "deployments"), ("create", "jobs")], "patch deployments r, create jobs"),
        ("exec", [("create", "pods/exec")], "create pods/exec"),
    ],
)
async def test_each_missing_right_is_named_with_what_gives_it(tmp_path: Path, how: str, denied: list[tuple[str, str]], named: str) -> None:
    finding, _ = await said(tmp_path, how, *denied)
    assert not finding.well
    assert finding.found == f"in images this account may not {named}"
    assert f"{{namespace: images, workload: deployment/r, claim: c, how: {how}}} to the chart's `collect`" in str(finding.mend)


async def test_an_account_that_is_no_workers_is_let_off(tmp_path: Path) -> None:
    finding, _ = await said(tmp_path, "job", ("patch", "deployments"), ("create", "pods"))
    assert finding.well
    assert "no worker's account" in finding.found


async def test_a_cluster_that_says_no_is_a_fault_and_nothing_is_asked_where_nothing_is_collected(tmp_path: Path) -> None:
    async with serve(tmp_path) as (server, _):
        settings = Settings(cluster="kubernetes", kubeconfig=tmp_path / "kubeconfig")
        assert [found async for found in check_collections(settings, (OWN,))] == []
        server.on("review", no(403, "Forbidden", "not you"))
        [finding] = [found async for found in check_collections(settings, (registry("job"),))]
    assert not finding.well
    assert "not you" in finding.found
