"""What an adoption learns of each tag, and what a file of times may say: pure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given

from ledger.adoption import read_json, read_times
from ledger.errors import InputInvalid
from ledger.references import parse_target
from ledger.retention import Retention
from tests.unit.inventories import NOW, days, digest, goes, holding, image, inventories, judge, policies, policy, tag, tags_of
from worker.retention.adoption import Adoption, counted, learn, said_of
from worker.retention.decisions import Action
from worker.retention.inventory import Origin, Repository, Tag
from worker.retention.memory import Recalled, Seen
from worker.retention.policy import Policies

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SIGNATURE = f"sha256-{'0' * 64}.sig"
HOST = "registry.example.com"


def one(origin: Origin | None, pushed: datetime | None, told: datetime | None = None) -> tuple[datetime | None, Origin, Origin]:
    """What is remembered of a tag after an adoption, and where its time is said to be from."""
    since = pushed if origin in (Origin.SEEN, Origin.TOLD, Origin.ADOPTED) else None
    before = Recalled({"t": Seen(digest(1), NOW, since, origin if since and origin else Origin.SEEN)}, was_seen=True)
    repository = Repository(name=f"{HOST}/a", tags=(Tag(name="t", digest=digest(1), pushed=pushed, origin=origin),))
    learned, origins = learn(repository, before, {"t": told} if told else {}, NOW)
    [said] = origins
    after = (learned or before).tags["t"]
    return after.since, after.origin, said


def test_only_what_has_no_credible_time_counts_from_now_on():
    for origin, pushed in ((None, None), (Origin.IMAGE, EPOCH), (Origin.IMAGE, NOW + timedelta(days=400))):
        assert one(origin, pushed) == (NOW, Origin.ADOPTED, Origin.ADOPTED)
    assert one(Origin.IMAGE, days(9)) == (None, Origin.SEEN, Origin.IMAGE)
    assert one(Origin.PUSH, days(9)) == (None, Origin.SEEN, Origin.PUSH)
    for origin in (Origin.SEEN, Origin.TOLD, Origin.ADOPTED):
        assert one(origin, days(9)) == (days(9), origin, origin)


def test_what_is_told_counts_unless_crabpot_or_a_later_date_of_the_image_knows_better():
    for origin, pushed in ((None, None), (Origin.IMAGE, EPOCH), (Origin.IMAGE, days(9)), (Origin.ADOPTED, days(1)), (Origin.TOLD, days(7))):
        assert one(origin, pushed, days(8)) == (days(8), Origin.TOLD, Origin.TOLD)
    assert one(Origin.IMAGE, days(8), days(9)) == (None, Origin.SEEN, Origin.IMAGE)
    assert one(Origin.PUSH, days(8), days(1)) == (None, Origin.SEEN, Origin.PUSH)
    assert one(Origin.SEEN, days(8), days(1)) == (days(8), Origin.SEEN, Origin.SEEN)


def test_signatures_need_no_time_and_times_of_what_is_not_there_are_counted():
    before = Recalled({SIGNATURE: Seen(digest(1), NOW)}, was_seen=True)
    repository = Repository(name=f"{HOST}/a", tags=(Tag(name=SIGNATURE, digest=digest(1)),))
    learned, origins = learn(repository, before, {"gone": days(1)}, NOW)
    assert (learned, dict(origins)) == (None, {})
    state = counted(Adoption(), repository, origins, {"gone": days(1)})
    assert (state.ageless, state.strays, state.tags) == (1, 1, {})
    said = said_of(state.model_copy(update={"unread": 2, "trouble": "a: 500", "listed": False}))
    for part in (
        "1 repositories, 0 tags; 1 signatures",
        "1 times were told",
        "2 repositories could not be read, as a: 500",
        "policies name",
    ):
        assert part in said


def test_an_adopted_tag_takes_no_place_and_goes_once_so_many_came_after_its_adoption():
    things = [image(number) for number in range(6)]
    adopted = [tag(name, of, days(10)) for of, name in enumerate("abc")]
    adopted = [Tag(name=one.name, digest=one.digest, pushed=one.pushed, origin=Origin.ADOPTED) for one in adopted]
    known = [tag("d", 3, days(20)), tag("e", 4, days(30))]
    last_one = policy(keep=[{"last": 1}])
    assert tags_of(judge(holding(*things, *adopted, *known), last_one), Action.DELETE) == {"e"}
    later = [*known, tag("f", 5, days(9))]
    assert tags_of(judge(holding(*things, *adopted, *later), last_one), Action.DELETE) == {"a", "b", "c", "d", "e"}
    assert tags_of(judge(holding(*things, *adopted, *later), policy(keep=[{"within": "11d"}])), Action.DELETE) == {"d", "e"}


@given(inventories(honest=True), policies(max_share=1.0, max_count=10**6))
def test_to_adopt_a_tag_never_makes_another_go(inventory, fields):
    rules = Policies((("team", Retention(**fields)),))
    before = goes(judge(inventory, rules))
    for repository in inventory.repositories:
        more = Tag(name="adopted-1", digest=digest("adopted"), pushed=days(5), origin=Origin.ADOPTED)
        added = Repository(
            name=repository.name, tags=(*repository.tags, more), manifests=(*repository.manifests, image("adopted", "adopted"))
        )
        others = tuple(added if one is repository else one for one in inventory.repositories)
        made = judge(type(inventory)(registry=inventory.registry, taken=NOW, repositories=others, untags=inventory.untags), rules)
        assert goes(made) - {f"{repository.name}@{digest('adopted')}"} <= before


def test_a_file_of_times_is_read_by_repository():
    text = {
        f"{HOST}/a:1": "2025-01-01T00:00:00Z",
        f"{HOST}/a:2": "2025-01-01T02:00:00+02:00",
        f"{HOST}/b/c:1": "2025-01-01T00:00:00.123456789Z",
    }
    found = read_times(read_json(json.dumps(text).encode(), "it"), HOST, NOW)
    assert found[f"{HOST}/a"]["1"] == found[f"{HOST}/a"]["2"] == datetime(2025, 1, 1, tzinfo=UTC)
    assert found.keys() == {f"{HOST}/a", f"{HOST}/b/c"}


@pytest.mark.parametrize(
    ("text", "entry", "said"),
    [
        ("[1]", "", "must be one object"),
        ("{", "", "the file of times is no JSON"),
        ("[" * 100_000, "", "the file of times is no JSON"),
        ("\ud800", "", "the file of times is no JSON"),
        ('{"app:1": "2025-01-01T00:00:00Z"}', "app:1", "name the registry"),
        (f'{{"{HOST}/a": "2025-01-01T00:00:00Z"}}', f"{HOST}/a", "names a tag"),
        (f'{{"{HOST}/a@{digest(1)}": "2025-01-01T00:00:00Z"}}', f"{HOST}/a@{digest(1)}", "names a tag"),
        ('{"other.example.com/a:1": "2025-01-01T00:00:00Z"}', "other.example.com/a:1", f"not of {HOST}"),
        (f'{{"{HOST}/a:1": "2025-01-01T00:00:00"}}', f"{HOST}/a:1", "time zone"),
        (f'{{"{HOST}/a:1": "yesterday"}}', f"{HOST}/a:1", "time zone"),
        (f'{{"{HOST}/a:1": 1700000000}}', f"{HOST}/a:1", "time zone"),
        (f'{{"{HOST}/a:1": "1970-01-01T00:00:00Z"}}', f"{HOST}/a:1", "before March 2013"),
        (f'{{"{HOST}/a:1": "2999-01-01T00:00:00Z"}}', f"{HOST}/a:1", "yet to come"),
        (f'{{"{HOST}/a:1": "2025-01-01T00:00:00Z", "{HOST}/a:1": "2025-01-02T00:00:00Z"}}', f"{HOST}/a:1", "named twice"),
    ],
)
def test_a_wrong_file_of_times_is_refused_naming_the_entry(text, entry, said):
    with pytest.raises(InputInvalid, match=re.escape(said)) as refused:
        read_times(read_json(text.encode(errors="surrogatepass"), "the file of times"), HOST, NOW)
    assert refused.value.problems[0].path == entry


@pytest.mark.parametrize("target", ["registry.example.com", "localhost:5000", f"{HOST}/team/app"])
def test_a_registry_or_a_repository_is_adopted(target):
    assert parse_target(target) == target


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"{HOST}/app:1", "with all its tags"),
        (f"{HOST}/app@{digest(1)}", "with all its tags"),
        ("http://x", "without a scheme"),
        ("a/b", "name the"),
    ],
)
def test_what_is_neither_is_not(target, said):
    with pytest.raises(ValueError, match=said):
        parse_target(target)
