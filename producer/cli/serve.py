"""`crabpot serve`: webhooks and the REST API over HTTP, and the projects file kept in the ledger."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from contextlib import suppress
from pathlib import Path

import click
import structlog
import uvicorn
from watchfiles import awatch

from ledger.errors import CrabpotError, InputInvalid, LedgerUnavailable, Problem, SettingsInvalid
from ledger.fitness import require_fit
from ledger.logging import set_up
from ledger.projects import parse_projects, read_projects
from ledger.settings import Settings, settings
from ledger.store import Ledger
from producer.api import create_app

log = structlog.get_logger()
_PATIENCE = 60.0
"""Seconds that Redis may take to come up with us."""


@click.command()
def serve() -> None:
    """Serve webhooks and the REST API at CRABPOT_BIND."""
    given = settings()
    set_up(given)
    asyncio.run(_serve(given))


async def _serve(given: Settings) -> None:
    host, port = _address(given)
    ledger = Ledger.open(given)
    following: asyncio.Task[None] | None = None
    try:
        await _await_redis(ledger, given)
        if given.projects:
            await ledger.store_projects(read_projects(given.projects))
            following = asyncio.create_task(_follow_projects(ledger, given))
        config = uvicorn.Config(
            create_app(ledger, given), host=host, port=port, log_config=None, lifespan="off", access_log=False, server_header=False, timeout_graceful_shutdown=10
        )  # fmt: skip
        log.info("serves", address=f"{host}:{port}")
        await uvicorn.Server(config).serve()
    finally:
        if following:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
        await ledger.close()


def _address(given: Settings) -> tuple[str, int]:
    """Where to listen. SettingsInvalid for a bad address, and off loopback without a token."""
    host, _, port = given.bind.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not int(port) < 65536:
        raise SettingsInvalid([Problem("CRABPOT_BIND", given.bind, "must be host:port, as 127.0.0.1:8080")])
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not given.api_token:
        raise SettingsInvalid(
            [
                Problem(
                    "CRABPOT_API_TOKEN", "nothing", f"must be set to listen on {host}: off loopback the API is not served without a token"
                )
            ]
        )
    return host, int(port)


async def _await_redis(ledger: Ledger, given: Settings) -> None:
    """Redis may come up later than we do. LedgerUnfit where it would lose builds; LedgerUnavailable where it does not come."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            if given.allow_unsafe_redis:
                await ledger.connection.command("PING")
            else:
                await require_fit(ledger.connection)
        except LedgerUnavailable as error:
            if time.monotonic() > end:
                raise
            log.warning("waits_for_redis", error=str(error))
            await asyncio.sleep(0.5)
        else:
            return


async def _follow_projects(ledger: Ledger, given: Settings) -> None:
    """Store the projects file again whenever its text changes; one that is invalid is told of, and the old one stays.

    The folder is watched, not the file: editors and Kubernetes (`..data`) replace it.
    """
    file = given.projects
    assert file is not None
    names = {file.name, "..data"}
    stored = file.read_text()
    async for _ in awatch(file.parent, recursive=False, watch_filter=lambda _, path: Path(path).name in names):
        try:
            text = file.read_text()
            if text != stored:
                await ledger.store_projects(parse_projects(text, str(file)))
                stored = text
                log.info("projects_stored", file=str(file))
        except InputInvalid as error:
            log.error("projects_invalid", error=str(error), stays="the projects as they were")
        except (CrabpotError, OSError, UnicodeDecodeError) as error:
            log.error("projects_not_stored", error=str(error))
