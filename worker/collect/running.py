"""The effects of a collection's steps: each does its bit of work, which may be done again, and says what it found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import monotonic

import structlog

from ledger.chores import Claim
from ledger.collected import CollectedHere
from ledger.errors import (
    ChoreLost,
    ClusterDenied,
    ClusterError,
    CrabpotError,
    FenceLost,
    ManifestUnknown,
    NotFound,
    RegistryDenied,
    RegistryError,
    RegistryHeld,
)
from ledger.evidence import Evidence
from ledger.holds import Holds
from worker.collect.doors import Doors
from worker.collect.judging import Eligible, judge, read_dry_run
from worker.collect.pieces import gathered
from worker.collect.reading import Reading
from worker.collect.site import Site, Standing, Swept
from worker.collect.steps import HELD, Collection, DryRun, Finding, No, Purpose, Step, Wait, Well, after, before
from worker.collect.verifying import sizes_of
from worker.registry.reader import RegistryReader

log = structlog.get_logger()
HOLD = timedelta(hours=2)
"""How long a hold outlives the last step that prolonged it."""
_SHORT = 30.0
"""Seconds for a question that need not be answered."""
_WATCH = 3.0
"""Seconds between two looks at whether the registry still refuses uploads, while it is swept."""
_QUESTIONS = 5000
"""Questions after the sizes of blobs that go: the registry is read-only meanwhile."""
_COLLECTORS = {"Harbor": "Administration, Clean Up", "zot": "`storage.gc` and `gcInterval` in its configuration"}
"""Registries that collect their own garbage, and where that is set."""
_NOWHERE = "crabpot/probe"
"""Where a registry is asked whether it takes uploads that has no repository, or does not say which: an upload that is begun and cancelled makes none."""
_UNPROVED = 120.0
"""Seconds that a sweep which ends with its step goes on while nobody can prove that the registry refuses uploads."""


async def advance(work: Work, state: Collection, now: datetime, save: Callable[[Collection], Awaitable[None]]) -> Collection:
    """Do the step that a run stands at, once, and say where it stands then. `save` writes down what must be known before the step begins."""
    entered = before(state)
    if entered != state:
        await save(entered)
    try:
        finding = await work.do(entered, now, resumed=entered.sweeping and entered == state)
    except (FenceLost, ChoreLost):
        raise
    except (ClusterDenied, RegistryDenied, ManifestUnknown, NotFound) as error:
        finding = No(str(error))
    except CrabpotError as error:
        finding = Wait(str(error))
    except Exception as error:  # a fault of ours must not leave a registry read-only: it is tried again, and given up as any other trouble
        log.error("collection_step_broken", registry=state.registry, step=state.step.value, exc_info=error)
        finding = Wait(f"crabpot has a fault here: {type(error).__name__}: {error}")
    return after(entered, finding, now, work.collected.drain_time)


@dataclass(frozen=True, slots=True)
class Work:
    """What the steps work with."""

    collected: CollectedHere
    site: Site
    doors: Doors
    reader: RegistryReader
    holds: Holds
    evidence: Evidence
    claim: Claim
    """Of the run: what is changed, here and outside, is changed while it stands."""

    @property
    def registry(self) -> str:
        return self.collected.registry

    async def do(self, state: Collection, now: datetime, *, resumed: bool) -> Finding:
        """The effect of the step that the run stands at. `resumed`: a sweep was begun before this call."""
        if state.step in HELD and state.step is not Step.HOLD and not self._plans(state):
            # Builds are held for as long as the registry is not proved read-write, unless somebody else holds it by now.
            try:
                await self.holds.take(self.collected.names, _holder(state), HOLD, claim=self.claim)
            except RegistryHeld as error:
                if state.step in (Step.DRAIN, Step.CLOSE, Step.PROVE, Step.SURVEY, Step.JUDGE, Step.SWEEP):
                    return No(str(error))
        if state.step is Step.SWEEP:
            return await self._sweep(state, resumed=resumed)
        effect: Callable[[Collection, datetime], Awaitable[Finding]] = getattr(self, f"_{state.step.value}")
        return await effect(state, now)

    def _plans(self, state: Collection) -> bool:
        return state.purpose is Purpose.PLAN

    async def _look(self, state: Collection, _: datetime) -> Finding:
        standing = await self.site.standing()
        if standing.mark not in (None, state.run):
            return Wait("a plan can be made once the registry is read-write again") if self._plans(state) else Well(left_over=True)
        if state.purpose is Purpose.MEND:
            return Well()
        if (kind := await self.reader.collector(self.registry)) is not None:
            return No(f"it is {kind}, which collects its own garbage ({_COLLECTORS[kind]}); say `kind: own`")
        found = await self.site.look()
        if not isinstance(found, Well):
            return found
        try:
            probe = await self._first() or _NOWHERE
        except ManifestUnknown:
            return No("it does not list its repositories, so nobody knows what its tags need")
        if self._plans(state):
            return Well()
        if standing.closed:
            return No("it is read-only already, and not by crabpot")
        taken = await self._each_door(standing, probe, refusing=False)
        return Well(probe=probe) if isinstance(taken, Well) else taken

    async def _hold(self, state: Collection, _: datetime) -> Finding:
        try:
            await self.holds.take(self.collected.names, _holder(state), HOLD, claim=self.claim)
        except RegistryHeld as error:
            return Wait(str(error))
        return Well()

    async def _drain(self, _: Collection, __: datetime) -> Finding:
        builds = await self.holds.writers(self.collected.names)
        return Wait(f"{len(builds)} builds that write to it still run, as {builds[0]}") if builds else Well()

    async def _close(self, state: Collection, _: datetime) -> Finding:
        await self.site.close(state.run, self.claim.hold)
        return Well()

    async def _prove(self, state: Collection, _: datetime) -> Finding:
        return await self._closed(state, None)

    async def _read(self, state: Collection, _: datetime) -> Finding:
        return await self._reading.read(state)

    async def _survey(self, state: Collection, _: datetime) -> Finding:
        return await self._reading.survey(state)

    async def _verify(self, state: Collection, _: datetime) -> Finding:
        return await self._reading.verify(state)

    @property
    def _reading(self) -> Reading:
        return Reading(self.registry, self.reader, self.evidence, self.claim)

    async def _judge(self, state: Collection, _: datetime) -> Finding:
        done = await self.site.dry_run(f"{state.run}-{state.sweeps}")
        if not isinstance(done, Swept):
            return done
        eligible = read_dry_run(done.output)
        if isinstance(eligible, str):
            return No(eligible)
        kept = await self.evidence.read(self.registry, state.run)
        if kept is None:
            return No("what its tags need was read, and is not known any more; nothing was deleted")
        needed = gathered(kept)
        if why := judge(eligible, needed):
            return No(why)
        dry = await self._weighed(eligible, sorted(needed))
        if self._plans(state):
            await self.evidence.forget(self.registry, self.claim)
        return Well(dry=dry)

    async def _sweep(self, state: Collection, *, resumed: bool) -> Finding:
        proof = await self._closed(state, state.witness)
        if not isinstance(proof, Well):
            # A process that is being replaced is not the one that was proved, and waiting makes it no better.
            return No(proof.why) if isinstance(proof, Wait | No) else proof
        if builds := await self.holds.writers(self.collected.names):
            return No(f"builds that write to it run, as {builds[0]}")
        await self.claim.hold()
        sweeping = asyncio.ensure_future(self.site.sweep(state.run, state.sweeps, resumed=resumed))
        try:
            proved = monotonic()
            while not (await asyncio.wait({sweeping}, timeout=_WATCH))[0]:
                # Whoever makes it read-write again in the middle of a sweep stops the sweep.
                trouble = await self._unproved(state)
                if isinstance(trouble, No):
                    return trouble
                if trouble is None:
                    proved = monotonic()
                elif monotonic() - proved > _UNPROVED:
                    return No(f"for {_UNPROVED:.0f} s nobody could see whether it still refuses uploads: {trouble.why}")
            done = sweeping.result()
        finally:
            sweeping.cancel()
            await asyncio.wait({sweeping})
        if isinstance(done, Wait):
            return replace(done, goes_on=True)  # it was proved read-only just now
        return Well() if isinstance(done, Swept) else done

    async def _unproved(self, state: Collection) -> Wait | No | None:
        """What is wrong with the proof that it refuses uploads; None: it does."""
        try:
            proof = await self._closed(state, state.witness)
        except (RegistryError, ClusterError) as error:
            return Wait(str(error))
        return proof if isinstance(proof, Wait | No) else None

    async def _prove_again(self, state: Collection, _: datetime) -> Finding:
        proof = await self._closed(state, state.witness)
        return Well() if isinstance(proof, Well) else proof

    async def _restart(self, _: Collection, __: datetime) -> Finding:
        old = await self.site.standing()
        await self.site.restart(self.claim.hold)
        return Well(witness=tuple(sorted(door.process for door in old.doors)))

    async def _settle(self, state: Collection, _: datetime) -> Finding:
        return await self.site.settled(state.witness)

    async def _open(self, _: Collection, __: datetime) -> Finding:
        await self.site.open(self.claim.hold)
        return Well()

    async def _prove_open(self, state: Collection, _: datetime) -> Finding:
        standing = await self.site.standing()
        if standing.mark is not None or standing.closed:
            await self.site.open(self.claim.hold)
            return Wait("it is told once more to be read-write")
        # A worker that slept may have begun a sweep just before the registry was opened.
        settled = await self.site.settled(())
        return settled if not isinstance(settled, Well) else await self._each_door(standing, await self._probe(state), refusing=False)

    async def _release(self, state: Collection, _: datetime) -> Finding:
        await self.holds.release(self.collected.names, _holder(state))
        await self.evidence.forget(self.registry, self.claim)
        return Well()

    async def _closed(self, state: Collection, witness: Sequence[str] | None) -> Finding:
        """Whether each process refuses uploads, and, with a witness, whether they are exactly those."""
        standing = await self.site.standing()
        if standing.mark != state.run or not standing.closed:
            return No(
                "somebody else has made it read-write again (a GitOps controller?); let that leave the registry alone while it is collected"
            )
        if witness is not None and sorted(door.process for door in standing.doors) != sorted(witness):
            return No("its processes are others than those that were proved read-only")
        return await self._each_door(standing, await self._probe(state), refusing=True)

    async def _each_door(self, standing: Standing, probe: str, *, refusing: bool) -> Finding:
        if standing.unsettled is not None:
            return Wait(standing.unsettled)
        if not standing.doors:
            return Wait("none of its processes runs")
        answers = await self.doors.refusing(standing.doors, probe)
        wrong = [door for door, answer in zip(standing.doors, answers, strict=True) if answer is not refusing]
        if wrong:
            return Wait(f"its process {wrong[0].process} {'takes' if refusing else 'refuses'} uploads")
        return Well(witness=tuple(sorted(door.process for door in standing.doors)))

    async def _probe(self, state: Collection) -> str:
        """Where uploads are asked for. A run that mends has not looked at the registry's repositories, which must not keep it closed."""
        if state.probe is not None:
            return state.probe
        try:
            async with asyncio.timeout(_SHORT):
                return await self._first() or _NOWHERE
        except (CrabpotError, TimeoutError):
            return _NOWHERE

    async def _first(self) -> str | None:
        """A repository, by one short question. ManifestUnknown: it lists none."""
        return await anext(aiter(self.reader.catalog(self.registry, page=1)), None)

    async def _weighed(self, eligible: Eligible, repositories: list[str]) -> DryRun:
        total, unknown = await sizes_of(self.reader, self.registry, repositories, eligible.blobs, _QUESTIONS)
        return DryRun(marked=eligible.marked, eligible=len(eligible.blobs), bytes=total, unsized=unknown)


def _holder(state: Collection) -> str:
    return f"its garbage collection {state.run}"
