"""Asking every process of a registry, each at its own address, whether it takes uploads: the only proof of being read-only, and of not being so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.access import RegistryAccess
from ledger.references import ImageReference
from worker.collect.site import Door
from worker.registry.client import RegistryClient
from worker.registry.credentials import Credential, Credentials
from worker.registry.wire import Timeouts

_SOON = Timeouts(connect=3, read=10, total=15)


@dataclass(frozen=True, slots=True)
class _Same:
    """A registry's credential, whatever name it is called by: its processes have addresses instead."""

    registry: str
    known: Credentials

    async def find(self, _: str, repository: str) -> Credential | None:
        return await self.known.find(self.registry, repository)


@dataclass(frozen=True, slots=True)
class Doors:
    """How a registry's processes are asked."""

    registry: str
    access: RegistryAccess
    credentials: Credentials

    async def refusing(self, doors: Sequence[Door], repository: str) -> list[bool]:
        """For each process, whether it refuses uploads to a repository. RegistryError where one does not say."""
        addresses = frozenset(door.address for door in doors)
        certificate = str(self.access.certificate) if self.access.certificate else None
        client = RegistryClient(
            _Same(self.registry, self.credentials),
            insecure=addresses if self.access.insecure else frozenset(),
            certificates=dict.fromkeys(addresses, certificate) if certificate else {},
            timeouts=_SOON,
            known_as=dict.fromkeys(addresses, self.registry),
        )
        async with client:
            return [await client.refuses_uploads(ImageReference(door.address, repository)) for door in doors]
