"""Plans by example: each reason to stay, what an untag is, what goes with what, the caps, the bytes, and who must look at it first."""

from __future__ import annotations

import json

import pytest

from ledger.errors import InputInvalid
from ledger.references import ImageReference
from tests.unit.inventories import NAME, NOW, days, digest, goes, holding, image, index, judge, policy, tag, tags_of, why
from worker.retention.decisions import Action, hash_of, read_plan
from worker.retention.inventory import Inventory, Repository, Stored, read_inventory
from worker.retention.plan import plan
from worker.retention.protection import QUARANTINE, Protected

LAST = policy(keep=[{"last": 1}])
NEW = (image("new"), tag("new", "new", days(1)))


def alone(made, name):
    """The decision about a digest without a tag: its action, and its reasons in words."""
    [found] = [one for one in made.repositories[0].decisions if one.tag is None and one.digest == digest(name)]
    return found.action, [str(reason) for reason in found.reasons]


def signature(of):
    return digest(of).replace(":", "-")


def test_a_tag_goes_with_its_digest():
    made = judge(holding(*NEW, image("old"), tag("old", "old", days(9))), LAST)
    assert tags_of(made, Action.DELETE) == {"old"}
    assert made.repositories[0].deletions == (digest("old"),)
    assert made.freed == 1100


def test_a_tag_on_a_shared_digest_only_loses_its_name():
    things = [image("v1"), image("new"), tag("stable", "v1", days(9)), tag("old", "v1", days(30)), tag("new", "new", days(1))]
    rules = policy(keep=[{"last": 1}], protect=["stable"])
    made = judge(holding(*things), rules)
    assert tags_of(made, Action.UNTAG) == {"old"}
    assert why(made, "old") == ["shared digest: stable"]
    assert not made.repositories[0].deletions
    made = judge(holding(*things, untags=False), rules)
    assert tags_of(made, Action.KEEP) == {"stable", "new", "old"}
    assert why(made, "old") == ["shared digest: stable"]


def test_what_a_kept_index_holds_stays_through_any_number_of_indexes():
    things = [image("leaf"), index("inner", "leaf"), index("outer", "inner", "absent"), tag("new", "outer", days(1))]
    made = judge(holding(*things, tag("leaf", "leaf", days(90))), LAST)
    assert tags_of(made, Action.UNTAG) == {"leaf"}
    assert why(made, "leaf") == [f"index child: {digest('inner')}"]
    assert alone(made, "inner") == (Action.KEEP, [f"index child: {digest('outer')}"])


def test_an_index_goes_with_what_only_it_holds_before_it():
    things = [image("amd", "a"), image("arm", "b"), image("both", "c"), index("old", "amd", "both"), index("kept", "arm", "both")]
    made = judge(holding(*things, tag("old", "old", days(9)), tag("new", "kept", days(1))), LAST)
    assert made.repositories[0].deletions == (digest("old"), digest("amd"))
    assert alone(made, "amd") == (Action.DELETE, [f"goes with: {digest('old')}"])
    assert alone(made, "both") == (Action.KEEP, [f"index child: {digest('kept')}"])
    assert made.freed == 50 + 100 + 1000


def test_referrers_stay_and_go_with_what_they_are_about():
    things = [*NEW, image("old"), tag("old", "old", days(9))]
    about = [image("about new", subject=digest("new")), image("about old", subject=digest("old")), image("about ?", subject=digest("?"))]
    made = judge(holding(*things, *about), policy(keep=[{"last": 1}], delete_untagged_after="0s"))
    assert alone(made, "about new") == (Action.KEEP, [f"referrer: {digest('new')}"])
    assert alone(made, "about old") == (Action.DELETE, [f"goes with: {digest('old')}"])
    assert alone(made, "about ?") == (Action.KEEP, [f"referrer: {digest('?')}, which is not known here"])
    assert made.repositories[0].deletions == (digest("old"), digest("about old"))
    made = judge(holding(*things, *about, tag("tagged", "about ?", days(90))), LAST)
    assert why(made, "tagged") == [f"referrer: {digest('?')}, which is not known here"]


