"""HTTP to registries and token servers: the only place that sends, and where httpx's errors become ours.

It repeats a GET or HEAD once when a kept-alive connection turns out to be dead. What else is repeated, and for how long, is a matter of the
client's patience; only what is safe to send twice is.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import MappingProxyType
from typing import Any

import httpx

from ledger.errors import RegistryConfused, RegistryUnavailable
from worker.registry import trust
from worker.registry.answers import PASSING, Answer, retry_after
from worker.registry.pace import IMPATIENT, Budget, Budgets, Patience

for _name in ("httpx", "httpcore"):  # they log whole URLs and headers, and an address that a blob redirects to is signed
    logging.getLogger(_name).setLevel(logging.WARNING)

SAFE = frozenset({"GET", "HEAD"})
_MAX_REDIRECTS = 5
_MAX_ERROR = 64 * 1024
_DROPPED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_NOTHING = httpx.ByteStream(b"")
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """In seconds: to connect, between two reads or writes, and for a whole exchange with its redirects."""

    connect: float = 10
    read: float = 30
    total: float = 120


class Wire:
    """One pool of connections to all registries and token servers. Use it from one event loop, and close it."""

    def __init__(
        self,
        *,
        insecure: frozenset[str],
        certificates: Mapping[str, str],
        user_agent: str,
        timeouts: Timeouts,
        budgets: Budgets | None = None,
        patience: Patience = IMPATIENT,
        known_as: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Certificates: registry -> path of a CA certificate (PEM) that is trusted for it beside the system's, and for the hosts to which its
        answers lead (its token server, where its blobs are) as long as it is they that lead there. SettingsInvalid if one cannot be read.

        `known_as`: address -> the host name that its certificate is for, where one process of a registry is spoken to by its address.
        """
        self._known_as = known_as
        self._insecure = insecure
        self._total = timeouts.total
        self._budgets = budgets or Budgets()
        self._patience = patience
        self._authorities = {_as_host(registry): path for registry, path in certificates.items()}
        limits = httpx.Timeout(timeouts.read, connect=timeouts.connect, pool=timeouts.total)

        def pool(trusting: ssl.SSLContext) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},  # digests are of what is sent, not of its compression
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # a session's cookie makes Harbor ask for a CSRF token
                timeout=limits,
                verify=trusting,
            )

        self._http = pool(trust.systems())
        self._trusting = {path: pool(trust.beside(registry, path)) for registry, path in certificates.items()}
        """A pool for each CA: a connection that one of them vouched for serves nobody who does not trust it."""

    @property
    def patience(self) -> Patience:
        return self._patience

    def base(self, registry: str) -> str:
        """Where the registry's API is: https, unless the registry is one of the insecure."""
        return f"{'http' if registry in self._insecure else 'https'}://{api_host(registry)}"

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None = None,
        form: Mapping[str, str] | None = None,
        limit: int = _MAX_ERROR,
        tries: int | None = None,
        led_by: str | None = None,
        stay: bool = False,
    ) -> Answer:
        """One exchange, whatever its status; at most `limit` bytes of body. `led_by`: the registry whose answer named the address.

        GET and HEAD are repeated as the patience allows; anything else only where `tries` says how often it may be sent.
        Redirects of GET and HEAD are followed, to https only once https was asked, and Authorization stays with the host that it was made for.
        RegistryUnavailable: no answer; RateLimited: it has asked us to wait for longer than the patience; RegistryConfused: not HTTP,
        too many redirects or too many bytes. `stay`: a redirect to another host is the answer, and not followed.
        """
        request = self._request(method, url, headers, content, form)
        budget = self._budgets.of(_host(request))
        most = tries if tries is not None else self._patience.tries if method in SAFE else 1
        for tried in itertools.count(1):
            try:
                async with budget.turn(self._patience):
                    answer = await self._exchange(request, limit, led_by, stay)
            except RegistryUnavailable:
                pause = self._patience.pause(tried, None)
                if tried >= most or pause is None:
                    raise
            else:
                asked = _hear(budget, answer)
                pause = self._patience.pause(tried, asked) if answer.status in PASSING or answer.asks_to_slow_down else None
                if tried >= most or pause is None:
                    return answer
            await asyncio.sleep(pause)
            request = self._request(method, url, headers, content, form)
        raise AssertionError("the count has no end")

    @asynccontextmanager
    async def download(self, url: str, *, headers: Mapping[str, str]) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
        """A GET whose body is read piece by piece: the answer without it, and the pieces. Where it is no success they are to be left alone.

        The errors are those of `send`, also while the pieces are read. Nothing is repeated.
        """
        request = self._request("GET", url, headers, None, None)
        host = _host(request)
        budget = self._budgets.of(host)
        with _ours(host):
            await budget.pass_gate(self._patience)
            response, redirected = await self._follow(request, None, stay=False)
            try:
                body = b"" if response.status_code < 400 else await _read(response, _MAX_ERROR, host)
                answer = Answer(
                    status=response.status_code, headers=response.headers, body=body, host=_host(response.request), redirected=redirected
                )
                _hear(budget, answer)
                yield answer, response.aiter_bytes()
            finally:
                await _close(response)

    def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None,
        form: Mapping[str, str] | None,
    ) -> httpx.Request:
        try:
            request = self._http.build_request(method, url, headers=dict(headers), content=content, data=form)
        except httpx.InvalidURL as error:
            raise RegistryConfused(f"{url[:100]} cannot be spoken to: {str(error)[:200]}") from None
        if (name := self._known_as.get(_host(request))) is not None:
            request.extensions["sni_hostname"] = name.rpartition(":")[0] or name
        return request

    async def _exchange(self, request: httpx.Request, limit: int, led_by: str | None, stay: bool) -> Answer:
        """The total time holds unless a stream is sent: that takes as long as it moves."""
        total = self._total if isinstance(request.stream, httpx.SyncByteStream) else None
        host = _host(request)
        with _ours(host):
            async with asyncio.timeout(total):
                try:
                    return await self._answer(request, limit, led_by, stay)
                except _DROPPED:
                    if request.method not in SAFE:
                        raise
                    return await self._answer(request, limit, led_by, stay)

    async def _answer(self, request: httpx.Request, limit: int, led_by: str | None, stay: bool) -> Answer:
        response, redirected = await self._follow(request, led_by, stay)
        try:
            host = _host(response.request)
            body = await _read(response, limit, host)
            return Answer(status=response.status_code, headers=response.headers, body=body, host=host, redirected=redirected)
        finally:
            await _close(response)

    async def _follow(self, request: httpx.Request, led_by: str | None, stay: bool) -> tuple[httpx.Response, bool]:
        """The response in the end, its body not yet read, and whether another origin than the one asked gave it."""
        asked, leader = _origin(request.url), _as_host(led_by) if led_by else _host(request)
        for _ in range(_MAX_REDIRECTS):
            response = await self._pool(_host(request), leader).send(request, stream=True, follow_redirects=False)
            following = response.next_request
            if following is None or (stay and _host(following) != _host(request)):
                return response, _origin(request.url) != asked
            await _close(response)
            if request.method not in SAFE:
                raise RegistryConfused(f"{asked[1]} redirects a {request.method}, which is not followed")
            if request.url.scheme == "https" and following.url.scheme != "https":
                raise RegistryConfused(f"{request.url.host} redirects from https to {following.url.scheme}")
            if _origin(following.url) != asked:
                following.headers.pop("Authorization", None)
            request = following
        raise RegistryConfused(f"{asked[1]} redirects more than {_MAX_REDIRECTS} times")

    def _pool(self, host: str, leader: str) -> httpx.AsyncClient:
        """The connections to a host on which its own CA is trusted, else that of the registry that leads there."""
        path = self._authorities.get(host) or self._authorities.get(leader)
        return self._trusting[path] if path else self._http

    async def close(self) -> None:
        for pool in (self._http, *self._trusting.values()):
            await pool.aclose()


