"""What each rule of a policy keeps, what a policy may say, and whose policy a repository has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ledger.errors import ProjectsInvalid
from ledger.projects import parse_projects
from tests.unit.inventories import NAME, NEVER, NOW, days, digest, holding, image, judge, policy, tag, tags_of, why
from worker.retention.decisions import Action
from worker.retention.inventory import parse_time
from worker.retention.policy import Policies


def kept(names, *rules, **more):
    """Of tags by their age in days, each with an image of its own, those that rules keep; `minimum` keeps the newest."""
    things = [thing for name, age in names.items() for thing in (image(name), tag(name, name, days(age)))]
    return tags_of(judge(holding(*things), policy(keep=list(rules), **more)), Action.KEEP)


def test_the_newest_by_push_and_not_by_name():
    assert kept({"a": 3, "b": 1, "c": 2, "d": 9}, {"last": 2}) == {"b", "c"}


def test_of_equal_times_all_stay():
    """GitLab#351538: newer tags were deleted where dates were equal."""
    assert kept({"a": 1, "b": 2, "c": 2, "d": 2, "e": 3}, {"last": 2}) == {"a", "b", "c", "d"}


def test_an_image_counts_once_and_stays_with_all_its_tags():
    things = [image("new"), image("old"), image("older")]
    things += [tag("1", "new", days(1)), tag("latest", "new", days(1)), tag("v1", "new", days(40))]
    things += [tag("0", "old", days(2)), tag("00", "older", days(3))]
    made = judge(holding(*things), policy(keep=[{"last": 2}]))
    assert tags_of(made, Action.KEEP) == {"1", "latest", "v1", "0"}
    assert tags_of(made, Action.DELETE) == {"00"}


def test_only_the_tags_of_a_rule_count_for_it():
    ages = {"main-1": 1, "main-2": 2, "main-3": 3, "x-1": 4, "x-2": 5}
    assert kept(ages, {"last": 2, "tags": ["main-*"]}, {"last": 1, "tags": ["x-*"]}) == {"main-1", "main-2", "x-1"}


def test_younger_than():
    assert kept({"a": 0, "b": 6.9, "c": 7.1}, {"within": "7d"}) == {"a", "b"}


def test_matching():
    assert kept({"v1": 50, "v2-rc": 60, "latest": 70, "x": 80}, {"matching": ["latest", r"/v\d+/"]}) == {"v1", "latest"}


VERSIONS = dict.fromkeys(("1.0.0", "v1.0.1", "1.0.10", "1.1.0", "2.0.0", "2.0.0-rc.1", "1.0.9-alpine", "1.0", "1", "2", "9", "x"), 100) | {
    "newest": 0
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"versions": 1}, {"2.0.0", "2"}),
        ({"versions": 2}, {"2.0.0", "2", "1.1.0", "1"}),
        ({"versions": 1, "per": "major"}, {"2.0.0", "2", "1.1.0", "1"}),
        ({"versions": 1, "per": "minor"}, {"2.0.0", "2", "1.1.0", "1.0.10", "1.0", "1"}),
        ({"versions": 2, "per": "minor"}, {"2.0.0", "2", "1.1.0", "1.0.10", "v1.0.1", "1.0", "1"}),
        ({"versions": 2, "per": "minor", "suffixes": True}, {"2.0.0", "2.0.0-rc.1", "2", "1.1.0", "1.0.10", "1.0.9-alpine", "1.0", "1"}),
    ],
)
def test_the_highest_versions_by_number_with_the_tags_of_their_lines(rule, expected):
    assert kept(VERSIONS, rule) - {"newest"} == expected


def test_the_last_of_each_branch_and_what_has_no_branch():
    ages = {"main-0000001": 1, "main-0000002": 2, "main-0000003": 3, "a-b-0000001": 50, "a-b-0000002": 51, "odd": 90}
    rule = {"last": 1, "per_branch": "{branch}-{short_sha}"}
    assert kept(ages, rule) == {"main-0000001", "a-b-0000001", "odd"}
    things = [image(1), image(2), tag("x1", 1, days(1), branch="main"), tag("x2", 2, days(2), branch="main")]
    assert tags_of(judge(holding(*things), policy(keep=[rule])), Action.DELETE) == {"x2"}


@pytest.mark.parametrize(
    ("pushed", "pulled", "goes"),
    [
        (90, days(40), True),
        (90, days(30), False),
        (90, days(1), False),
        (90, NEVER, True),  # then its push counts
        (40, datetime(1970, 1, 1, tzinfo=UTC), True),  # so zot says never
        (20, NEVER, False),
        (20, days(40), False),  # a tag that was put lately on what was pulled long ago
        (90, None, False),
        (90, NOW + timedelta(days=1), False),
        (90, NOW + timedelta(minutes=5), False),
    ],
)
def test_what_was_pulled_or_pushed_within_a_time_stays_and_what_nobody_knows_of(pushed, pulled, goes):
    things = [image("new"), image("old"), tag("new", "new", days(1)), tag("old", "old", days(pushed), pulled=pulled)]
    made = judge(holding(*things), policy(keep=[{"matching": ["none"]}, {"pulled": "30d"}]))
    assert tags_of(made, Action.DELETE) == ({"old"} if goes else set())
    unknown = pulled is None or pulled > NOW + timedelta(hours=1)
    expected = ["rule: keep.1: pulled 30d", *(["unknown pull time"] if unknown else [])]
    assert why(made, "old") == (["condemned: delete: *"] if goes else expected)


