"""How a registry is told who asks: its challenge is learnt by a ping, then answered by Basic, or by a token for exactly the rights needed.

The token flow is distribution's (docs/spec/auth), with OAuth2 for identity tokens. A token with less than was asked for is no error of
the flow, so it is looked for here: in the token where it can be read, else in a second 401.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from ledger.errors import ReadOnly, RegistryConfused, RegistryDenied
from worker.registry.answers import Answer, refusal
from worker.registry.challenges import Challenge, parse_challenges
from worker.registry.credentials import Credential, Credentials
from worker.registry.manifests import parse_object
from worker.registry.scopes import Scope, check_grant
from worker.registry.wire import Wire

_TOKEN_LIFE = 60.0
"""Seconds that a token lives where its server does not say (the specification's default)."""
_BASIC_LIFE = 60.0
"""Seconds that a looked-up user and password are used, so that a credential helper does not run for every request."""
_MAX_TOKEN = 1024 * 1024
_MAX_GRANTS = 1000
_BASIC = Challenge("basic")
READING = frozenset({"GET", "HEAD"})
ANY = READING | {"PUT", "POST", "PATCH", "DELETE"}


@dataclass(slots=True)
class _Grant:
    """An Authorization header for some scopes; the lock lets one of many that need it fetch it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    header: str | None = field(default=None, repr=False)
    until: float = 0


class Authorizer:
    """Sends requests to registries with the Authorization that they need, and keeps challenges and tokens meanwhile."""

    def __init__(
        self,
        wire: Wire,
        credentials: Credentials,
        *,
        methods: frozenset[str] = ANY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Methods: all that is ever sent to a registry through this; another one is ReadOnly, before anything is sent."""
        self._wire = wire
        self._credentials = credentials
        self._methods = methods
        self._clock = clock
        self._challenges: dict[str, Challenge | None] = {}
        self._grants: dict[tuple[str, frozenset[Scope]], _Grant] = {}

    async def ping(self, registry: str) -> None:
        """Learn what the registry asks for. RegistryConfused: it is no registry; RegistryUnavailable, RateLimited, RegistryDenied."""
        answer = await self._wire.send("GET", f"{self._wire.base(registry)}/v2/", headers={})
        if answer.status == 200:
            self._challenges[registry] = None
        elif answer.status == 401:
            self._challenges[registry] = _pick(registry, answer)
        elif answer.status == 404:
            raise RegistryConfused(f"{registry} does not speak the registry protocol: it has no /v2/")
        else:
            raise refusal(answer, f"reach the registry {registry}")

    async def send(
        self,
        method: str,
        registry: str,
        path: str,
        *scopes: Scope,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        limit: int = 64 * 1024,
        tries: int | None = None,
        stay: bool = False,
    ) -> Answer:
        """Send with the rights of `scopes` (the first names the repository whose credential is used). `path` begins with `/v2/`.

        A 401 is answered once, by a new token: the old one may have ended early. After a second one it is RegistryDenied.
        `tries` is how often something else than GET and HEAD may be sent. `stay`: a redirect to another host is the answer, and not followed.
        """
        self._check(method, registry)
        url, given = self._wire.base(registry) + path, dict(headers or {})
        sent = await self._known(registry, scopes)
        answer = await self._wire.send(method, url, headers=given | _header(sent), content=content, limit=limit, tries=tries, stay=stay)
        if answer.status != 401 or answer.redirected:
            return answer
        renewed = await self._renewed(registry, scopes, sent, answer)
        answer = await self._wire.send(method, url, headers=given | _header(renewed), content=content, limit=limit, tries=tries, stay=stay)
        if answer.status == 401:
            raise _denied(registry, scopes, self._challenges[registry], renewed)
        return answer

    async def ask_aside(self, registry: str, path: str, repository: str, *, limit: int) -> Answer:
        """GET something of a registry beside the protocol with the user and password that open a repository: Harbor's API takes no token.

        They go to no host that is not given them anyway, so it is RegistryDenied where the registry has its tokens made on another one. A 401
        is the caller's: nothing else is tried.
        """
        if registry not in self._challenges:
            await self.ping(registry)
        challenge, base = self._challenges[registry], self._wire.base(registry)
        if challenge is not None and challenge.scheme == "bearer":
            realm = self._realm(registry, challenge.parameters.get("realm", ""))
            if realm.hostname != urlsplit(base).hostname:
                raise RegistryDenied(f"{registry} has its tokens made by {realm.hostname}; it is not sent the password itself")
        # A grant of its own, and not the one of a token for the same repository.
        sent = await self._authorization(registry, (Scope(repository, (), kind="api"),), challenge and _BASIC)
        return await self._wire.send("GET", base + path, headers=_header(sent), limit=limit)

    async def upload(
        self, registry: str, path: str, *scopes: Scope, content: AsyncIterable[bytes], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """PUT a stream with the rights of `scopes`. It can be read once only, so a 401 to it is final: ask for the upload first, with the same rights."""
        self._check("PUT", registry)
        sent = await self._known(registry, scopes)
        return await self._wire.send(
            "PUT", self._wire.base(registry) + path, headers=dict(headers or {}) | _header(sent), content=content, tries=1
        )

    @asynccontextmanager
    async def download(self, registry: str, path: str, *scopes: Scope) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
        """GET with the rights of `scopes`, piece by piece; a 401 is answered as by `send`."""
        url, sent = self._wire.base(registry) + path, await self._known(registry, scopes)
        renewed: str | None = None
        async with self._wire.download(url, headers=_header(sent)) as (answer, pieces):
            if answer.status != 401 or answer.redirected:
                yield answer, pieces
                return
            renewed = await self._renewed(registry, scopes, sent, answer)
        async with self._wire.download(url, headers=_header(renewed)) as (answer, pieces):
            if answer.status == 401:
                raise _denied(registry, scopes, self._challenges[registry], renewed)
            yield answer, pieces

    def _check(self, method: str, registry: str) -> None:
        if method not in self._methods:
            raise ReadOnly(f"a {method} to {registry} was held back: this client reads only")

    async def _known(self, registry: str, scopes: tuple[Scope, ...]) -> str | None:
        """The Authorization by what is known of the registry; it is pinged when it is asked for the first time."""
        if registry not in self._challenges:
            await self.ping(registry)
        return await self._authorization(registry, scopes, self._challenges[registry])

    async def _renewed(self, registry: str, scopes: tuple[Scope, ...], sent: str | None, answer: Answer) -> str:
        """Another Authorization than the one that a 401 answered; RegistryDenied where there is none to try."""
        self._challenges[registry] = challenge = _pick(registry, answer)
        self._forget(registry, scopes, sent)
        renewed = await self._authorization(registry, scopes, challenge)
        if renewed is None or (renewed == sent and challenge.scheme == "basic"):
            raise _denied(registry, scopes, challenge, renewed)
        return renewed

    async def _authorization(self, registry: str, scopes: tuple[Scope, ...], challenge: Challenge | None) -> str | None:
        if challenge is None:
            return None
        grant = self._grants.setdefault((registry, frozenset(scopes)), _Grant())
        async with grant.lock:
            if grant.header is None or self._clock() >= grant.until:
                grant.header = None
                self._prune()
                asked_at = self._clock()
                credential = await self._credentials.find(registry, scopes[0].name if scopes else "")
                if challenge.scheme == "basic":
                    grant.header, life = _basic(registry, credential), _BASIC_LIFE
                else:
                    token, life = await self._fetch_token(registry, challenge, scopes, credential)
                    grant.header = f"Bearer {token}"
                grant.until = asked_at + life * 0.9  # so that it does not end on its way
            return grant.header

    def _forget(self, registry: str, scopes: tuple[Scope, ...], sent: str | None) -> None:
        """Unless somebody else has renewed it in the meantime."""
        grant = self._grants.get((registry, frozenset(scopes)))
        if grant and grant.header == sent:
            grant.header = None

    def _prune(self) -> None:
        if len(self._grants) > _MAX_GRANTS:
            now = self._clock()
            self._grants = {key: grant for key, grant in self._grants.items() if grant.until > now or grant.lock.locked()}

    async def _fetch_token(
        self, registry: str, challenge: Challenge, scopes: tuple[Scope, ...], credential: Credential | None
    ) -> tuple[str, float]:
        """A token, and how many seconds it lives."""
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        url = self._realm(registry, realm)
        wanted = [str(scope) for scope in scopes]
        if credential and credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": "crabpot",
                "scope": " ".join(wanted),
                "refresh_token": credential.identity_token,
            }
            answer = await self._wire.send("POST", url.geturl(), headers={}, form=form, limit=_MAX_TOKEN, led_by=registry)
        else:
            query = urlencode([*parse_qsl(url.query), *([("service", service)] if service else []), *(("scope", one) for one in wanted)])
            answer = await self._wire.send(
                "GET",
                url._replace(query=query).geturl(),
                headers=_header(credential.basic if credential else None),
                limit=_MAX_TOKEN,
                led_by=registry,
            )
        doing = (
            f"get a token for {' '.join(wanted) or registry} {'with the configured credential' if credential else 'without a credential'}"
        )
        if answer.status in (400, 401, 403):  # OAuth2 answers 400 `invalid_grant`
            raise RegistryDenied(f"cannot {doing}: the token server {answer.host} answered {answer.status}")
        if answer.status != 200:
            raise refusal(answer, doing)
        given = parse_object(answer.body, "token answer")
        token = given.get("token") or given.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryConfused(f"cannot {doing}: the token server {answer.host} answered without a token")
        check_grant(registry, token, scopes)
        life = given.get("expires_in")
        return token, float(life) if isinstance(life, int | float) and life > 0 else _TOKEN_LIFE

    def _realm(self, registry: str, realm: str) -> SplitResult:
        """Where the token server is. It is sent the credential, so it must speak https where its registry does."""
        try:
            url = urlsplit(realm)
        except ValueError:
            url = urlsplit("")
        if url.scheme not in ("https", "http") or not url.hostname:
            raise RegistryConfused(f"{registry} asks for a token but names no token server")
        if url.scheme == "http" and self._wire.base(registry).startswith("https:"):
            raise RegistryConfused(
                f"{registry} names a token server that speaks plain HTTP ({url.hostname}); the credential is not sent there"
            )
        return url


def _pick(registry: str, answer: Answer) -> Challenge:
    challenges = parse_challenges(answer.headers.get_list("www-authenticate"))
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    asked = ", ".join(challenge.scheme for challenge in challenges) or "nothing"
    raise RegistryConfused(f"{registry} answers 401 and asks for {asked[:100]}; Bearer and Basic are known")


def _basic(registry: str, credential: Credential | None) -> str | None:
    if credential is None:
        return None
    if credential.identity_token:
        raise RegistryDenied(f"{registry} asks for a user and password, and an identity token is configured for it")
    return credential.basic


def _denied(registry: str, scopes: tuple[Scope, ...], challenge: Challenge | None, sent: str | None) -> RegistryDenied:
    wanted = " ".join(str(scope) for scope in scopes)
    if sent is None or challenge is None:
        return RegistryDenied(f"{registry} needs a credential for {wanted}, and none is configured")
    if challenge.scheme == "basic":
        return RegistryDenied(f"{registry} refuses the configured user and password for {wanted}")
    return RegistryDenied(f"{registry} refuses the token for {wanted}: the credential grants less than that")


def _header(authorization: str | None) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}