def api_host(registry: str) -> str:
    """The host that serves a registry's API: Docker Hub's has another name than its images."""
    return "registry-1.docker.io" if is_hub(registry) else registry


def is_hub(registry: str) -> bool:
    return registry.lower() in _HUB


@contextmanager
def _ours(host: str) -> Iterator[None]:
    """What httpx raises, as what it means to us."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError):
        raise RegistryUnavailable(f"{host} did not answer in time") from None
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
        raise RegistryUnavailable(f"{host} did not answer: {str(error)[:200] or type(error).__name__}{_hint(error)}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryConfused(f"{host} cannot be spoken to: {str(error)[:200] or type(error).__name__}") from None


def _hear(budget: Budget, answer: Answer) -> float | None:
    """Tell the budget what an answer says about the pace; the seconds that it asks to wait."""
    asked = retry_after(answer)
    if answer.asks_to_slow_down or (answer.status == 503 and asked is not None):
        budget.hold(asked)
    elif answer.status < 400:
        budget.recover()
    return asked


async def _close(response: httpx.Response) -> None:
    """A response and its stream hold each other. Parted, all of a request is freed at once, and not when the garbage collector comes by:
    after ten thousand requests that is half of the memory.
    """
    await response.aclose()
    response.stream = _NOTHING


async def _read(response: httpx.Response, limit: int, host: str) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if response.status_code >= 400 and len(body) >= _MAX_ERROR:
            return bytes(body[:_MAX_ERROR])
        if len(body) > limit:
            raise RegistryConfused(f"{host} answered with more than {limit} bytes")
    return bytes(body)


def _host(request: httpx.Request) -> str:
    return request.url.netloc.decode()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _as_host(registry: str) -> str:
    """A registry's API as `_host` writes the host of a request."""
    try:
        return httpx.URL(f"https://{api_host(registry)}").netloc.decode()
    except httpx.InvalidURL:
        return registry


def _hint(error: Any) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "; name its CA certificate under `registries`"
    if "WRONG_VERSION_NUMBER" in str(error):
        return "; if it speaks plain HTTP, set `insecure` for it under `registries`"
    return ""
