"""What chores ask of registries: with more patience than steps have, and out of the same budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ledger.access import RegistryAccess
from ledger.errors import RegistryUnavailable
from ledger.projects import ProjectSettings
from tests.scripted_cluster import ScriptedCluster
from worker.place import Place
from worker.registries import Registries
from worker.registry.wire import Timeouts, api_host

HASTE = Timeouts(connect=5, read=0.2, total=0.3)
TAGS = b'{"name": "team/app", "tags": ["1"]}'


@asynccontextmanager
async def registry_that_waits(go: asyncio.Event) -> AsyncIterator[str]:
    """A registry that lists tags once it is told to, and its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = b"{}"
                if b"/tags/list" in head:
                    await go.wait()
                    body = TAGS
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_list_that_takes_longer_than_a_step_waits_is_read_by_a_chore(ledger, settings):
    go, cluster = asyncio.Event(), ScriptedCluster()
    place = Place(settings, ledger, cluster, Registries(cluster, settings, timeouts=HASTE))
    async with registry_that_waits(go) as host:
        project = ProjectSettings(registries={host: RegistryAccess(insecure=True, requests_at_once=3)})
        step, chore = place.registries.reader("team", project, host), place.long_work.reader("team", project, host)
        listed = asyncio.create_task(anext(chore.tags(host, "team/app")))
        with pytest.raises(RegistryUnavailable):
            await anext(step.tags(host, "team/app"))
        assert not listed.done()
        go.set()
        assert await listed == "1"
        assert place.registries.budgets.of(api_host(host)) is place.long_work.budgets.of(api_host(host))
    await place.registries.close()
    await place.long_work.close()
