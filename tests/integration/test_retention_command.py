"""`crabpot retention plan`, `ls`, `show`, `approve` and `undo` as processes, beside a worker: a person's way through a plan."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from tests.integration.commands import run_crabpot, working
from tests.integration.registry_server import digest_of
from tests.integration.retention_site import OLD, RECENT, RetentionSite

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def crabpot(site: RetentionSite, redis_url: str, tmp_path: Path) -> AsyncIterator[Command]:
    """The command, and a worker that does what it asks for."""
    async with working(site.place):
        yield partial(run_crabpot, "retention", HOME=str(tmp_path), CRABPOT_REDIS_URL=redis_url)


async def test_a_person_makes_a_plan_reads_it_lets_it_go_and_takes_it_back(site: RetentionSite, crabpot: Command) -> None:
    old = site.registry.push_image(site.repository, "old", layers=(b"old",), created=OLD)
    site.registry.push_image(site.repository, "new", layers=(b"new",), created=RECENT)
    before = site.tags()

    code, listed, err = await crabpot("plan", site.registry.host)
    assert (code, err) == (0, "")
    plan, host, state, _, deletes, *_ = listed.rstrip("\n").split("\t")
    assert (host, state, deletes) == (site.registry.host, "proposed", "1")
    assert "the policy asks for it" in listed
    assert (await crabpot("ls"))[1] == listed
    assert await crabpot("ls", "elsewhere.test") == (0, "", "")

    code, shown, err = await crabpot("show", plan)
    assert (code, err) == (0, "")
    assert "to be approved: the policy asks for it" in shown
    assert f"{site.name}:old\tdelete\tcondemned: delete: *" in shown
    assert f"{site.name}:new" not in shown
    assert f"{site.name}:new\tkeep\t" in (await crabpot("show", plan, "--all"))[1]
    assert site.tags() == before

    code, done, err = await crabpot("approve", plan)
    assert (code, err) == (0, "1 untagged, 1 binned, 0 skipped\n")
    assert f"{site.name}:old\tuntagged" in done
    assert f"{site.name}@{digest_of(old)}\tbinned until " in done
    assert set(site.people_see()) == {"new"}
    told = json.loads((await crabpot("show", plan, "--json"))[1])
    assert (told["state"], told["decisions"][0]["outcome"]) == ("applied", "untagged")
    for said in ((await crabpot("show", plan))[1], (await crabpot("ls"))[1]):
        assert "the policy asks for it" not in said, "nobody is waited for any more"
    assert f"approved by: {told['approved_by']}" in (await crabpot("show", plan))[1]

    code, back, err = await crabpot("undo", plan)
    assert (code, err) == (0, "2 returned, 0 left, 0 lost\n")
    assert f"{site.name}:old\treturned" in back
    assert site.tags() == before
    code, _, err = await crabpot("approve", plan)
    assert (code, "was undone already" in err) == (5, True)


async def test_what_is_wrong_is_said(site: RetentionSite, crabpot: Command) -> None:
    for arguments, code, said in (
        (("show", "nonsense"), 3, "there is no plan nonsense; `crabpot retention ls` shows those that there are"),
        (("plan", "no/registry"), 2, "no/registry"),
        (("plan", "elsewhere.test"), 5, "no policy names a repository of elsewhere.test"),
    ):
        found = await crabpot(*arguments)
        assert (found[0], found[1], said in found[2]) == (code, "", True), found


async def test_an_approval_names_clusters_that_there_are(site: RetentionSite, crabpot: Command) -> None:
    site.registry.push_image(site.repository, "old", layers=(b"old",), created=OLD)
    site.registry.push_image(site.repository, "new", layers=(b"new",), created=RECENT)
    plan = (await crabpot("plan", site.registry.host))[1].partition("\t")[0]
    code, out, err = await crabpot("approve", plan, "--despite", "prdo")
    assert (code, out, "prdo" in err) == (2, "", True), err
    assert set(site.people_see()) == {"old", "new"}