@pytest.mark.parametrize("suffix", [".sig", ".att", ".sbom", ""])
def test_signatures_tags_stay_and_go_with_what_they_are_about_and_count_for_no_rule(suffix):
    things = [*NEW, image("old"), tag("old", "old", days(9)), image("s1"), image("s2"), image("s3")]
    about = [tag(f"{signature(of)}{suffix}", f"s{number}", days(0)) for number, of in enumerate(("new", "old", "?"), 1)]
    made = judge(holding(*things, *about), LAST)
    assert tags_of(made, Action.DELETE) == {"old", f"{signature('old')}{suffix}"}
    assert why(made, f"{signature('new')}{suffix}") == [f"signature: {digest('new')}"]
    assert why(made, f"{signature('old')}{suffix}") == [f"goes with: {digest('old')}"]
    assert why(made, f"{signature('?')}{suffix}") == [f"signature: {digest('?')}, which is not known here"]


def test_the_fallback_list_of_referrers_keeps_what_it_lists():
    things = [*NEW, image("sbom", subject=digest("new")), index("list", "sbom"), tag(signature("new"), "list")]
    made = judge(holding(*things), LAST)
    assert alone(made, "sbom") == (Action.KEEP, [f"referrer: {digest('new')}", f"index child: {digest('list')}"])


@pytest.mark.parametrize(("kind", "word"), [("running", "running"), ("pinned", "pinned"), ("in_flight", "in flight")])
def test_what_is_used_outside_stays_by_digest_and_by_name(kind, word):
    things = [*NEW, image("a"), image("b"), image("c"), tag("a", "a", days(9)), tag("b", "b", days(9)), tag("c", "c", days(9))]
    marks = {digest("a"): "pod shop/web", f"{NAME}:b": "deployment shop/api"}
    made = judge(holding(*things), LAST, Protected(**{kind: marks}))
    assert why(made, "a") == [f"{word}: pod shop/web"]
    assert why(made, "b") == [f"{word}: deployment shop/api"]
    assert tags_of(made, Action.DELETE) == {"c"}


def test_an_index_stays_whose_part_runs():
    things = [*NEW, image("amd"), index("old", "amd"), tag("old", "old", days(9))]
    made = judge(holding(*things), LAST, Protected(running={digest("amd"): "pod shop/web"}))
    assert why(made, "old") == ["running: pod shop/web"]


def test_how_an_image_in_use_is_named():
    assert ImageReference.parse("r.io/a:1").mark == "r.io/a:1"
    assert ImageReference.parse("r.io/a").mark == "r.io/a:latest"
    assert ImageReference.parse("R.io:443/a:1").mark == ImageReference.parse("r.IO:80/a:1").mark == "r.io/a:1"
    assert ImageReference.parse("r.io:5443/a:1").mark == "r.io:5443/a:1"
    assert ImageReference.parse(f"r.io/a:1@{digest(1)}").mark == digest(1)


def test_untagged_images_go_only_when_the_policy_says_when_and_it_is_known_since_when():
    things = [*NEW, image("young", untagged_since=days(3)), image("old", untagged_since=days(20)), image("?")]
    made = judge(holding(*things), LAST)
    assert alone(made, "old") == (Action.KEEP, ["untagged: the policy does not say when it goes"])
    made = judge(holding(*things), policy(keep=[{"last": 1}], delete_untagged_after="7d"))
    assert alone(made, "old") == (Action.DELETE, ["untagged: for 7d or longer"])
    assert alone(made, "young") == (Action.KEEP, ["untagged: for less than 7d"])
    assert alone(made, "?") == (Action.KEEP, ["unknown time: since when it has no tag"])


def test_the_bin_is_seen_by_no_rule():
    things = [*NEW, image("binned"), tag(f"{QUARANTINE}20260301-1", "binned", days(0)), tag("old", "binned", days(9))]
    made = judge(holding(*things), LAST)
    assert why(made, f"{QUARANTINE}20260301-1") == ["quarantine"]
    assert tags_of(made, Action.UNTAG) == {"old"}


def test_the_grace_period():
    things = [*NEW, image("a"), tag("a", "a", days(1.5)), image("b"), tag("b", "b", days(2.5))]
    made = judge(holding(*things), policy(keep=[{"last": 1}], grace="2d"))
    assert why(made, "a") == ["grace: pushed within 2d"]
    assert tags_of(made, Action.DELETE) == {"b"}


def test_the_newest_always_stay():
    things = [thing for age in range(1, 6) for thing in (image(age), tag(f"t{age}", age, days(age)))]
    made = judge(holding(*things), policy(keep=[{"matching": ["none"]}], minimum=3))
    assert tags_of(made, Action.KEEP) == {"t1", "t2", "t3"}
    assert why(made, "t3") == ["minimum: the newest 3 stay"]


