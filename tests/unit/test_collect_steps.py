"""The state machine of a collection, against a model: whatever fails or is killed at whichever step, the registry ends read-write, its hold
ends, and no image that anybody pushed is lost.
"""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import ClusterUnavailable, RegistryUnavailable
from tests.collecting import START, Killed, Model, Registry, digest_of, run_to_its_end
from worker.collect.steps import PATIENCE, Collection, Lost, More, No, Purpose, Step, Verified, Wait, Well, after, before, begin

GARBAGE = (b"old layer", b"older layer", b"oldest layer")


def world(*, job: bool, garbage: tuple[bytes, ...] = GARBAGE) -> Registry:
    registry = Registry(job=job)
    registry.push("team/app", "v1", b"base", b"one")
    registry.push("team/app", "v2", b"base", b"two")
    registry.push("team/tool", "latest", b"base")
    registry.litter(*garbage)
    return registry


def well(model: Model) -> None:
    assert not any(model.world.processes.values()), "it ends read-write"
    assert not model.world.closed
    assert model.world.mark is None
    assert model.world.sweeper is None
    assert not model.held, "the hold has ended"
    assert model.world.unreadable() == set(), "nothing that anybody pushed is lost"


@pytest.mark.parametrize("job", [True, False])
async def test_garbage_goes_and_nothing_else(job):
    model = Model(world(job=job), lambda _: None)
    states = await run_to_its_end(model)
    well(model)
    assert [step for step in Step if step not in {state.step for state in states}] == []
    end = states[-1]
    assert end.trouble is None
    assert end.dry.eligible == 3
    assert end.dry.bytes == sum(map(len, GARBAGE))
    assert (end.verified.repositories, end.verified.manifests) == (2, 3)
    assert not {digest_of(layer) for layer in GARBAGE} & model.world.blobs.keys()


async def test_where_there_is_no_garbage_nothing_is_swept():
    model = Model(world(job=True, garbage=()), lambda _: None)
    states = await run_to_its_end(model)
    well(model)
    assert states[-1].trouble is None
    assert Step.SWEEP not in {state.step for state in states}


async def test_a_plan_changes_nothing():
    touched = []
    model = Model(world(job=True), touched.append)
    end = (await run_to_its_end(model, Purpose.PLAN))[-1]
    assert end.trouble is None
    assert end.dry.eligible == 3
    assert not {"hold before", "close before", "sweep before", "restart before", "open before"} & set(touched)
    well(model)


async def test_the_catalog_is_read_once_a_reading_and_not_for_proofs():
    """A registry walks through its storage for it: a proof needs one name, which is known."""
    asked: list[str] = []
    model = Model(world(job=True), asked.append)
    states = await run_to_its_end(model)
    assert states[-1].trouble is None
    readings = {state.step for state in states} & {Step.LOOK, Step.READ, Step.SURVEY, Step.VERIFY}
    assert asked.count("doors") >= 5
    assert asked.count("catalog") == len(readings)
    assert set(model.asked_at) == {"team/app"}


@pytest.mark.parametrize("bit", [0.0, 45.0])
async def test_a_large_repository_is_read_on_from_where_its_reading_stopped(monkeypatch, bit):
    """A registry that fails once in 40 questions, and has a repository that takes a thousand."""

    def around(what: str) -> None:
        if what in ("manifest", "blob") and next(number) % 40 == 39:
            raise RegistryUnavailable("502")
        asked.append(what)

    number, asked = count(), list[str]()
    monkeypatch.setattr("worker.collect.reading._BIT", bit)
    monkeypatch.setattr("worker.collect.pieces._PIECE", 3)
    model = Model(world(job=True), around)
    for tag in range(200):
        model.world.push("team/large", f"v{tag}", b"base", b"%d" % tag)
    states = await run_to_its_end(model)
    assert states[-1].trouble is None
    assert (states[-1].verified.repositories, states[-1].verified.manifests) == (3, 203)
    assert asked.count("manifest") < 3 * 203 * 1.5
    well(model)


@pytest.mark.parametrize("purpose", [Purpose.COLLECT, Purpose.PLAN])
async def test_a_tag_that_cannot_be_read_is_named_before_anything_is_held_or_closed(purpose):
    touched: list[str] = []
    model = Model(world(job=True), touched.append)
    model.world.tags["team/tool"]["broken"] = digest_of(b"never was")
    end = (await run_to_its_end(model, purpose))[-1]
    assert "team/tool lists the tag broken, and says that its manifest is not there" in end.trouble
    assert "crabpot registry untag registry.example.com/team/tool:broken" in end.trouble
    assert not {"hold before", "close before"} & set(touched)
    well(model)


