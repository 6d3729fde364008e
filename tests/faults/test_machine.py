"""The whole of it against a model: workers, leaders and pods do what they do in any order, are killed, lose and double; the promises hold.

The ledger, its Redis and the registry are real; the cluster is scripted, so that a pod ends when the machine says so. Time passes by moving
every time in Redis back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from ledger.audit import Audit
from ledger.build import FINAL, Build, State, pod_name
from ledger.errors import ClusterUnavailable, LaunchRefused, NoRoom, TooLate
from ledger.limits import Scope
from ledger.projects import parse_projects
from ledger.settings import Settings
from ledger.store import Ledger
from ledger.submission import Push, draft
from producer.cancel import cancel_build
from producer.submit import submit_drafts
from tests.faults.test_promises import push
from tests.integration.registry_server import RegistryServer
from tests.requests import make_request, request_fields
from tests.scripted_cluster import Site
from worker.admission import dispatch
from worker.cluster import Phase, Pod
from worker.finish import finish
from worker.launch import compose

ENDS: dict[str, dict[str, Any]] = {
    "well": {},
    "its own fault": {"exit_code": 1, "message": "no", "reason": "Error"},
    "out of memory": {"exit_code": 137, "message": None, "reason": "OOMKilled"},
    "evicted": {"exit_code": 137, "message": None, "reason": "Evicted", "disrupted": True},
    "no digest": {"exit_code": 0, "message": None},
    "a digest that was never pushed": {"exit_code": 0, "message": "sha256:" + "e" * 64},
    "a digest, and then a failure": {"exit_code": 1, "message": "sha256:" + "f" * 64, "reason": "Error"},
}
TROUBLES = {
    "committed, and then no answer": (ClusterUnavailable("timed out"), True),
    "no answer": (ClusterUnavailable("timed out"), False),
    "no room": (NoRoom("exceeded quota"), False),
    "refused": (LaunchRefused("denied by a webhook"), False),
}
LIMIT = 3
PLATFORM = "linux/amd64"
COMMANDS = 150
"""More Redis commands than an admission takes, whatever waits; `tests/integration/test_costs.py` counts them exactly."""
_PASS = """
local root, by = ARGV[1], tonumber(ARGV[2])
for _, name in ipairs({'due', 'delayed', 'tags:unsettled'}) do
  for _, member in ipairs(redis.call('ZRANGE', root .. name, 0, -1)) do redis.call('ZINCRBY', root .. name, -by, member) end
end
for _, id in ipairs(redis.call('ZRANGE', root .. 'due', 0, -1)) do
  for _, field in ipairs({'created', 'updated', 'due', 'not_before', 'admitted', 'started', 'cancel_requested'}) do
    if redis.call('HEXISTS', root .. 'b:' .. id, field) == 1 then redis.call('HINCRBY', root .. 'b:' .. id, field, -by) end
  end
end
"""


class Machine(RuleBasedStateMachine):
    """One site: any number of workers (steps are run where a rule says so), and a leader or none."""

    url: str
    registry: RegistryServer

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.count = 0
        self.builds: list[str] = []
        self.cancelled: set[str] = set()
        """Builds whose cancel was taken in before their tags were moved."""
        self.ended: dict[str, State] = {}
        self.highest = 0
        """The sequence of the build that `latest` stands for."""
        self.leads = False
        self.late: set[str] = set()
        """Pods that a process made which had slept: for an attempt that was over."""
        self.vanished: set[str] = set()
        """Pods that somebody took away by force, finalizer and all; where nobody had seen one, its start is repeated."""

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def open(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        settings = Settings(redis_url=self.url, cluster="local", keep_finished="30d")
        ledger = Ledger.open(settings)
        await ledger.connection.command("FLUSHALL")
        self.repository = f"machine/{id(self)}-{self.loop.time()}".replace(".", "-")
        await ledger.store_projects(
            parse_projects(f"""
version: 1
limits: {{max_builds: {LIMIT}}}
projects:
  demo:
    repository: https://git.example.com/team/demo.git
    max_builds: 2
    supersede: running
    deadlines: {{publishing: 1h}}
    policy: {{destinations: ["{self.registry.host}/**"], max_memory: 8Gi}}
    registries: {{"{self.registry.host}": {{insecure: true}}}}
  other:
    repository: https://git.example.com/team/other.git
    policy: {{destinations: ["{self.registry.host}/**"]}}
    registries: {{"{self.registry.host}": {{insecure: true}}}}
