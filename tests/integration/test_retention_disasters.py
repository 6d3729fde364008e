"""What users of other tools lost at the moment of deletion (notes of their trackers), on a real registry. The plans' part is among the unit tests."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path

import httpx
from click.testing import CliRunner

from tests.faults.points import Point, points
from tests.integration.registry_server import RegistryServer, Reply, Request, digest_of, scripted
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site
from worker.registry_command import command

_PAUSE = 1
"""Seconds that the busy registry asks for."""


async def test_zot_2_1_20_and_distribution_3_beta_1_a_dry_run_changes_nothing(site: RetentionSite, tmp_path: Path) -> None:
    """Their dry runs deleted. Here nothing that could change anything is even sent, and the registry's files stay as they are."""
    for number in range(3):
        site.registry.push_image(site.repository, f"v{number}", layers=(b"%d" % number,), created=RECENT if number == 2 else OLD)
    sent: list[Point] = []
    with points(sent.append):
        sha = await site.plan()
    assert (await site.ledger.plans.read(sha)).totals["delete"] == 2
    asked = [point for point in sent if point.name.startswith("registry.")]
    assert asked
    assert not [point for point in asked if point.is_effect]
    before = site.tags()
    arguments = ["rm", f"{site.name}:v0", "--dry-run", "--insecure", site.registry.host]
    run = partial(CliRunner().invoke, command, arguments, env={"DOCKER_CONFIG": str(tmp_path)}, catch_exceptions=False)
    done = await asyncio.to_thread(run)  # it has an event loop of its own
    assert done.exit_code == 0, done.output
    assert site.tags() == before


async def test_harbor_6994_a_digest_whose_sibling_came_after_the_plan_stays(site: RetentionSite) -> None:
    old = site.registry.push_image(site.repository, "old", layers=(b"old",), created=OLD)
    site.registry.push_image(site.repository, "new", layers=(b"new",), created=RECENT)
    sha = await site.plan()
    site.registry.push_manifest(site.repository, "sibling", json.loads(old))
    await site.apply(sha)
    await site.window_ends()
    await site.purge()
    assert site.people_see()["sibling"] == site.people_see()["old"] == digest_of(old)


async def test_hub_tool_214_a_registry_that_has_enough_of_deletions_is_waited_for(settings, registry: RegistryServer, redis_server) -> None:
    """It answers 429 to every fifth change: no change is sent while it asks to be left alone, none is left out, and none counts as failed."""
    busy_until, changes, refused = 0.0, 0, 0
    with httpx.Client(base_url=f"http://{registry.host}", trust_env=False) as real:

        def behave(request: Request) -> Reply:
            nonlocal busy_until, changes, refused
            if request.method in ("PUT", "DELETE"):
                assert time.monotonic() >= busy_until - 0.05, "it was asked again too soon"
                changes += 1
                if changes % 5 == 0:
                    refused, busy_until = refused + 1, time.monotonic() + _PAUSE
                    return Reply(429, {"Retry-After": str(_PAUSE)})
            kept = {name: request.headers[name] for name in ("accept", "content-type") if name in request.headers}
            answer = real.request(request.method, request.path, headers=kept, content=request.body)
            told = {name: value for name, value in answer.headers.items() if name not in ("content-length", "transfer-encoding")}
            if request.method == "HEAD":
                told["Content-Length"] = answer.headers.get("content-length", "0")
            return Reply(answer.status_code, told, answer.content)

        async with scripted(behave) as busy:
            around = RegistryServer(busy.host)
            async with retention_site(settings, around, "busy/app") as site:
                await site.settle()
                for number in range(6):
                    registry.push_image(site.repository, f"v{number}", layers=(b"%d" % number,), created=OLD if number else RECENT)
                said = await site.apply(await site.plan())
                report = await site.ledger.plans.report((await site.ledger.plans.all())[0].sha256)
    assert said == "5 untagged, 5 binned, 0 skipped"
    assert refused >= 2
    assert {word.partition(" ")[0] for word in report.values()} == {"untagged", "binned"}