@pytest.mark.parametrize("purpose", [Purpose.COLLECT, Purpose.MEND])
async def test_a_catalog_that_does_not_come_keeps_no_registry_closed(purpose):
    def around(what: str) -> None:
        if what == "catalog" and (model.world.closed or after_restart):
            raise RegistryUnavailable("it walks and walks")
        if what == "open after":
            after_restart.append(what)

    after_restart: list[str] = []
    model = Model(world(job=True), around)
    if purpose is Purpose.MEND:
        model.world.mark, model.world.closed = "r0", True
    states = await run_to_its_end(model, purpose)
    assert states[-1].trouble is not None
    well(model)


async def test_a_sweep_that_nobody_can_prove_any_more_is_ended():
    """The pods go on and are the same, and none of them answers: after a while somebody else may have opened them, for all that is known."""

    def around(what: str) -> None:
        if what == "doors" and model.world.sweeper is not None:
            unproved.append(what)
            raise RegistryUnavailable("no route to it")

    unproved: list[str] = []
    model = Model(world(job=True, garbage=tuple(b"%d" % number for number in range(1000))), around)
    end = (await run_to_its_end(model))[-1]
    assert "sweep: no route to it, for more than" in end.trouble
    assert 10 < len(unproved) < 200
    assert not end.swept
    well(model)


async def test_a_sweep_that_is_proved_goes_on_for_as_long_as_it_takes():
    garbage = tuple(b"%d" % number for number in range(1000))
    states = await run_to_its_end(Model(world(job=True, garbage=garbage), lambda _: None))
    assert states[-1].trouble is None
    assert states[-1].swept


CALLS = st.integers(0, 170)
FAULTS = st.dictionaries(CALLS, st.sampled_from(["kill", "fail"]), max_size=8)


@settings(max_examples=300)
@given(job=st.booleans(), faults=FAULTS, pushes=st.sets(CALLS, max_size=6))
async def test_whatever_fails_or_is_killed_it_ends_read_write_and_nothing_pushed_is_lost(job, faults, pushes):
    number = count()

    def around(_: str) -> None:
        at = next(number)
        if at in pushes:
            model.world.somebody_pushes()
        match faults.get(at):
            case "kill":
                raise Killed
            case "fail":
                raise ClusterUnavailable("as the test says")

    model = Model(world(job=job), around)
    states = await run_to_its_end(model)
    well(model)
    assert model.world.swept_open == 0
    if states[-1].swept and states[-1].trouble is None:
        assert states[-1].verified is not None, "a sweep is verified before the registry is opened"


@settings(max_examples=150)
@given(job=st.booleans(), reverted=CALLS, faults=st.dictionaries(CALLS, st.sampled_from(["kill", "fail"]), max_size=3))
async def test_somebody_who_makes_it_read_write_midway_is_noticed(job, reverted, faults):
    number = count()

    def around(_: str) -> None:
        at = next(number)
        if at == reverted and model.world.closed:
            model.world.mark, model.world.closed = None, False
            for process in tuple(model.world.processes):
                model.world.replace(process)
            happened.append(model.world.sweeper is not None or None)
        match faults.get(at):
            case "kill":
                raise Killed
            case "fail":
                raise ClusterUnavailable("as the test says")

    happened: list[bool | None] = []
    model = Model(world(job=job), around)
    states = await run_to_its_end(model)
    well(model)  # nobody pushed, so nothing is lost; that it was noticed is the next line
    if happened == [True]:  # a sweeper lived
        assert states[-1].trouble is not None
        assert "verify" in {state.step.value for state in states}


