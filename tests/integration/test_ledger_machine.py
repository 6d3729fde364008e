"""The ledger against a model: whatever order things happen in, the indexes, slots and limits agree with the records."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ledger.audit import Audit, Fault
from ledger.build import FINAL, Again, Build, State
from ledger.errors import TooLate, VersionConflict
from ledger.limits import Scope
from ledger.projects import Limits, Projects
from ledger.settings import Settings
from ledger.store import Ledger
from ledger.submission import Push, draft
from producer.cancel import cancel_build
from producer.submit import submit_drafts
from tests.requests import make_request

HOUR = timedelta(hours=1)
PROJECTS = ("demo", "other")


class LedgerMachine(RuleBasedStateMachine):
    """Submits, pushes, admissions, ends, retries, cancels, stale writes, limits, pauses and forgetting, in any order."""

    url: str
    projects: Projects
    builds = Bundle("builds")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger.open(Settings(redis_url=self.url, keep_finished="0s"))
        self.known: set[str] = set()
        self.count = 0
        self.newest: dict[tuple[str, str], str] = {}
        self.stood_down: set[str] = set()
        """Queued, but superseded: not to be admitted any more."""
        self.paused: set[str] = set()
        self.run(self.ledger.connection.command("FLUSHALL"))
        self.run(self.ledger.store_projects(self.projects))

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.run(self.ledger.close())
        self.loop.close()

    @rule(
        target=builds,
        project=st.sampled_from(PROJECTS),
        priority=st.integers(-3, 3),
        key=st.sampled_from([None, None, "one", "t|wo"]),
        platform=st.sampled_from(["linux/amd64", "linux/arm64"]),
        branch=st.sampled_from([None, None, "refs/heads/main", "refs/heads/next", "refs/tags/v1"]),
    )
    def submit(self, project: str, priority: int, key: str | None, platform: str, branch: str | None) -> str:
        self.count += 1
        source = {"kind": "git", "url": f"https://git.example.com/team/{project}.git", "commit": f"{self.count:040x}"}
        fields = {"priority": priority, "platforms": [platform]} | ({"concurrency_key": key} if key else {})
        request = make_request(project=project, source=source, destinations=[f"registry.example.com/team/{project}:1.0.0"], **fields)
        push = Push(str(self.count), branch, f"{self.count:040x}") if branch else None
        before = {build.id: build for build in self.run(self.ledger.page(project=project, limit=500)).builds}
        taken = self.run(submit_drafts(self.ledger, [draft(request)], push))
        assert isinstance(taken, list)
        build = taken[0].id
        if branch == "refs/heads/main" or branch == "refs/heads/next":
            older = self.newest.get((project, branch))
            self.newest[project, branch] = build
            if older in before and before[older].state in (State.QUEUED, State.STARTING, State.RUNNING):
                assert self.run(self.ledger.read(older)).superseded_by == build
                if before[older].state is State.QUEUED:
                    self.stood_down.add(older)
        self.known.add(build)
        return build

    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        """What is admitted fits, and is the best of its lane; nothing is admitted only where nothing fits."""
        for _ in range(count):
            records = {build.id: build for build in self.run(self.ledger.page(limit=500)).builds}
            limits = {str(limit.scope): limit.limit for limit in self.run(self.ledger.limits.all())}
            held = [record for record in records.values() if record.state.holds_slots]
            delayed = {
                word.decode() for word in self.run(self.ledger.connection.command("ZRANGE", self.ledger.connection.keys.delayed, 0, -1))
            }
            ready = {
                build
                for build, record in records.items()
                if record.state is State.QUEUED
                and build not in delayed
                and build not in self.stood_down
                and self.fits(record, held, limits)
            }
            admitted = self.run(self.ledger.admit(HOUR))
            if admitted is None:
                assert not ready
                return
            assert admitted.state is State.STARTING
            assert admitted.id in ready or (admitted.id in delayed and self.fits(admitted, held, limits))
            rivals = [records[build] for build in ready if self.lane(records[build]) == self.lane(admitted)]
            assert all(self.score(admitted) <= self.score(rival) for rival in rivals)

    @staticmethod
    def lane(record: Build) -> tuple[str, str, str | None]:
        return record.project, record.request.capacity_class, record.request.concurrency_key

    @staticmethod
    def score(record: Build) -> tuple[float, str]:
        return record.created.timestamp() - 60 * record.request.priority, record.id

    def fits(self, record: Build, held: list[Build], limits: dict[str, int | None]) -> bool:
        project, capacity, key = self.lane(record)
        if self.paused & {"all", f"project/{project}", f"class/{capacity}"}:
            return False
        scopes = [
            (limits["all"], len(held)),
            (limits[f"project/{project}"], sum(other.project == project for other in held)),
            (limits.get(f"class/{capacity}"), sum(other.request.capacity_class == capacity for other in held)),
        ]
        if key:
            scopes.append(
                (limits.get(f"keys/{project}", 1), sum((other.project, other.request.concurrency_key) == (project, key) for other in held))
            )
        return all(limit is None or taken < limit for limit, taken in scopes)

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
            self.run(
                self.ledger.transition(
                    record.model_copy(update={"version": record.version - stale}),
                    state,
                    due=HOUR,
                    again=None if wait is None else Again(wait),
                )
            )
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

    @rule(limit=st.integers(0, 5), own=st.integers(0, 2), each=st.integers(1, 2), arm=st.none() | st.integers(0, 2))
    def change_the_file(self, limit: int, own: int, each: int, arm: int | None) -> None:
        update = {"max_builds": own, "max_builds_per_key": each}
        changed = {name: project.model_copy(update=update) for name, project in self.projects.projects.items()}
        limits = Limits(max_builds=limit, classes={} if arm is None else {"arm64": arm})
        self.run(self.ledger.store_projects(self.projects.model_copy(update={"limits": limits, "projects": changed})))

    @rule(scope=st.sampled_from(["all", "project/demo", "class/arm64", "keys/demo", "keys/other"]), limit=st.none() | st.integers(1, 4))
    def limit_by_hand(self, scope: str, limit: int | None) -> None:
        if limit is None:
            self.run(self.ledger.limits.give_back(Scope.parse(scope)))
        else:
            self.run(self.ledger.limits.set(Scope.parse(scope), limit))

    @rule(scope=st.sampled_from(["all", "project/demo", "class/arm64"]))
    def pause_or_resume(self, scope: str) -> None:
        limits = self.ledger.limits
        if scope in self.paused:
            assert self.run(limits.resume(Scope.parse(scope)))
            self.paused.remove(scope)
        else:
            assert self.run(limits.pause(Scope.parse(scope)))
            self.paused.add(scope)

    @rule()
    def forget(self) -> None:
        ended = {build for build in self.known if self.run(self.ledger.read(build)).state in FINAL}
        self.run(self.ledger.expire(1000))
        left = {build.id for build in self.run(self.ledger.page(limit=500)).builds}
        assert self.known - left <= ended
        self.known = left

    @invariant()
    def the_audit_finds_nothing(self) -> None:
        async def look() -> list[Fault]:
            return [fault async for faults in Audit(self.ledger.connection, mend=False).all() for fault in faults]

        assert self.run(look()) == []

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
            held = [record for record in records.values() if record.project == project and record.state.holds_slots]
            assert self.run(command("ZCARD", keys.slots(project))) == len(held)
            for key in ("one", "t|wo"):
                assert self.run(command("ZCARD", keys.key_slots(project, key))) == sum(r.request.concurrency_key == key for r in held)
            for state in State:
                listed = {build.id for build in self.run(self.ledger.page(project=project, state=state, limit=500)).builds}
                assert listed == {record.id for record in records.values() if (record.project, record.state) == (project, state)}
        delayed = {word.decode() for word in self.run(command("ZRANGE", keys.delayed, 0, -1))}
        assert not waiting & delayed
        assert waiting | delayed == {record.id for record in records.values() if record.state is State.QUEUED} - self.stood_down
        for capacity in ("amd64", "arm64"):
            assert self.run(command("ZCARD", keys.class_slots(capacity))) == sum(
                r.state.holds_slots and r.request.capacity_class == capacity for r in records.values()
            )
        due = {word.decode() for word in self.run(command("ZRANGE", keys.due, 0, -1))}
        assert due == {record.id for record in records.values() if record.state not in FINAL}


@pytest.mark.timeout(240)
def test_whatever_happens_the_ledger_agrees_with_itself(redis_url, projects):
    machine = type("Machine", (LedgerMachine,), {"url": redis_url, "projects": projects})
    quick = settings(max_examples=30, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quick)
