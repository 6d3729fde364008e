"""Which credential a worker uses for which registry: what the project says, opened once and kept."""

from __future__ import annotations

from ledger.errors import ClusterDenied, NotFound, RegistryDenied
from ledger.projects import ProjectSettings, RegistryAccess
from ledger.settings import Settings
from worker.cluster import Cluster
from worker.registry.client import RegistryClient
from worker.registry.credentials import Anonymous, Credentials, DockerConfig


class Registries:
    """A client per project and registry."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster, self._settings = cluster, settings
        self._clients: dict[tuple[str, str, RegistryAccess], RegistryClient] = {}

    async def client(self, project: str, settings: ProjectSettings, registry: str) -> RegistryClient:
        """The client by which workers read and tag in a registry for a project. RegistryDenied where its credential cannot be had."""
        access = settings.registries.get(registry, RegistryAccess())
        key = (project, registry, access)
        if key not in self._clients:
            self._clients[key] = RegistryClient(
                await self._credentials(settings, access),
                insecure=frozenset({registry} if access.insecure else ()),
                certificates={registry: str(access.certificate)} if access.certificate else {},
            )
        return self._clients[key]

    async def _credentials(self, settings: ProjectSettings, access: RegistryAccess) -> Credentials:
        if access.docker_config:
            return DockerConfig.read(access.docker_config)
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
            return DockerConfig.parse(data[".dockerconfigjson"])
        return Anonymous()

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
