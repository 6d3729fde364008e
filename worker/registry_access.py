"""How a command gets into a registry: as a project of the ledger does, or with what `docker login` left for the user."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from ledger.console import JSON
from ledger.errors import NotFound
from ledger.settings import Settings
from ledger.store import Ledger
from worker.command_line import HOST
from worker.place import namespaces_of, open_cluster
from worker.registries import Registries
from worker.registry.credentials import Anonymous, Credentials, DockerConfigFile
from worker.registry.pace import PATIENT, Patience
from worker.registry.reader import RegistryReader
from worker.registry.wire import Timeouts

_Client = TypeVar("_Client", bound=RegistryReader)
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whose credentials are used. Without a project those of a docker config, by default the user's."""

    project: str | None = None
    docker_config: Path | None = None
    insecure: frozenset[str] = frozenset()
    """Registries that are spoken to over plain HTTP."""
    certificates: tuple[tuple[str, str], ...] = ()
    """Registry and path of its CA certificate."""

    @asynccontextmanager
    async def open(self, kind: type[_Client], registry: str, *, patience: Patience = PATIENT) -> AsyncIterator[_Client]:
        """A client of a kind for a registry, closed in the end. NotFound: there is no such project."""
        if self.project is not None:
            async with self._as_project(kind, registry, self.project, patience) as client:
                yield client
            return
        client = kind(self._credentials(), insecure=self.insecure, certificates=dict(self.certificates), patience=patience)
        try:
            yield client
        finally:
            await client.aclose()

    @asynccontextmanager
    async def _as_project(self, kind: type[_Client], registry: str, name: str, patience: Patience) -> AsyncIterator[_Client]:
        settings = Settings.load()
        async with Ledger.opened(settings) as ledger:
            projects = await ledger.projects()
            if name not in projects:
                raise NotFound(f"there is no project {name} in the ledger; it has {', '.join(sorted(projects)) or 'none'}")
            cluster = open_cluster(settings, namespaces_of(settings, projects), await ledger.identity())
            registries = Registries(cluster, settings, patience=patience, timeouts=Timeouts())
            try:
                yield registries.opened(kind, name, projects[name], registry)
            finally:
                await registries.close()
                await cluster.close()

    def _credentials(self) -> Credentials:
        if self.docker_config is not None:
            return DockerConfigFile(self.docker_config)
        usual = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
        return DockerConfigFile(usual) if usual.exists() else Anonymous()


def accessing(command: _Command) -> _Command:
    """The options that say whose credentials are used, given to a command as `access`; and --json."""
    return JSON(reaching(command))


def reaching(command: _Command) -> _Command:
    """The same without --json, for what prints nothing else."""

    @click.option("--project", help="Use the registry credentials of this project of the ledger.")
    @click.option("--docker-config", type=click.Path(path_type=Path), help="Use this docker config.json, not the user's.")
    @click.option("--insecure", type=HOST, multiple=True, metavar="REGISTRY", help="Speak plain HTTP to this registry.")
    @click.option(
        "--certificate", type=(HOST, str), multiple=True, metavar="REGISTRY PATH", help="Trust this CA certificate for a registry."
    )
    @wraps(command)
    def reached(
        project: str | None,
        docker_config: Path | None,
        insecure: tuple[str, ...],
        certificate: tuple[tuple[str, str], ...],
        **named: Any,
    ) -> None:
        if project and (docker_config or insecure or certificate):
            raise click.UsageError("a project says itself how its registries are reached; leave the other options out")
        command(
            access=Access(project=project, docker_config=docker_config, insecure=frozenset(insecure), certificates=certificate), **named
        )

    return reached  # type: ignore[return-value]
