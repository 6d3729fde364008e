"""The steps that read what a registry holds, a while at a time: before it is closed, before the sweep, and after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from ledger.chores import Claim
from ledger.errors import RegistryError
from ledger.evidence import Evidence
from worker.collect.judging import Needed, merged
from worker.collect.pieces import Piece, gathered, needs_of, pieces_of
from worker.collect.steps import Collection, Finding, More, No, Step, Verified, Well
from worker.collect.verifying import absent_of, without, written
from worker.registry.reader import RegistryReader

_BIT = 45.0
"""Seconds after which a survey or a verification writes down how far it has come."""
_LOST = "what was there before the sweep is not known any more"


@dataclass(frozen=True, slots=True)
class Reading:
    """A registry, and where what its tags need is kept."""

    registry: str
    reader: RegistryReader
    evidence: Evidence
    claim: Claim

    async def read(self, state: Collection) -> Finding:
        """What would end the run while the registry is read-only ends it before."""
        return await self._each_piece(state, self._pieces(state, await self._repositories()), self._needs)

    async def survey(self, state: Collection) -> Finding:
        if state.sweeps:
            # What was there before the first sweep counts.
            kept = await self.evidence.names(self.registry, state.run)
            return No(f"{_LOST}; nothing more is swept") if kept is None else Well()
        await self.evidence.begin(self.registry, state.run, self.claim)

        async def one(piece: Piece) -> Needed | No:
            needed = await self._needs(piece)
            if isinstance(needed, Needed):
                # What cannot be read now is not what the sweep has cost.
                needed = without(needed, await absent_of(self.reader, self.registry, piece.repository, needed, read=needed))
                await self.evidence.keep(self.registry, {piece.name: written(needed)}, self.claim)
            return needed

        return await self._each_piece(state, self._pieces(state, await self._repositories()), one)

    async def verify(self, state: Collection) -> Finding:
        names = await self.evidence.names(self.registry, state.run)
        if names is None and state.sweeps:
            return No(f"{_LOST}, so nobody can say whether all of it is")
        kept = frozenset(names or ())

        async def one(piece: Piece) -> Needed | No:
            fresh = await self._needs(piece)
            if isinstance(fresh, No):
                return fresh
            before = gathered(await self.evidence.read(self.registry, state.run, piece.name) or {}) if piece.name in kept else {}
            needed = merged(before, {piece.repository: fresh})[piece.repository]
            absent = await absent_of(self.reader, self.registry, piece.repository, needed, read=fresh)
            return No(absent.say(f"{self.registry}/{piece.repository}")) if absent.manifests or absent.blobs else needed

        return await self._each_piece(state, self._pieces(state, await self._repositories(), kept), one)

    def _pieces(self, state: Collection, repositories: Sequence[str], kept: frozenset[str] = frozenset()) -> AsyncIterator[Piece]:
        return pieces_of(self.reader, self.registry, repositories, state.cursor, kept)

    async def _needs(self, piece: Piece) -> Needed | No:
        needed = await needs_of(self.reader, self.registry, piece)
        return No(needed) if isinstance(needed, str) else needed

    async def _each_piece(
        self, state: Collection, pieces: AsyncIterator[Piece], work: Callable[[Piece], Awaitable[Needed | No]]
    ) -> Finding:
        """A while of reading; patience counts from the last piece that was read well."""
        end, cursor = monotonic() + _BIT, state.cursor
        read = state.verified if cursor and state.verified else Verified(repositories=0, manifests=0, blobs=0)
        try:
            async for piece in pieces:
                if cursor is not None and cursor != state.cursor and monotonic() > end:
                    return More(cursor, read)
                found = await work(piece)
                if isinstance(found, No):
                    return found
                read = _counted(read, found, repositories=int(piece.repository != (cursor or "").partition(":")[0]))
                cursor = piece.name
        except RegistryError:
            if cursor is None or cursor == state.cursor:
                raise
            return More(cursor, read)
        return Well(verified=read) if state.step is Step.VERIFY else Well()

    async def _repositories(self) -> list[str]:
        return [name async for name in self.reader.catalog(self.registry)]


def _counted(read: Verified, needed: Needed, *, repositories: int) -> Verified:
    return Verified(
        repositories=read.repositories + repositories,
        manifests=read.manifests + len(needed.manifests),
        blobs=read.blobs + len(needed.blobs),
    )
