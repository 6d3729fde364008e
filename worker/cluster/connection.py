"""The line to the API server: who we are to it, and requests whose every failure is one of our errors.

The only module that imports the Kubernetes client, so that it can be swapped (the official client has an asyncio edition by now). The
client gives credentials and transport. Answers are taken raw: its model classes cost much more time and memory, and its watch repeats
an expired version, does not pause after an empty stream, and takes a proxy's page for events. Nothing here waits without a limit.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes_asyncio.stream import WsApiClient
from yaml import YAMLError

from ledger.errors import ClusterDenied, ClusterUnavailable, NotFound
from worker.cluster.answers import Answer, failure_of
from worker.cluster.watching import Pace

JSON = "application/json"
PATCH = "application/strategic-merge-patch+json"
"""The kind of patch that takes one thing out of a list and leaves the rest."""
Pool = Literal["calls", "logs"]
_SIZES: dict[Pool, int] = {"calls": 100, "logs": 0}
"""Requests at once; more wait. Logs have no limit (0) but the pods that run: one that waited for another's end would be lost."""


_PING = 20.0
"""Seconds between two signs of life of a command that runs in a container: it may be silent for as long as it likes."""


@dataclass(frozen=True, slots=True)
class Executed:
    """How a command in a container ended."""

    code: int
    output: str
    errors: str


class Silent(ClusterUnavailable):
    """The cluster sent nothing for too long."""