""")
        )
        self.site = Site(ledger, settings)

    def teardown(self) -> None:
        if hasattr(self, "site"):
            try:
                self.run(asyncio.wait_for(self._drain(), 60))
            finally:
                self.run(self.site.close())
                self.run(self.site.ledger.close())
        self.loop.close()

    # What happens

    @rule(
        project=st.sampled_from(["demo", "demo", "other"]),
        key=st.sampled_from([None, None, "deploy"]),
        priority=st.integers(-2, 2),
        pushed=st.booleans(),
    )
    def submit(self, project: str, key: str | None, priority: int, pushed: bool) -> None:
        self.count += 1
        commit = f"{self.count:040x}"
        image = f"{self.registry.host}/{self.repository}-{project}"
        source = {
            **request_fields()["source"],
            "url": f"https://git.example.com/team/{project}.git",
            "commit": commit,
            "ref": "refs/heads/main",
        }
        more: dict[str, Any] = {"concurrency_key": key} if key else {}
        request = make_request(
            project=project, source=source, destinations=[f"{image}:{commit}", f"{image}:latest"], priority=priority, **more
        )
        origin = Push(str(self.count), "refs/heads/main", commit) if pushed else None
        taken = self.run(submit_drafts(self.site.ledger, [draft(request)], origin))
        assert isinstance(taken, list)
        self.builds.append(taken[0].id)

    @rule(trouble=st.sampled_from([None, None, None, *TROUBLES]))
    def a_worker_admits(self, trouble: str | None) -> None:
        self.site.cluster.troubles = [TROUBLES[trouble]] if trouble else []
        before = self.run(self.site.ledger.slots())
        self.run(dispatch(self.site.place))
        self.site.cluster.troubles = []
        assert len(self.run(self.site.ledger.slots())) <= max(len(before), LIMIT)
        self.settle()

    @rule()
    def a_worker_is_killed_after_it_admitted(self) -> None:
        self.run(self._admit())

    async def _admit(self) -> None:
        """One admission, whose cost must not grow with what waits."""
        connection = self.site.ledger.connection
        await connection.command("CONFIG", "RESETSTAT")
        await self.site.ledger.admit(timedelta(seconds=15))
        told = await connection.command("INFO", "commandstats")
        assert sum(int(stats["calls"]) for stats in told.values()) < COMMANDS, f"12: an admission took {told}"

    @precondition(lambda self: self.leads and self.builds)
    @rule(data=st.data())
    def a_create_of_an_attempt_that_is_over_arrives(self, data: st.DataObject) -> None:
        self.run(self._arrive_late(data.draw(st.sampled_from(self.builds))))
        self.settle()

    async def _arrive_late(self, build_id: str) -> None:
        build = await self.site.ledger.read(build_id)
        over = build.attempt if not build.state.holds_slots else build.attempt - 1
        if over < 1:
            return
        name = pod_name(build.id, over, PLATFORM)
        if name in self.site.cluster.live:
            return
        self.late.add(name)
        attempt = build.model_copy(update={"attempt": over})
        made = await compose(self.site.place, attempt, PLATFORM)
        await self.site.cluster.launch(made)

    @precondition(lambda self: self.site.nudges.sent)
    @rule(data=st.data(), what=st.sampled_from(["once", "once", "twice", "never", "killed midway"]))
    def a_nudge_comes(self, data: st.DataObject, what: str) -> None:
        step, build = self.site.nudges.sent.pop(data.draw(st.integers(0, len(self.site.nudges.sent) - 1)))
        work = (lambda: dispatch(self.site.place, build)) if step == "dispatch" else (lambda: finish(self.site.place, build or ""))
        if what == "killed midway":
            self.run(self._killed(work(), data.draw(st.integers(0, 60))))
        for _ in range({"once": 1, "twice": 2}.get(what, 0)):
            self.run(work())
        self.settle()

    async def _killed(self, work: Any, turns: int) -> None:
        """A step that does no more after so many turns of its loop; what it had sent arrives all the same."""
        task = asyncio.ensure_future(work)
        for _ in range(turns):
            await asyncio.sleep(0)
            if task.done():
                break
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    @rule()
    def a_leader_comes(self) -> None:
        if not self.leads:
            self.run(self.site.lead(f"leader-{self.count}"))
            self.leads = True
            self.settle()

    @precondition(lambda self: self.leads)
    @rule()
    def the_leader_is_killed(self) -> None:
        self.run(self.site.die())
        self.leads = False

    @precondition(lambda self: self.pods())
    @rule(data=st.data(), end=st.sampled_from(["runs", "well", "well", "vanishes", *ENDS]))
    def a_pod_goes_on(self, data: st.DataObject, end: str) -> None:
        pod = data.draw(st.sampled_from(self.pods()))
        self.run(self._go_on(pod, end))
        self.settle()

    async def _go_on(self, pod: Pod, end: str) -> None:
        cluster = self.site.cluster
        if end == "runs":
            if pod.phase is Phase.PENDING:
                await cluster.run(pod.name)
        elif end == "vanishes":
            self.vanished.add(pod.name)
            await cluster.vanish(pod.name)
        elif end == "well":
            build = await self.site.ledger.read(pod.build)
            repository = build.request.images[0].repository
            digest = push(self.registry, build, pod.attempt, repository=repository)
            await cluster.end(pod.name, message=digest)
        else:
            await cluster.end(pod.name, **ENDS[end])

    @precondition(lambda self: self.builds)
    @rule(data=st.data())
    def somebody_cancels(self, data: st.DataObject) -> None:
        build = data.draw(st.sampled_from(self.builds))
        try:
            self.run(cancel_build(self.site.ledger, build))
            self.cancelled.add(build)
        except TooLate:
            record = self.run(self.site.ledger.read(build))
            assert record.state in FINAL or record.moving_tags
        self.settle()

    @rule(scope=st.sampled_from(["all", "project/demo", "class/amd64"]), resume=st.booleans())
    def somebody_pauses_or_resumes(self, scope: str, resume: bool) -> None:
        limits = self.site.ledger.limits
        self.run(limits.resume(Scope.parse(scope)) if resume else limits.pause(Scope.parse(scope)))

    @rule(seconds=st.sampled_from([5, 20, 120, 700, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.run(self._pass(seconds))

    async def _pass(self, seconds: float) -> None:
        connection = self.site.ledger.connection
        await connection.command("EVAL", _PASS, 0, connection.keys.root, int(seconds * 1000))
        if self.leads:
            await self._look()

    async def _look(self) -> None:
        """What the leader does all the time."""
        assert self.site.reconciler
        for build in await self.site.ledger.due():
            await self.site.reconciler.look_at(build)
        await self.site.reconciler.look_at_slots()
        await self.site.reconciler.look_at_tags()
        await self._settled()

    # What must be so

    def pods(self) -> list[Pod]:
        return sorted((pod for pod in self.site.cluster.live.values() if pod.phase is not Phase.ENDED), key=lambda pod: pod.name)

    def settle(self) -> None:
        self.run(self._settled())

    async def _settled(self) -> None:
        """Until the leader has handled what it was told: what comes next must not depend on how quick it is."""
        observer = self.site.observer
        if self.leads and observer:
            async with asyncio.timeout(10):
                while self.site.cluster.unseen or observer._busy or observer._waiting or observer._leaving:
                    await asyncio.sleep(0.001)

    async def _records(self) -> dict[str, Build]:
        return {build.id: build for build in (await self.site.ledger.page(limit=500)).builds}

    @invariant()
    def the_promises_hold(self) -> None:
        if hasattr(self, "site"):
            self.run(self._check())

    async def _check(self) -> None:
        records = await self._records()
        assert set(records) == set(self.builds), "1: no build is lost"
        for build, state in self.ended.items():
            assert records[build].state is state, "1: a final state is final"
        succeeded = [record for build, record in records.items() if record.state is State.SUCCEEDED and build not in self.ended]
        self.ended |= {build: record.state for build, record in records.items() if record.state in FINAL}
        assert {name for name, created in self.site.cluster.created.items() if created > 1} <= self.late | self.vanished, "2: no pod twice"
        if self.leads:
            assert not {pod.name for pod in self.pods() if not pod.deleting} & self.late, "2: a late pod goes at sight"
        for pod in self.pods():
            record = records[pod.build]
            rightful = record.state.holds_slots and record.attempt == pod.attempt
            assert rightful or pod.deleting or pod.name in self.late, "3: who gives a slot back knows that the pod has ended"
        alive = Counter((pod.build, pod.platform) for pod in self.pods() if records[pod.build].attempt == pod.attempt)
        assert all(number == 1 for number in alive.values()), "2: no two pods of a build and platform"
        held = {tuple(slot.split("/")[:2]) for slot in await self.site.ledger.slots()}
        assert held == {(build, str(record.attempt)) for build, record in records.items() if record.state.holds_slots}, "3: no slot leaks"
        faults = [fault async for found in Audit(self.site.ledger.connection, mend=False).all() for fault in found]
        assert faults == [], "3: every index agrees"
        for build in self.cancelled & set(self.ended):
            assert self.ended[build] is State.CANCELLED, "7: a cancel wins"
        runs = [run for record in records.values() for attempt in record.attempts for run in attempt.runs]
        assert not any(run.digest for run in runs if run.exit_code), "4: a digest counts only with exit 0"
        await self._check_events(records)
        await self._check_registry(records, succeeded)

    async def _check_events(self, records: dict[str, Build]) -> None:
        connection = self.site.ledger.connection
        entries = await connection.command("XRANGE", connection.keys.events, "-", "+")  # a blocking read of nothing takes Redis 0.1 s
        told = [json.loads(fields[b"event"]) for _, fields in entries]
        assert len({event["id"] for event in told}) == len(told), "6: no event twice"
        finished = Counter(
            event["data"]["customData"]["build"] for event in told if event["type"].startswith("dev.cdevents.build.finished")
        )
        assert finished == {build: 1 for build, record in records.items() if record.state in FINAL}, "6: a state and its event are one"

    async def _check_registry(self, records: dict[str, Build], succeeded: list[Build]) -> None:
        by_digest = {record.digest: record for record in records.values() if record.digest and record.project == "demo"}
        project = await self.site.place.project("demo")
        client = self.site.place.registries.client("demo", project, self.registry.host)
        for record in succeeded:
            assert await client.resolve(record.request.images[0].with_digest(record.digest or "")), "4: the registry has it"
        if by_digest:
            latest = await client.resolve(next(iter(by_digest.values())).request.images[1])
            if latest and latest.digest in by_digest:
                now = by_digest[latest.digest].sequence
                assert now >= self.highest, "5: a tag moved back"
                self.highest = now

    async def _drain(self) -> None:
        """Everything is well again: each build ends, once."""
        for scope in ("all", "project/demo", "class/amd64"):
            await self.site.ledger.limits.resume(Scope.parse(scope))
        if not self.leads:
            await self.site.lead("last")
            self.leads = True
        for _ in range(60):
            await dispatch(self.site.place)
            for pod in self.pods():
                await self._go_on(pod, "well")
            await self._settled()
            while self.site.nudges.sent:
                await self.site.deliver()
            if all(record.state in FINAL for record in (await self._records()).values()):
                break
            await self._pass(60)
        records = await self._records()
        assert all(record.state in FINAL for record in records.values()), "1: each build ends"
        await self._check()
        assert await self.site.ledger.slots() == {}
        done = [record for record in records.values() if record.state is State.SUCCEEDED and record.project == "demo"]
        if done:
            await self._check_latest(max(done, key=lambda record: record.sequence))

    async def _check_latest(self, last: Build) -> None:
        await self._pass(120)
        while self.site.nudges.sent:
            await self.site.deliver()
        client = self.site.place.registries.client("demo", await self.site.place.project("demo"), self.registry.host)
        latest = await client.resolve(last.request.images[1])
        assert latest is not None
        assert latest.digest == last.digest, "5: the tag is the last push's"


@pytest.mark.timeout(300)
def test_whatever_happens_the_promises_hold(redis_url, registry):
    machine = type("OnThisRedis", (Machine,), {"url": redis_url, "registry": registry})
    quick = settings(max_examples=30, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quick)


def test_the_machine_moves_every_time(redis_url):
    """Time passes in the machine by one script: a new time of the record must be moved by it, too."""
    moved = {"created", "updated", "due", "not_before", "admitted", "started", "cancel_requested"}
    times = {name for name, field in Build.model_fields.items() if "datetime" in str(field.annotation)}
    assert times - moved == {"finished"}, datetime.__name__