@pytest.mark.parametrize("caps", [{"max_count": 3}, {"max_share": 0.3}])
def test_no_more_than_one_plan_may_delete_and_the_oldest_first(caps):
    things = [thing for age in range(1, 11) for thing in (image(age), tag(f"t{age:02}", age, days(age)))]
    made = judge(holding(*things), policy(keep=[{"last": 1}], **caps))
    assert tags_of(made, Action.DELETE) == {"t08", "t09", "t10"}
    assert "blast radius" in why(made, "t07")[0]


def test_a_digest_whose_tags_do_not_fit_waits_whole():
    things = [*NEW, image("many"), image("one"), *(tag(f"m{number}", "many", days(90)) for number in range(3)), tag("o", "one", days(9))]
    made = judge(holding(*things), policy(keep=[{"last": 1}], max_count=2))
    assert tags_of(made, Action.DELETE) == {"o"}


def test_layers_that_kept_images_share_are_not_freed_also_in_other_repositories():
    inventory = Inventory(
        registry="registry.example.com",
        taken=NOW,
        repositories=(
            Repository(
                name=NAME,
                tags=(tag("new", "new", days(1)), tag("old", "old", days(9))),
                manifests=(image("new", "base", "n"), image("old", "base", "o", "elsewhere")),
            ),
            Repository(name="registry.example.com/other/app", tags=(tag("1", "x", days(1)),), manifests=(image("x", "elsewhere"),)),
        ),
    )
    assert plan(inventory, LAST, Protected(), NOW).freed == 100 + 1000


def test_who_must_look_at_it_first():
    inventory = holding(*NEW)
    automatic = policy(keep=[{"last": 1}], apply="automatic")
    asked = Protected(answered=("one",))
    assert judge(inventory, LAST, asked).repositories[0].review == ("the policy asks for it",)
    assert judge(inventory, automatic, asked).repositories[0].review == ()
    assert judge(inventory, automatic, Protected()).repositories[0].review == ("no cluster is listed that could say what runs there",)
    silent = Protected(answered=("one",), silent={"two": "it is away"})
    assert judge(inventory, automatic, silent).repositories[0].review == ("the cluster two did not say what runs there: it is away",)
    nobody = policy(keep=[{"last": 1}], apply="automatic", used_by_no_cluster=True)
    assert judge(inventory, nobody, silent).repositories[0].review == ()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (holding(*NEW, tag("old", "old", days(9))), "the manifest of old was not read"),
        (holding(*NEW, image("old"), tag("old", "old", days(9)), trouble="503"), "503"),
        (holding(*NEW, tag("new", "new", days(9))), "listed twice"),
        (holding(*NEW, Stored(digest=digest("s"), media_type="application/x-y", size=1)), "application/x-y"),
    ],
)
def test_what_was_not_wholly_read_keeps_everything(broken, said):
    made = judge(broken, LAST)
    assert goes(made) == set()
    assert {str(reason) for one in made.repositories[0].decisions for reason in one.reasons} == {made.repositories[0].review[0]}
    assert said in made.repositories[0].review[0]


def test_a_plan_that_was_changed_is_not_read():
    made = judge(holding(*NEW, image("old"), tag("old", "old", days(9))), LAST)
    assert read_plan(made.text(), made.sha256) == made
    forged = made.text().replace('"keep"', '"delete"')
    with pytest.raises(InputInvalid, match="not the one"):
        read_plan(forged, made.sha256)
    for text in ("", "[]", "{}", '{"version":2}', json.dumps({**json.loads(made.text()), "repositories": [{}]})):
        with pytest.raises(InputInvalid):
            read_plan(text, hash_of(text))


def test_what_is_no_inventory_is_not_read():
    good = json.loads(holding(*NEW).text())
    for change in ({"version": 2}, {"taken": "soon"}, {"repositories": [{}]}, {"repositories": None}):
        with pytest.raises(InputInvalid):
            read_inventory(json.dumps({**good, **change}))
    for text in ("", "[]", "x"):
        with pytest.raises(InputInvalid):
            read_inventory(text)


def test_a_plan_says_what_it_counts():
    made = judge(holding(*NEW, image("old"), tag("old", "old", days(9))), LAST)
    assert (made.count(Action.KEEP), made.count(Action.DELETE), made.count(Action.UNTAG)) == (1, 1, 0)
    assert made.repositories[0].decisions[0].digest == digest("new")
