"""What clusters that workers ask still need stays: at the plan, at its application, and when the bin is emptied."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.events import RegistryEvent
from ledger.plans import PlanState
from tests.cluster_objects import cron_job, making, pod_of, replica_set, running
from tests.faults.kubernetes_api import write_kubeconfig
from tests.faults.listed_kubernetes import ListedKubernetes, listed_kubernetes
from tests.faults.scripted_kubernetes import FAST, no
from tests.integration.registry_server import RegistryServer, digest_of
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.cluster.workloads import Workload
from worker.retention.inquiries import Inquiries

_numbers = itertools.count()
AUTOMATIC = {"apply": "automatic"}
DENIED = no(403, "Forbidden", 'User "ada" cannot list resource "cronjobs" in API group "batch" at the cluster scope')


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ListedKubernetes]:
    async with listed_kubernetes(tmp_path) as found:
        yield found


@pytest.fixture
async def site(settings, registry: RegistryServer, cluster: ListedKubernetes, redis_server) -> AsyncIterator[RetentionSite]:
    async with retention_site(settings, registry, f"running{next(_numbers)}/app") as site:
        forget(site)
        await settle(site, cluster)
        yield site


async def settle(site: RetentionSite, cluster: ListedKubernetes, **more) -> None:
    await site.settle(AUTOMATIC, clusters={"prod": {"kubeconfig": str(cluster.kubeconfig), "revisions": 2}}, **more)


def forget(site: RetentionSite) -> None:
    """As if the last answers were older than a minute."""
    site.place.inquiries = Inquiries(FAST)


def push(site: RetentionSite, tag: str, created: str = OLD) -> bytes:
    return site.registry.push_image(site.repository, tag, layers=(tag.encode(), b"base"), created=created, labels={"c": tag})


async def reasons(site: RetentionSite, sha: str) -> dict[str, str]:
    """Of each tag, why."""
    [repository] = json.loads(await site.ledger.plans.text(sha))["repositories"]
    return {one["tag"]: "; ".join(f"{reason['why']}: {reason['detail']}" for reason in one["reasons"]) for one in repository["decisions"]}


async def test_what_a_deployment_can_be_rolled_back_to_and_what_a_suspended_cron_job_needs_stay(site, cluster):
    for tag in ("one", "two", "three", "nightly", "config", "unused"):
        push(site, tag)
    config = json.loads(push(site, "config"))["config"]["digest"]
    push(site, "new", RECENT)
    cluster.add(Workload.DEPLOYMENT, making("web", f"{site.name}:three"))
    for revision, tag in ((1, "one"), (2, "two"), (3, "three")):
        cluster.add(Workload.REPLICA_SET, replica_set(revision, f"{site.name}:{tag}", replicas=int(revision == 3)))
    cluster.add(Workload.CRON_JOB, cron_job("nightly", f"{site.name}:nightly", suspend=True))
    cluster.add(Workload.POD, running(pod_of("elsewhere.test/a:1"), config))
    sha = await site.plan()
    told = await reasons(site, sha)
    assert "running: deployment shop/web of the cluster prod" in told["three"]
    assert "running: deployment shop/web, revision 2 of the cluster prod" in told["two"]
    assert "running: cron job shop/nightly (suspended) of the cluster prod" in told["nightly"]
    assert "running: pod shop/web-1-x of the cluster prod" in told["config"]
    assert "condemned" in told["one"]  # revision 1: only two count
    assert (await site.ledger.plans.read(sha)).approved_by == "automatic"
    assert "2 untagged, 2 binned" in await site.run(f"apply:{sha}")
    assert site.people_see().keys() == {"two", "three", "nightly", "config", "new"}


@pytest.mark.parametrize("away", ["denied", "unreachable", "no kubeconfig"])
async def test_a_cluster_that_does_not_tell_all_stops_what_is_automatic_and_the_plan_says_why(site, cluster, away):
    push(site, "new", RECENT)
    push(site, "old")
    match away:
        case "denied":
            cluster.forever[Workload.CRON_JOB] = DENIED
            why = "the cluster prod did not say what runs there: its account may not list cronjobs.batch in all namespaces"
        case "unreachable":
            write_kubeconfig(cluster.kubeconfig, "http://127.0.0.1:1")
            why = "the cluster prod did not say what runs there: GET"
        case _:
            cluster.kubeconfig.unlink()
            why = (
                f"the cluster prod did not say what runs there: no credentials for a cluster in {cluster.kubeconfig}: there is no such file"
            )
    sha = await site.plan()
    stored = await site.ledger.plans.read(sha)
    assert stored.state is PlanState.PROPOSED
    [said] = stored.totals["review"]
    assert said.startswith(why)
    [event] = await site.events(RegistryEvent.PLANNED)
    assert event["data"]["review"] == [said]
    assert "0 binned, 1 skipped" in await site.apply(sha)
    assert "did not say" in (await site.ledger.plans.report(sha))[f"{site.name}:old"]
    assert "1 binned" in await site.apply(await site.plan(), "prod")


async def test_a_silent_cluster_does_not_matter_where_no_cluster_uses_the_images(site, cluster):
    cluster.forever[Workload.POD] = DENIED
    await site.settle({**AUTOMATIC, "used_by_no_cluster": True}, clusters={"prod": {"kubeconfig": str(cluster.kubeconfig)}})
    push(site, "new", RECENT)
    push(site, "old")
    assert (await site.ledger.plans.read(await site.plan())).approved_by == "automatic"


async def test_what_begins_to_run_after_the_plan_stays(site, cluster):
    push(site, "new", RECENT)
    push(site, "old")
    sha = await site.plan()
    cluster.add(Workload.JOB, making("migrate", f"{site.name}:old"))
    forget(site)
    assert "0 binned, 1 skipped" in await site.run(f"apply:{sha}")
    assert "job shop/migrate of the cluster prod" in (await site.ledger.plans.report(sha))[f"{site.name}:old"]


async def test_a_cluster_that_falls_silent_after_the_plan_stops_its_application(site, cluster):
    push(site, "new", RECENT)
    push(site, "old")
    sha = await site.plan()
    cluster.forever[Workload.POD] = DENIED
    forget(site)
    assert "0 binned, 1 skipped" in await site.run(f"apply:{sha}")
    assert site.people_see().keys() == {"new", "old"}


async def test_a_cluster_is_not_asked_for_each_of_many_repositories_but_anew_before_anything_goes_for_good(site, cluster):
    push(site, "new", RECENT)
    old = push(site, "old")
    sha = await site.plan()
    await site.run(f"apply:{sha}")
    assert cluster.count(Workload.POD) == 1
    await site.window_ends()
    # In the bin it can still be pulled by its digest; and this moment the last answer is seconds old.
    cluster.add(Workload.DEPLOYMENT, making("web", f"{site.name}@{digest_of(old)}"))
    await site.purge()
    assert cluster.count(Workload.POD) > 1
    assert site.has(digest_of(old)) == digest_of(old)
    assert "deployment shop/web of the cluster prod" in (await site.ledger.plans.report(sha))[f"{site.name}@{digest_of(old)}"]
    cluster.objects.clear()
    cluster.forever[Workload.POD] = DENIED
    await site.window_ends()
    await site.purge()
    assert site.has(digest_of(old)) == digest_of(old)
    assert "may not list pods" in (await site.ledger.plans.report(sha))[f"{site.name}@{digest_of(old)}"]
    cluster.forever.clear()
    await site.window_ends()
    await site.purge()
    assert site.has(digest_of(old)) is None


async def test_a_tag_that_nodes_pull_by_another_name_of_the_registry_stays(site, cluster):
    await settle(site, cluster, collect=[{"registry": site.registry.host, "aliases": ["registry.internal:5000"], "kind": "kubernetes", "namespace": "images", "workload": "deployment/registry", "claim": "registry"}])  # fmt: skip
    push(site, "new", RECENT)
    push(site, "old")
    cluster.add(Workload.DEPLOYMENT, making("web", f"registry.internal:5000/{site.repository}:old"))
    assert "running: deployment shop/web" in (await reasons(site, await site.plan()))["old"]
