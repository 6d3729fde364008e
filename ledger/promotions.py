"""The ledger's promotions: taking them in, reading them, and raising what their tags are wanted to be.

A promotion's order is that in which it was taken in, as a push's is. So one that was stopped and goes on an hour later moves no tag back
that was pushed, or promoted to something else, in the meantime.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import NAMESPACE_URL, uuid5

from uuid_utils import uuid7

from ledger.build import moment
from ledger.chores import Chore, Chores, ChoreState, Claim
from ledger.connection import Connection
from ledger.errors import ChoreLost, Conflict, NotFound, Problem, RequestInvalid
from ledger.promotion import Promotion, PromotionRequest, PromotionState, chore_of
from ledger.tags import Wanted

KIND = "promote"


class Promotions:
    """All promotions, each kept by its chore, and forgotten with it."""

    def __init__(self, connection: Connection, chores: Chores) -> None:
        self._connection, self._chores = connection, chores

    async def accept(self, request: PromotionRequest, key: str | None = None) -> tuple[Promotion, bool]:
        """Take a promotion in, and whether it is new: with a key that was used before it is the first one.

        Whoever is answered can go away: the promotion comes to its end. Conflict: the key was used for something else.
        """
        known = await self._known(request, key)
        if known is not None:
            return known, False
        time = await self._connection.command("TIME")
        sequence = await self._connection.command("INCR", self._connection.keys.sequence)
        created = moment(int(time[0]) * 1000 + int(time[1]) // 1000)
        promotion = Promotion(id=_id(request, key), request=request, sequence=int(sequence), created=created)
        new = await self._chores.start(promotion.chore, request.registry, promotion.to_progress())
        return (promotion, True) if new else (await self.read(promotion.id), False)

    async def _known(self, request: PromotionRequest, key: str | None) -> Promotion | None:
        if key is None:
            return None
        try:
            chore = await self._chores.read(chore_of(_id(request, key)))
        except NotFound:
            return None
        known = _promotion(chore)
        if known.request.model_copy(update={"by": None}) != request.model_copy(update={"by": None}):
            raise Conflict(f"the idempotency key {key!r} was used for promotion {known.id}, of something else; take another")
        if chore.state is ChoreState.STOPPED:
            await self._chores.start(chore.name, chore.registry)
        return known

    async def read(self, promotion: str) -> Promotion:
        """One promotion. NotFound."""
        try:
            return _promotion(await self._chores.read(chore_of(promotion)))
        except NotFound:
            raise NotFound(f"there is no promotion {promotion}; they are forgotten 30 days after their end") from None

    async def all(self) -> list[Promotion]:
        """Those under way, then those that have ended, newest first."""
        return [_promotion(chore) for chore in await self._chores.all(KIND)]

    async def want(self, claim: Claim, promotion: Promotion, repository: str, tags: Sequence[str]) -> dict[str, Wanted]:
        """Raise tags of a repository (registry/path) to the promoted digest, where no later push wants them; answers what each is wanted
        to be now. ChoreLost where another worker does the promotion.
        """
        chore, request = claim.chore, promotion.request
        answer = await self._connection.run(
            "promote", chore.name, chore.fence, promotion.sequence, request.digest, f"promotion:{promotion.id}", repository, *tags
        )
        if answer[0] == b"lost":
            raise ChoreLost(f"promotion {promotion.id} was taken on by another worker; this one stops")
        return {tag: Wanted.parse(stored) for tag, stored in zip(tags, answer[1:], strict=True)}


def _promotion(chore: Chore) -> Promotion:
    """A promotion as its chore has it. What the chore waits for, or why it was stopped, is told until the promotion says more itself."""
    promotion = Promotion.model_validate(dict(chore.progress))
    if promotion.state.final:
        return promotion
    state = PromotionState.FAILED if chore.state is ChoreState.STOPPED else promotion.state
    return promotion.changed(state=state, message=chore.said or promotion.message)


def _id(request: PromotionRequest, key: str | None) -> str:
    """The same for a key of a project, whoever uses it when."""
    if key is None:
        return str(uuid7())
    if not (0 < len(key) <= 200 and key.isprintable()):
        raise RequestInvalid([Problem("idempotency_key", repr(key)[:80], "must be 1 to 200 printable characters")])
    return str(uuid5(NAMESPACE_URL, f"crabpot:promotion:{request.project}:{key}"))
