"""Forges' webhooks: a module a forge turns its request into a `Push`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PushEvent:
    """A push as a forge tells of it; nothing of it is trusted before the signature is checked."""

    delivery: str
    repository: str
    """The repository's full name at its forge, owner/name."""
    ref: str
    commit: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A request that is well, and that makes no build."""

    why: str
    deleted_ref: str | None = None
