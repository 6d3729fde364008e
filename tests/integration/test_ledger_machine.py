"""The ledger against a model: whatever order things happen in, the indexes, slots and limits agree with the records."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ledger.build import FINAL, State
from ledger.errors import TooLate, VersionConflict
from ledger.projects import Limits, Projects
from ledger.settings import Settings
from ledger.store import Ledger
from producer.cancel import cancel_build
from producer.submit import submit_build_async
from tests.requests import make_request

HOUR = timedelta(hours=1)
PROJECTS = ("demo", "other")


class LedgerMachine(RuleBasedStateMachine):
    """Submits, admissions, ends, retries, cancels, stale writes, changed limits and forgetting, in any order."""

    url: str
    projects: Projects
    builds = Bundle("builds")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger.open(Settings(redis_url=self.url, keep_finished="0s"))
        self.limit, self.own = 4, 2
        self.known: set[str] = set()
        self.run(self.ledger.connection.command("FLUSHALL"))
        self.run(self.ledger.store_projects(self.projects))

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.run(self.ledger.close())
        self.loop.close()

    @rule(target=builds, project=st.sampled_from(PROJECTS), priority=st.integers(-3, 3))
    def submit(self, project: str, priority: int) -> str:
        source = {"kind": "git", "url": f"https://git.example.com/team/{project}.git", "commit": "c" * 40}
        request = make_request(
            project=project, source=source, destinations=[f"registry.example.com/team/{project}:1.0.0"], priority=priority
        )
        build = self.run(submit_build_async(request, ledger=self.ledger))
        self.known.add(build.id)
        return build.id

    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        for _ in range(count):
            before = len(self.run(self.ledger.slots()))
            admitted = self.run(self.ledger.admit(HOUR))
            assert admitted is None or (admitted.state is State.STARTING and before < self.limit)

    @rule(
        build=builds,
        state=st.sampled_from(list(State)),
        wait=st.sampled_from([None, timedelta(0), HOUR]),
        stale=st.sampled_from([0, 0, 0, 1]),
    )
    def move(self, build: str, state: State, wait: timedelta | None, stale: int) -> None:
        if build not in self.known:
            return
        record = self.run(self.ledger.read(build))
        if state in (State.STARTING, State.RUNNING) and not record.state.holds_slots:
            return  # only an admission takes slots
        try:
            self.run(self.ledger.transition(record.model_copy(update={"version": record.version - stale}), state, due=HOUR, delay=wait))
        except TooLate:
            assert record.state in FINAL
        except VersionConflict:
            assert stale
        else:
            assert not stale
            assert record.state not in FINAL

    @rule(build=builds)
    def cancel(self, build: str) -> None:
        if build in self.known:
            record = self.run(self.ledger.read(build))
            try:
                after = self.run(cancel_build(self.ledger, build))
            except TooLate:
                assert record.state in FINAL
            else:
                assert after.state is State.CANCELLED or after.cancel_requested

    @rule(limit=st.integers(0, 5), own=st.integers(0, 2))
    def change_limits(self, limit: int, own: int) -> None:
        self.limit, self.own = limit, own
        changed = {name: project.model_copy(update={"max_builds": own}) for name, project in self.projects.projects.items()}
        self.run(self.ledger.store_projects(self.projects.model_copy(update={"limits": Limits(max_builds=limit), "projects": changed})))

    @rule()
    def forget(self) -> None:
        ended = {build for build in self.known if self.run(self.ledger.read(build)).state in FINAL}
        self.run(self.ledger.expire(1000))
        left = {build.id for build in self.run(self.ledger.page(limit=500)).builds}
        assert self.known - left <= ended
        self.known = left

    @invariant()
    def everything_agrees(self) -> None:
        records = {build.id: build for build in self.run(self.ledger.page(limit=500)).builds}
        assert set(records) == self.known
        by_state = Counter(record.state for record in records.values())
        assert {state: count for state, count in self.run(self.ledger.count()).items() if count} == dict(by_state)
        slots = {tuple(member.split("/")[:2]) for member in self.run(self.ledger.slots())}
        assert slots == {(record.id, str(record.attempt)) for record in records.values() if record.state.holds_slots}
        command, keys = self.ledger.connection.command, self.ledger.connection.keys
        waiting = set()
        for project in PROJECTS:
            waiting |= {word.decode() for word in self.run(command("ZRANGE", keys.queue(project), 0, -1))}
            assert self.run(command("ZCARD", keys.slots(project))) == sum(
                r.state.holds_slots for r in records.values() if r.project == project
            )
            for state in State:
                listed = {build.id for build in self.run(self.ledger.page(project=project, state=state, limit=500)).builds}
                assert listed == {record.id for record in records.values() if (record.project, record.state) == (project, state)}
        delayed = {word.decode() for word in self.run(command("ZRANGE", keys.delayed, 0, -1))}
        assert not waiting & delayed
        assert waiting | delayed == {record.id for record in records.values() if record.state is State.QUEUED}
        due = {word.decode() for word in self.run(command("ZRANGE", keys.due, 0, -1))}
        assert due == {record.id for record in records.values() if record.state not in FINAL}

    @invariant()
    def nobody_who_could_go_is_forgotten(self) -> None:
        """A project has a turn exactly when it has a build to admit and room below its limit."""
        command, keys = self.ledger.connection.command, self.ledger.connection.keys
        turns = {word.decode() for word in self.run(command("ZRANGE", keys.turns, 0, -1))}
        for project in PROJECTS:
            limit = self.run(command("HGET", keys.limits, project))
            room = limit is None or self.run(command("ZCARD", keys.slots(project))) < int(limit)
            assert (project in turns) == (room and self.run(command("ZCARD", keys.queue(project))) > 0)


@pytest.mark.timeout(240)
def test_whatever_happens_the_ledger_agrees_with_itself(redis_url, projects):
    machine = type("Machine", (LedgerMachine,), {"url": redis_url, "projects": projects})
    quick = settings(max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quick)
