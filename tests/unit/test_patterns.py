"""Patterns: what they name, what is no pattern, and that none costs more than its text is long."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.patterns import branch_template, is_plain, repository_pattern, tag_pattern


@pytest.mark.parametrize(
    ("pattern", "named", "not_named"),
    [
        ("*", ["a", "v1.2"], []),
        ("v*", ["v1", "v"], ["av1", "V1"]),
        ("v*-rc*", ["v1-rc", "v1-rc-rc2"], ["v1", "v1-r"]),
        ("v?.*", ["v1.2"], ["v12.3", "v1"]),
        ("latest", ["latest"], ["latest2", "notlatest"]),
        ("1.2", ["1.2"], ["1x2"]),
        (r"/v\d+(\.\d+)*/", ["v1", "v1.2.3"], ["v1.", "xv1", "v1.2x"]),
        ("/dev|test/", ["dev", "test"], ["devtest", "xdev"]),
        ("/(?i)rc/", ["RC", "rc"], ["r"]),
    ],
)
def test_tags(pattern, named, not_named):
    matches = tag_pattern(pattern)
    assert all(matches(tag) for tag in named)
    assert not any(matches(tag) for tag in not_named)


@pytest.mark.parametrize(
    ("pattern", "named", "not_named"),
    [
        ("r.io/team/app", ["r.io/team/app"], ["r.io/team/app2", "rxio/team/app"]),
        ("r.io/team/*", ["r.io/team/app"], ["r.io/team/a/b", "r.io/team"]),
        ("r.io/**", ["r.io/team/app", "r.io/x"], ["q.io/x"]),
        ("r.io/**/cache-?", ["r.io/a/b/cache-1"], ["r.io/a/cache-12", "r.io/a/cache-/"]),
        ("**/scratch", ["r.io/a/scratch", "r.io:5000/scratch"], ["r.io/scratch/a"]),
        ("/r\\.io/(a|b)/", ["r.io/a"], ["r.io/ab"]),
    ],
)
def test_repositories(pattern, named, not_named):
    matches = repository_pattern(pattern)
    assert all(matches(name) for name in named)
    assert not any(matches(name) for name in not_named)


@pytest.mark.parametrize("pattern", ["", "a b", "a/b", "//", "/(/", "/(a)\\1/", "/(?=a)b/", "/(?<!a)b/", "é", "x" * 300])
def test_what_is_no_pattern_of_tags(pattern):
    with pytest.raises(ValueError, match=r"pattern|regular expression"):
        tag_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "app", "r.io/a b", "/(/"])
def test_what_is_no_pattern_of_repositories(pattern):
    with pytest.raises(ValueError, match=r"pattern|regular expression"):
        repository_pattern(pattern)


def test_a_plain_name_is_known():
    assert is_plain("r.io/team/app")
    assert not any(is_plain(pattern) for pattern in ("r.io/team/*", "r.io/a?", "/r.io.a/"))


@given(st.text("ab*?", min_size=1, max_size=12), st.text("ab", max_size=12))
def test_a_glob_names_what_a_plain_glob_names(pattern, tag):
    assert bool(tag_pattern(pattern)(tag)) is fnmatch.fnmatchcase(tag, pattern)


@pytest.mark.parametrize("pattern", ["*a" * 60, "*a*" * 50 + "b", "/(a+)+b/", "/(a|a)*b/", "/(.*)(.*)(.*)(.*)b/", "/a*a*a*a*a*b/"])
def test_no_pattern_takes_for_ever(pattern):
    assert not tag_pattern(pattern)("a" * 127 + "c")


@pytest.mark.parametrize(
    ("template", "tag", "branch"),
    [
        ("{branch}-{short_sha}", "main-0123abc", "main"),
        ("{branch}-{short_sha}", "fix-abcdef0-0123abc", "fix-abcdef0"),
        ("{branch}-{short_sha}", "main", None),
        ("{branch}-{short_sha}", "-0123abc", None),
        ("pr-{number}-{branch}-{sha}", "pr-12-x-" + "a" * 40, "x"),
        ("{branch}.{number}", "main.17", "main"),
        ("{branch}", "main", "main"),
    ],
)
def test_branches(template, tag, branch):
    assert branch_template(template)(tag) == branch


@pytest.mark.parametrize("template", ["", "{sha}", "{branch}{branch}", "{branch}-{other}", "{branch}-{", "{branch}-{{sha}}"])
def test_what_is_no_template(template):
    with pytest.raises(ValueError, match="branch"):
        branch_template(template)


def test_no_tag_makes_a_template_take_for_ever():
    assert branch_template("{branch}-{sha}-{number}-{sha}")("a-1-" * 31 + "xyz") is None