@pytest.mark.parametrize("job", [True, False])
async def test_what_a_run_has_left_read_only_is_mended_by_the_next(job):
    """Its ledger is lost, in the middle of a sweep."""

    def around(what: str) -> None:
        if what in ("sweeping", "sweep after") and not gone:
            gone.append(what)
            raise Killed

    gone: list[str] = []
    model = Model(world(job=job), around)
    with pytest.raises(AssertionError, match="no end"):
        await run_to_its_end(model, most=9)
    assert model.world.closed
    model.held, model.kept = False, {}
    states = await run_to_its_end(model, Purpose.MEND, run="r2")
    well(model)
    assert "a run that is no more" in states[-1].trouble
    assert next(state.step for state in states if state.step in (Step.RESTART, Step.VERIFY, Step.OPEN)) is Step.RESTART
    assert (await run_to_its_end(model, Purpose.MEND, run="r3"))[-1].trouble is None


async def test_a_word_to_open_that_was_undone_is_said_again():
    """As by a close that was sent by a worker that slept, and came late."""

    def around(what: str) -> None:
        if what == "open after" and not late:
            late.append(what)
            model.world.mark, model.world.closed = "r1", True

    late: list[str] = []
    model = Model(world(job=True), around)
    assert (await run_to_its_end(model))[-1].trouble is None
    assert late
    well(model)


async def test_builds_that_do_not_end_are_not_waited_for_for_ever():
    model = Model(world(job=True), lambda _: None, builds=["b1"])
    end = (await run_to_its_end(model))[-1]
    assert "builds that write to it still run, as b1" in end.trouble
    assert not end.closed
    well(model)


async def test_a_dry_run_that_would_delete_what_a_tag_needs_is_refused(monkeypatch):
    model = Model(world(job=True), lambda _: None)
    needed = digest_of(b"base")
    original = Registry.used
    monkeypatch.setattr(Registry, "used", lambda self: original(self) - {needed})  # a registry with a fault
    end = (await run_to_its_end(model))[-1]
    assert f"blobs that tags need would be deleted, as {needed}" in end.trouble
    assert end.sweeps == 0
    assert needed in model.world.blobs


async def test_a_sweep_that_has_cost_something_is_told():
    def around(what: str) -> None:
        if what == "restart before":
            model.world.blobs.pop(digest_of(b"two"), None)

    model = Model(world(job=True), around)
    end = (await run_to_its_end(model))[-1]
    assert "verify: 0 manifests and 1 blobs of registry.example.com/team/app cannot be read any more" in end.trouble
    assert not model.world.closed


async def test_what_a_sweep_has_cost_is_told_where_the_tag_is_gone_too():
    def around(what: str) -> None:
        if what == "restart before":
            model.world.blobs.pop(digest_of(b"two"), None)
            model.world.tags["team/app"].pop("v2", None)

    model = Model(world(job=True), around)
    end = (await run_to_its_end(model))[-1]
    assert "verify: 0 manifests and 1 blobs of registry.example.com/team/app cannot be read any more" in end.trouble


@pytest.mark.parametrize("step", [step for step in Step if step is not Step.DONE])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("sweeps", [0, 1])
def test_once_it_may_be_read_only_every_way_leads_over_open(step, closed, sweeps):
    """Every finding at every step, for ever: `done` is never reached past `prove open`, and `open` never past a sweeper's end."""
    first = begin("r", Purpose.COLLECT, "x", START).model_copy(
        update={"step": step, "closed": closed, "sweeps": sweeps, "sweeping": sweeps > 0}
    )
    seen, ahead = set(), [first]
    while ahead:
        state = ahead.pop()
        key = (state.step, state.closed, state.sweeps, state.sweeping, state.swept, state.failed)
        if key in seen or state.step is Step.DONE:
            continue
        seen.add(key)
        entered = before(state)
        late = state.entered + max(PATIENCE.values()) * 2
        for finding in (Well(), Wait("w"), No("n"), Lost("l"), More("m", Verified(repositories=0, manifests=0, blobs=0))):
            found = after(entered, finding, late, drain=late - late)
            check(entered, found)
            ahead.append(found)


def check(old: Collection, new: Collection) -> None:
    if new.step is Step.DONE and old.step not in (Step.LOOK, Step.READ, Step.DONE):
        assert old.step is Step.RELEASE
    if new.step is Step.RELEASE and old.step is not Step.RELEASE and old.closed:
        assert old.step is Step.PROVE_OPEN
    if new.step is Step.SWEEP and old.step is not Step.SWEEP:
        assert old.step is Step.JUDGE
    if new.step is Step.OPEN and old.step is not Step.OPEN:
        assert not old.sweeping or old.step == Step.VERIFY, "a sweeper may live"
    if old.closed:
        assert new.closed