def test_a_plan_says_why_nobody_knows_when_something_was_pulled():
    things = [image(1), image(2), tag("a", 1, days(1)), tag("b", 2, days(90)), tag("x", 2, days(90), pulled=NEVER)]
    inventory = holding(*things)
    [repository] = inventory.repositories
    untold = replace(inventory, repositories=(replace(repository, untold="registry.example.com tells no pull times"),))
    made = judge(untold, policy(keep=[{"pulled": "30d", "tags": ["b"]}]))
    assert why(made, "b") == ["rule: keep.0: pulled 30d of b", "unknown pull time: registry.example.com tells no pull times"]
    assert tags_of(made, Action.UNTAG) == {"x"}


def test_only_policies_with_such_a_rule_ask_for_pulls():
    asking = policy(keep=[{"last": 1}, {"pulled": "30d"}])
    assert asking.asks_for_pulls(NAME)
    assert not asking.asks_for_pulls(f"{NAME}-other")
    assert not policy(keep=[{"last": 1}]).asks_for_pulls(NAME)


def test_what_stays_is_what_any_rule_keeps_and_says_all():
    things = [image(1), image(2), image(3), tag("v1.0.0", 1, days(1)), tag("v0.9.0", 2, days(20)), tag("x", 3, days(30))]
    made = judge(holding(*things), policy(keep=[{"last": 1}, {"versions": 1}, {"matching": ["v*"]}], protect=["v0.*"]))
    assert why(made, "v1.0.0") == [
        "rule: keep.0: last 1",
        "rule: keep.1: 1 versions",
        "rule: keep.2: matching v*",
        "minimum: the newest 1 stay",
    ]
    assert why(made, "v0.9.0") == ["rule: keep.2: matching v*", "protected: protect: v0.*"]
    assert why(made, "x") == ["condemned: delete: *"]


def test_by_default_everything_stays():
    things = [image(1), image(2), tag("a", 1, days(1)), tag("b", 2, days(900))]
    made = judge(holding(*things), Policies())
    assert why(made, "b") == ["no policy: no policy names the repository"]
    assert made.repositories[0].review
    made = judge(holding(*things), policy(delete=["x*"], keep=[{"last": 1}]))
    assert why(made, "b") == ["no policy: no pattern of `delete` names it"]


def test_the_first_policy_of_a_project_is_its_own_and_two_projects_keep_all():
    text = """
version: 1
projects:
  a:
    retention:
      - {repositories: ["registry.example.com/team/app"], delete: ["x*"], keep: [{last: 1}]}
      - {repositories: ["registry.example.com/**"], delete: ["*"], keep: [{last: 1}]}
  b:
    retention:
      - {repositories: ["registry.example.com/shared/*"], delete: ["*"], keep: [{last: 1}]}
"""
    policies = Policies.of(parse_projects(text).projects)
    [(project, found)] = policies.naming(NAME)
    assert (project, found.delete) == ("a", ("x*",))
    assert [project for project, _ in policies.naming("registry.example.com/shared/app")] == ["a", "b"]
    assert policies.naming("elsewhere.example.com/app") == ()
    assert policies.plain_names() == {NAME}
    things = [image(1), image(2), tag("a", 1, days(1)), tag("b", 2, days(900))]
    made = judge(holding(*things, name="registry.example.com/shared/app"), policies)
    assert why(made, "b") == ["disputed: policies of a and b name the repository"]


@pytest.mark.parametrize(
    ("fields", "line", "said"),
    [
        ("delete: ['*']", 5, "say which of them stay"),
        ("keep: [{last: 1}]", 5, "need tags that may go"),
        ("delete: ['*']\n        keep: [{last: 1, within: 3d}]", 7, "last and within"),
        ("delete: ['*']\n        keep: [{}]", 7, "none"),
        ("delete: ['*']\n        keep: [{within: 3d, per_branch: '{branch}'}]", 7, "goes with `last`"),
        ("delete: ['*']\n        keep: [{last: 3, per: minor}]", 7, "go with `versions`"),
        ("delete: ['*']\n        keep: [{matching: [a], tags: [b]}]", 7, "say it already"),
        ("delete: ['/(/']\n        keep: [{last: 1}]", 6, "regular expression"),
        ("delete: ['*']\n        keep: [{last: 0}]", 7, "greater than"),
        ("minimum: 0", 6, "greater than"),
        ("max_share: 2", 6, "less than"),
        ("apply: nightly", 6, "automatic"),
        ("delete_untagged_after: soon", 6, "duration"),
    ],
)
def test_a_policy_that_is_none_is_named_with_its_line(fields, line, said):
    text = f"version: 1\nprojects:\n  a:\n    retention:\n      - repositories: [registry.example.com/a]\n        {fields}\n"
    with pytest.raises(ProjectsInvalid) as caught:
        parse_projects(text, "p.yaml")
    assert said in str(caught.value)
    assert f"p.yaml:{line}:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00+23:00", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_an_images_date(text, expected):
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    "at",
    [None, datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), datetime(1980, 1, 1, 0, 0, 1, tzinfo=UTC), NOW + timedelta(1)],
)
def test_a_time_that_cannot_be_one_protects_the_repository(at):
    things = [image(1), image(2), image(3), tag("a", 1, days(1)), tag("b", 2, days(2)), tag("c", 3, at)]
    made = judge(holding(*things), policy(keep=[{"last": 1}]))
    assert why(made, "b") == ["trouble: nobody knows when c was pushed"]
    made = judge(holding(*things), policy(keep=[{"last": 1}], delete=["a", "b"]))
    assert tags_of(made, Action.DELETE) == {"b"}
    assert "unknown time" in why(made, "c")
    assert digest(3) not in made.repositories[0].deletions