_MISREAD = (TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What the client raises for a kubeconfig that is YAML and nothing more."""


class Api:
    """The API server: who we are to it, and calls with timeouts whose failures are our errors."""

    def __init__(self, kubeconfig: Path | None, context: str | None, pace: Pace) -> None:
        self._kubeconfig, self._context, self._pace = kubeconfig, context, pace
        self._configuration = Configuration()
        self._clients: dict[Pool, ApiClient] = {}
        self._connecting = asyncio.Lock()

    async def call(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None, kind: str = JSON) -> Answer:
        """One request, and once more after 401 with fresh credentials. ClusterUnavailable leaves open whether it was done."""
        answer = await self._call(method, path, query, body, kind)
        if answer.status == 401:
            await self._authenticate()
            answer = await self._call(method, path, query, body, kind)
        return answer

    async def _call(self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, kind: str) -> Answer:
        client = await self._connect()
        limits = (self._pace.connect, self._pace.answer)
        async with (
            _translated(f"{method} {path}"),
            self._open(client, method, path, query, limits, body=body, kind=kind) as response,
        ):
            return Answer.read(response.status, response.headers, await response.read())

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, Any], *, silence: float, doing: str, pool: Pool = "calls"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A long answer: its status is 200, else what `failure_of` says, or NotFound for 400 and 404 of a log."""
        client = await self._connect(pool)
        async with _translated(doing), self._open(client, "GET", path, query, (self._pace.connect, silence)) as response:
            if response.status != 200:
                answer = Answer.read(response.status, response.headers, await response.read())
                if pool == "logs" and answer.definite and answer.status in (400, 404):
                    raise NotFound(answer.message)
                raise failure_of(answer, doing)
            yield response

    async def execute(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Executed:
        """Run a command in a container, as `kubectl exec` does, to its end. NotFound: no such pod. ClusterUnavailable: the line was cut, and
        whether the command ran, or still runs, is not known.
        """
        await self._connect()
        doing = f"run {command[0]} in the pod {pod}"
        query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", word) for word in command)]
        said: dict[int, bytearray] = {1: bytearray(), 2: bytearray(), 3: bytearray()}
        client = WsApiClient(self._configuration, heartbeat=_PING)
        try:
            with _executing(doing):
                opened = await client.call_api(
                    f"/api/v1/namespaces/{namespace}/pods/{pod}/exec",
                    "GET",
                    query_params=query,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                )
                async with opened as line:
                    async for message in line:
                        if message.type is aiohttp.WSMsgType.BINARY and message.data:
                            said.get(message.data[0], bytearray()).extend(message.data[1:])
        finally:
            await client.close()
        code = _exit_code(bytes(said[3]))
        if code is None:
            raise ClusterUnavailable(f"could not {doing}: the line was cut before it ended")
        return Executed(code, said[1].decode(errors="replace"), said[2].decode(errors="replace"))

    @asynccontextmanager
    async def _open(
        self,
        client: ApiClient,
        method: str,
        path: str,
        query: Any,
        limits: tuple[float, float],
        *,
        body: Any = None,
        kind: str = JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "application/json, */*", "Content-Type": kind}
        response: aiohttp.ClientResponse = await client.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            # No limit on `connect`, which is also the wait for a free connection: each that is in use ends in time by itself.
            _request_timeout=aiohttp.ClientTimeout(sock_connect=limits[0], sock_read=limits[1]),
        )
        try:
            yield response
        finally:
            # An answer that is not read to its end: TLS would politely wait for the server's goodbye, half a minute on a bad line, and
            # nobody waits with it when we end. One that was read has given its connection back already.
            if response.connection and response.connection.transport:
                response.connection.transport.abort()
            response.close()

    async def _connect(self, pool: Pool = "calls") -> ApiClient:
        """Followed logs have a client of their own, lest they starve the watch and the creates."""
        async with self._connecting:
            if not self._clients:
                await self._authenticate()
            if pool not in self._clients:
                self._configuration.connection_pool_maxsize = _SIZES[pool]
                try:
                    self._clients[pool] = ApiClient(self._configuration)
                except OSError as error:  # an SSLError is one
                    raise ClusterDenied(f"the certificates of {self._kubeconfig or 'the cluster'} cannot be used: {error}") from None
            return self._clients[pool]

    async def _authenticate(self) -> None:
        """The service account inside a cluster, unless a kubeconfig is named; else kubectl's own. Both clients share the outcome."""
        try:
            if self._kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                load_incluster_config(client_configuration=self._configuration)  # type: ignore[no-untyped-call]
            else:
                path = str(self._kubeconfig) if self._kubeconfig else None
                await load_kube_config(path, self._context, self._configuration, persist_config=False)
        except (ConfigException, OSError, YAMLError, *_MISREAD) as error:
            if self._kubeconfig is None:
                raise ClusterDenied(f"no credentials for a cluster: {error}; set CRABPOT_KUBECONFIG, or run inside the cluster") from None
            told = str(error) if isinstance(error, (ConfigException, OSError)) else f"it is no kubeconfig ({error})"
            raise ClusterDenied(
                f"no credentials for a cluster in {self._kubeconfig}: {_unread(self._kubeconfig) or told}; mend that file, or name another "
                "(CRABPOT_KUBECONFIG, or under `clusters` in the projects file)"
            ) from None

    async def close(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].close()


def _unread(path: Path) -> str | None:
    """Why a file is not even there to be read; None: it is. The client says of each such file that it holds nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:  # a folder above it that may not be entered
        return f"it cannot be looked at ({error.strerror})"
    return None


@asynccontextmanager
async def _translated(doing: str) -> AsyncIterator[None]:
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise ClusterUnavailable(f"{doing}: no connection to the cluster in time") from None
    except TimeoutError:
        raise Silent(f"{doing}: the cluster did not answer in time") from None
    except (aiohttp.ClientError, OSError) as error:
        raise ClusterUnavailable(f"{doing}: {error or type(error).__name__}") from None


@contextmanager
def _executing(doing: str) -> Iterator[None]:
    try:
        yield
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 404:
            raise NotFound(f"could not {doing}: there is no such pod or container") from None
        if error.status in (401, 403):
            raise ClusterDenied(f"could not {doing}: HTTP {error.status}; the account needs get and create of pods/exec there") from None
        raise ClusterUnavailable(f"could not {doing}: HTTP {error.status}") from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ClusterUnavailable(f"could not {doing}: {error or type(error).__name__}") from None


def _exit_code(told: bytes) -> int | None:
    """What the error channel says in the end: a Status, with the exit code as a cause where it is not 0."""
    try:
        status = json.loads(told)
        if status["status"] == "Success":
            return 0
        return next(int(cause["message"]) for cause in status["details"]["causes"] if cause["reason"] == "ExitCode")
    except (ValueError, KeyError, TypeError, StopIteration):
        return None
