"""When a schedule's occurrence has come: by its zone's clock, once, and the last one only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import ProjectsInvalid
from ledger.projects import parse_projects
from ledger.retention import Retention
from ledger.schedule import Schedule
from ledger.site import Site
from worker.retention.policy import Policies
from worker.schedules import jitter_of, last_occurrence, planned_of


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NIGHTLY = Schedule(schedule="0 2 * * *", time_zone="Europe/Berlin")


@pytest.mark.parametrize(
    ("after", "now", "expected"),
    [
        ("2026-01-10T00:00", "2026-01-10T00:59:59", None),
        ("2026-01-10T00:00", "2026-01-10T01:00", "2026-01-10T01:00"),
        ("2026-01-10T01:00", "2026-01-10T01:00:30", None),
        ("2026-01-05T00:00", "2026-01-10T12:00", "2026-01-10T01:00"),
        ("2026-07-10T00:00", "2026-07-10T23:00", None),
        ("2026-07-09T23:00", "2026-07-10T23:00", "2026-07-10T00:00"),
    ],
)
def test_the_last_occurrence_by_the_zones_clock(after, now, expected):
    assert last_occurrence(NIGHTLY, at(after), at(now)) == (expected and at(expected))


def test_the_next_occurrence_by_the_zones_clock():
    assert NIGHTLY.next_after(at("2026-01-10T01:00")).isoformat() == "2026-01-11T02:00:00+01:00"
    assert NIGHTLY.next_after(at("2026-07-10T01:00")).isoformat() == "2026-07-11T02:00:00+02:00"


def test_the_hour_that_summer_time_leaves_out_and_the_one_that_comes_twice():
    found, now = [], at("2026-03-27T12:00")
    taken = now
    while now < at("2026-03-31T12:00"):
        now += timedelta(minutes=1)
        if came := last_occurrence(Schedule(schedule="30 2 * * *", time_zone="Europe/Berlin"), taken, now):
            found.append(came)
            taken = came
    assert [one.date().isoformat() for one in found] == ["2026-03-28", "2026-03-29", "2026-03-30", "2026-03-31"]
    found, taken, now = [], at("2026-10-24T12:00"), at("2026-10-24T12:00")
    while now < at("2026-10-26T12:00"):
        now += timedelta(minutes=1)
        if came := last_occurrence(Schedule(schedule="30 2 * * *", time_zone="Europe/Berlin"), taken, now):
            found.append(came)
            taken = came
    assert len(found) == 2


@given(st.lists(st.integers(0, 3 * 24 * 3600), min_size=1, max_size=20).map(sorted))
def test_whenever_it_is_looked_each_occurrence_comes_at_most_once_and_the_last_is_never_missed(seconds):
    start = at("2026-05-01T00:00")
    taken, found = start, []
    for second in seconds:
        now = start + timedelta(seconds=second)
        if came := last_occurrence(NIGHTLY, taken, now):
            assert came > taken
            found.append(came)
            taken = came
        assert now - taken < timedelta(days=1) or taken == start
    assert len(set(found)) == len(found)


def test_the_registries_that_policies_name_are_planned():
    keep = {"delete": ("*",), "keep": ({"last": 1},)}
    entries = [Retention(repositories=(name,), **keep) for name in ("a.test/x", "a.test/y*", "b.test/**", "*/z", "/c.test\\/.*/")]
    policies = Policies(tuple(("team", entry) for entry in entries))
    assert [planned.chore for planned in planned_of(Site(retention=NIGHTLY), policies)] == ["plan:a.test", "plan:b.test"]
    assert list(planned_of(Site(), policies)) == []
    first, second = planned_of(Site(retention=NIGHTLY), policies)
    assert jitter_of(first) != jitter_of(second)
    assert timedelta(0) <= jitter_of(first) < timedelta(minutes=10)


@pytest.mark.parametrize(
    ("said", "line", "named"),
    [
        ("retention: {schedule: every night}", 2, "retention.schedule"),
        ("retention: {schedule: 0 2 * * *, time_zone: Mars/North}", 2, "retention.time_zone"),
        ("clusters:\n  prod: {}", 3, "clusters.prod"),
        ("clusters:\n  prod: {token: {env: T, file: x}}", 3, "clusters.prod"),
    ],
)
def test_what_the_projects_file_may_not_say(said, line, named):
    with pytest.raises(ProjectsInvalid, match=f":{line}: {named}"):
        parse_projects(f"version: 1\n{said}\nprojects: {{}}\n")
