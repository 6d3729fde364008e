"""HTTP to registries and token servers: the only place that knows httpx, and where its errors and every refusal become ours.

It repeats a GET or HEAD once when a kept-alive connection turns out to be dead. Every other retry is the caller's, who knows how long it may wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from ledger.errors import (
    ManifestUnknown,
    Problem,
    RateLimited,
    RegistryConfused,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
    SettingsInvalid,
)

for _name in ("httpx", "httpcore"):  # they log whole URLs and headers, and an address that a blob redirects to is signed
    logging.getLogger(_name).setLevel(logging.WARNING)

_SAFE = frozenset({"GET", "HEAD"})
_MAX_REDIRECTS = 5
_MAX_ERROR = 64 * 1024
_DROPPED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """In seconds: to connect, between two reads or writes, and for a whole exchange with its redirects."""

    connect: float = 10
    read: float = 30
    total: float = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, read to its end."""

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)
    host: str
    """Who answered in the end."""
    redirected: bool = False
    """Another origin than the one asked has answered, without our Authorization."""

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The code and message of each error in an OCI error body; none where the body is something else."""
        try:
            given = json.loads(self.body)["errors"]
            return [(str(one.get("code", "")), str(one.get("message", ""))) for one in given]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return []

    @property
    def from_registry(self) -> bool:
        """Whether a registry seems to have said this, and not a proxy before it (which answers 404 too while the registry is away)."""
        plain = self.headers.get("content-type", "").lower().startswith("text/")
        return bool(self.errors) or "docker-distribution-api-version" in self.headers or not plain


class Wire:
    """One pool of connections to all registries and token servers. Use it from one event loop, and close it."""

    def __init__(self, *, insecure: frozenset[str], certificates: Mapping[str, str], user_agent: str, timeouts: Timeouts) -> None:
        """Certificates: registry -> path of a CA certificate (PEM) that is trusted for it beside the system's. SettingsInvalid if one cannot be read."""
        self._insecure = insecure
        self._total = timeouts.total
        self._http = httpx.AsyncClient(
            headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},  # digests are of what is sent, not of its compression
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # a session's cookie makes Harbor ask for a CSRF token
            timeout=httpx.Timeout(timeouts.read, connect=timeouts.connect, pool=timeouts.total),
            mounts={
                f"https://{api_host(host)}": httpx.AsyncHTTPTransport(verify=_trusting(host, path)) for host, path in certificates.items()
            },
        )

    def base(self, registry: str) -> str:
        """Where the registry's API is: https, unless the registry is one of the insecure."""
        return f"{'http' if registry in self._insecure else 'https'}://{api_host(registry)}"

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | None = None,
        form: Mapping[str, str] | None = None,
        limit: int = _MAX_ERROR,
    ) -> Answer:
        """One exchange, whatever its status; at most `limit` bytes of body.

        Redirects of GET and HEAD are followed, to https only once https was asked, and Authorization stays with the host that it was made for.
        RegistryUnavailable: no answer; RegistryConfused: not HTTP, too many redirects or too many bytes.
        """
        host = httpx.URL(url).netloc.decode()
        try:
            request = self._http.build_request(method, url, headers=dict(headers), content=content, data=form)
            async with asyncio.timeout(self._total):
                try:
                    return await self._follow(request, limit)
                except _DROPPED:
                    if method not in _SAFE:
                        raise
                    return await self._follow(request, limit)
        except (httpx.TimeoutException, TimeoutError):
            raise RegistryUnavailable(f"{host} did not answer in time") from None
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
            raise RegistryUnavailable(f"{host} did not answer: {str(error)[:200] or type(error).__name__}{_hint(error)}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RegistryConfused(f"{host} cannot be spoken to: {str(error)[:200] or type(error).__name__}") from None

    async def _follow(self, request: httpx.Request, limit: int) -> Answer:
        asked = _origin(request.url)
        for _ in range(_MAX_REDIRECTS):
            response = await self._http.send(request, stream=True, follow_redirects=False)
            try:
                following = response.next_request
                if following is None:
                    host = request.url.netloc.decode()
                    body = await _read(response, limit, host)
                    return Answer(
                        status=response.status_code,
                        headers=response.headers,
                        body=body,
                        host=host,
                        redirected=_origin(request.url) != asked,
                    )
            finally:
                await response.aclose()
            if request.method not in _SAFE:
                raise RegistryConfused(f"{asked[1]} redirects a {request.method}, which is not followed")
            if request.url.scheme == "https" and following.url.scheme != "https":
                raise RegistryConfused(f"{request.url.host} redirects from https to {following.url.scheme}")
            if _origin(following.url) != asked:
                following.headers.pop("Authorization", None)
            request = following
        raise RegistryConfused(f"{asked[1]} redirects more than {_MAX_REDIRECTS} times")

    async def close(self) -> None:
        await self._http.aclose()


def api_host(registry: str) -> str:
    """The host that serves a registry's API: Docker Hub's has another name than its images."""
    return "registry-1.docker.io" if is_hub(registry) else registry


def is_hub(registry: str) -> bool:
    return registry.lower() in _HUB


def refusal(answer: Answer, doing: str, *, now: datetime | None = None) -> RegistryError:
    """What an answer that is no success means; `doing` says what was asked, as "read the manifest of X"."""
    codes = {code for code, _ in answer.errors}
    said = "; ".join(f"{code}: {message}".strip(": ")[:200] for code, message in answer.errors[:2])
    text = f"cannot {doing}: {answer.host} answered {answer.status}{f' ({said})' if said else ''}"
    wait = parse_retry_after(answer.headers.get("retry-after"), now or datetime.now(UTC))
    status = answer.status
    if status == 429 or "TOOMANYREQUESTS" in codes:
        return RateLimited(text, retry_after=wait)
    if status in (401, 403) or "UNSUPPORTED" in codes:
        return RegistryDenied(text)
    if status >= 500 or status == 408:
        return RegistryUnavailable(text, retry_after=wait)
    if status == 405:  # how distribution answers writes while `maintenance.readonly` is on
        return RegistryUnavailable(f"{text}; it may be read-only for maintenance", retry_after=wait)
    if "MANIFEST_BLOB_UNKNOWN" in codes or (status == 404 and answer.from_registry):
        return ManifestUnknown(text)
    if status == 404:
        return RegistryUnavailable(f"{text}, but not as a registry does: something before it answers in its place", retry_after=wait)
    return RegistryConfused(text)


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Retry-After in seconds from now: it is a number of seconds or an HTTP date. None where there is none or it makes no sense."""
    if not text:
        return None
    if re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
        return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


async def _read(response: httpx.Response, limit: int, host: str) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if response.status_code >= 400 and len(body) >= _MAX_ERROR:
            return bytes(body[:_MAX_ERROR])
        if len(body) > limit:
            raise RegistryConfused(f"{host} answered with more than {limit} bytes")
    return bytes(body)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _trusting(host: str, path: str) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    try:
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsInvalid(
            [Problem(f"registries.{host}.certificate", path, f"must be a readable CA certificate in PEM form ({error})")]
        ) from None
    return context


def _hint(error: Any) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "; name its CA certificate under `registries`"
    if "WRONG_VERSION_NUMBER" in str(error):
        return "; if it speaks plain HTTP, set `insecure` for it under `registries`"
    return ""
