"""Which credential a worker uses for which registry: what the project says, opened once and kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from ledger.access import RegistryAccess
from ledger.errors import ClusterDenied, NotFound, RegistryDenied, SettingsInvalid
from ledger.projects import ProjectSettings
from ledger.settings import Settings
from worker.cluster import Cluster
from worker.registry.client import RegistryClient
from worker.registry.credentials import Anonymous, Credential, Credentials, DockerConfig
from worker.registry.pace import IMPATIENT, Budgets, Patience
from worker.registry.reader import RegistryReader
from worker.registry.trust import can_be_trusted
from worker.registry.wire import Timeouts, api_host

_CREDENTIALS_TTL = 5.0
_STEPS = Timeouts(connect=5, read=15, total=20)
"""A step holds its build for the length of a question: one that takes longer is asked again later."""


class Current:
    """Credentials read again every few seconds that they are asked for: people rotate them, and nobody restarts a worker for it."""

    def __init__(self, read: Callable[[], Awaitable[Credentials]]) -> None:
        self._read = read
        self._known: Credentials = Anonymous()
        self._until = 0.0

    async def find(self, registry: str, repository: str) -> Credential | None:
        if monotonic() >= self._until:
            self._known = await self._read()
            self._until = monotonic() + _CREDENTIALS_TTL
        return await self._known.find(registry, repository)


_Client = TypeVar("_Client", bound=RegistryReader)


class Registries:
    """A client per project and registry, of each kind that is asked for; all share a registry's budget."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        *,
        patience: Patience = IMPATIENT,
        timeouts: Timeouts = _STEPS,
        budgets: Budgets | None = None,
    ) -> None:
        """Patience and timeouts are those of all its clients: steps have little, because they are repeated; long work and commands have more.
        What shares `budgets` asks no more of a registry together than it allows.
        """
        self._cluster, self._settings = cluster, settings
        self._patience, self._timeouts = patience, timeouts
        self.budgets = budgets or Budgets()
        self._sound: set[str] = set()
        """Files that hold a CA."""
        self._clients: dict[tuple[type[RegistryReader], str, str, RegistryAccess, frozenset[tuple[str, str]]], RegistryReader] = {}

    def client(self, project: str, settings: ProjectSettings, registry: str) -> RegistryClient:
        """The client by which workers read and tag in a registry for a project; its calls are RegistryDenied where the credential cannot be had."""
        return self.opened(RegistryClient, project, settings, registry)

    def reader(self, project: str, settings: ProjectSettings, registry: str) -> RegistryReader:
        """The same to read only: it cannot send anything else."""
        return self.opened(RegistryReader, project, settings, registry)

    def opened(self, kind: type[_Client], project: str, settings: ProjectSettings, registry: str) -> _Client:
        """A client of any kind."""
        access = settings.registries.get(registry, RegistryAccess())
        certificates = self._certificates(settings, registry)
        key = (kind, project, registry, access, frozenset(certificates.items()))
        client = self._clients.get(key)
        if client is None:
            self.budgets.of(api_host(registry)).tighten(at_once=access.requests_at_once, per_second=access.requests_per_second)
            try:
                client = self._clients[key] = kind(
                    self.credentials(settings, access),
                    insecure=frozenset({registry} if access.insecure else ()),
                    certificates=certificates,
                    budgets=self.budgets,
                    patience=self._patience,
                    timeouts=self._timeouts,
                )
            except SettingsInvalid as error:
                raise RegistryDenied(f"the registry's certificate cannot be used: {error}") from error
        assert type(client) is kind
        return client

    def _certificates(self, settings: ProjectSettings, registry: str) -> dict[str, str]:
        """Registry -> its CA's file, of all of a project's: one may lead to another. A file that is no CA is its own registry's trouble only."""
        named = {host: str(access.certificate) for host, access in settings.registries.items() if access.certificate}
        return {host: path for host, path in named.items() if host == registry or self._is_sound(path)}

    def _is_sound(self, path: str) -> bool:
        """Asked for each client that is looked up, so a file that once held a CA is not read again."""
        if path not in self._sound and can_be_trusted(path):
            self._sound.add(path)
        return path in self._sound

    def credentials(self, settings: ProjectSettings, access: RegistryAccess) -> Credentials:
        """What the project says of one registry, as it is now, whenever it is asked."""
        return Current(lambda: self._read(settings, access))

    async def _read(self, settings: ProjectSettings, access: RegistryAccess) -> Credentials:
        if access.docker_config:
            try:
                return DockerConfig.read(access.docker_config)
            except SettingsInvalid as error:
                raise RegistryDenied(f"the registry's credential cannot be used: {error}") from error
        if access.secret:
            read_secret = getattr(self._cluster, "read_secret", None)
            if read_secret is None:
                raise RegistryDenied(
                    f"the registry's credential is the Secret {access.secret}, and this cluster has no Secrets; name a docker_config instead"
                )
            try:
                data = await read_secret(settings.namespace or self._settings.namespace, access.secret)
            except (NotFound, ClusterDenied) as error:
                raise RegistryDenied(f"the registry's credential cannot be read: {error}") from error
            if ".dockerconfigjson" not in data:
                raise RegistryDenied(
                    f"the Secret {access.secret} has no key .dockerconfigjson; create it with `kubectl create secret docker-registry`"
                )
            try:
                return DockerConfig.parse(data[".dockerconfigjson"], origin=f"Secret {access.secret}")
            except SettingsInvalid as error:
                raise RegistryDenied(f"the registry's credential cannot be used: {error}") from error
        return Anonymous()

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
