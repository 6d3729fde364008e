"""Which credential opens which registry, found where people already keep it: a docker config.json and docker credential helpers.

A secret is held in memory only. No repr, error or log line shows one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from ledger.errors import Problem, RegistryDenied, RegistryUnavailable, SettingsInvalid
from worker.registry.wire import is_hub

_HUB_KEY = "https://index.docker.io/v1/"
"""The name under which docker keeps Docker Hub's credential, in its config and with its helpers."""
_TOKEN_USER = "<token>"  # noqa: S105
"""The user name by which a helper says that its secret is an identity token."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user's name and password, or an identity token (an OAuth2 refresh token)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Credentials(Protocol):
    """Where credentials come from."""

    async def find(self, registry: str, repository: str) -> Credential | None:
        """The credential for a repository, None to go without. RegistryDenied: one is configured but unusable; RegistryUnavailable: a helper failed."""
        ...


class Anonymous:
    """No credential for any registry."""

    async def find(self, registry: str, repository: str) -> Credential | None:  # noqa: ARG002
        return None


@dataclass(frozen=True, slots=True)
class ByRegistry:
    """A source of credentials for each registry; none for the others."""

    sources: Mapping[str, Credentials]

    async def find(self, registry: str, repository: str) -> Credential | None:
        source = self.sources.get(registry)
        return await source.find(registry, repository) if source else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerConfig:
    """A docker config.json: `auths`, `credHelpers` and `credsStore`.

    The longest key that a repository lies under wins (`host/team/app`, `host/team`, `host`); at each key its helper comes before
    its entry in `auths`. The store is asked last, for the host.
    """

    auths: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    helper_timeout: float = 30
    """Seconds that a helper may take."""

    @classmethod
    def parse(cls, text: str | bytes, *, origin: str = "docker config", helper_timeout: float = 30) -> Self:
        """Read the text of a config.json; SettingsInvalid says what is wrong with it, and never what stands in it."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            raise SettingsInvalid([Problem(origin, "text that is not JSON", "must be a docker config.json")]) from None
        if not isinstance(given, dict):
            raise SettingsInvalid([Problem(origin, "JSON that is no object", 'must be a docker config.json, as {"auths": {…}}')])
        auths, helpers, store = given.get("auths") or {}, given.get("credHelpers") or {}, given.get("credsStore") or None
        if not isinstance(auths, dict) or not all(isinstance(entry, dict) for entry in auths.values()):
            raise SettingsInvalid([Problem(f"{origin}: auths", "something else", "must hold an object for each registry")])
        if not isinstance(helpers, dict):
            raise SettingsInvalid([Problem(f"{origin}: credHelpers", "something else", "must name a helper for each registry")])
        for place, name in [("credsStore", store), *((f"credHelpers.{key}", name) for key, name in helpers.items())]:
            if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)):
                raise SettingsInvalid(
                    [Problem(f"{origin}: {place}", json.dumps(name)[:80], "must be NAME of a program docker-credential-NAME on PATH")]
                )
        return cls(auths=auths, helpers=helpers, store=store, helper_timeout=helper_timeout)

    @classmethod
    def read(cls, path: Path, *, helper_timeout: float = 30) -> Self:
        """Read the file; SettingsInvalid where it cannot be read."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise SettingsInvalid([Problem("docker config", str(path), f"must be a readable file ({error.strerror})")]) from None
        return cls.parse(text, origin=str(path), helper_timeout=helper_timeout)

    async def find(self, registry: str, repository: str) -> Credential | None:
        auths, helpers = _by_place(self.auths), _by_place(self.helpers)
        for place in _places(registry, repository):
            if place in helpers:
                key, name = helpers[place]
                return await ask_helper(name, _HUB_KEY if is_hub(key) else key, timeout=self.helper_timeout)
            if place in auths:
                key, entry = auths[place]
                if found := _credential(key, entry):  # docker leaves an empty entry where the store has the credential
                    return found
        return await ask_helper(self.store, _HUB_KEY if is_hub(registry) else registry, timeout=self.helper_timeout) if self.store else None


@dataclass(frozen=True, slots=True)
class DockerConfigFile:
    """A docker config.json on disk, read anew for each look-up: mounted Secrets and `docker login` change it while we run."""

    path: Path
    helper_timeout: float = 30

    async def find(self, registry: str, repository: str) -> Credential | None:
        try:
            config = await asyncio.to_thread(DockerConfig.read, self.path, helper_timeout=self.helper_timeout)
        except SettingsInvalid as error:
            raise RegistryDenied(f"no credential for {registry}: {error}") from None
        return await config.find(registry, repository)


async def ask_helper(name: str, server: str, *, timeout: float) -> Credential | None:  # noqa: ASYNC109
    """Run `docker-credential-NAME get` for a server; None when it has no credential. It is killed after `timeout` seconds.

    RegistryDenied: there is no such program, or what it says is not the protocol; RegistryUnavailable: it failed or took too long.
    """
    program = f"docker-credential-{name}"
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(program, "get", stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise RegistryDenied(f"the credential helper {program} cannot be run ({error.strerror}); install it on the worker's PATH") from None
    try:
        async with asyncio.timeout(timeout):
            out, _ = await process.communicate(server.encode() + b"\n")
    except TimeoutError:
        raise RegistryUnavailable(f"the credential helper {program} did not answer for {server} within {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # a session of its own: a helper written in shell dies with what it waits for
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        if b"credentials not found" in out.lower():
            return None
        # Neither of its outputs is repeated: helpers have been seen to print what they were given.
        raise RegistryUnavailable(
            f"the credential helper {program} failed for {server} with exit code {process.returncode}; run it by hand to see why"
        )
    try:
        given = json.loads(out)
        username, secret = given["Username"], given["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise RegistryDenied(f"the credential helper {program} did not answer with Username and Secret for {server}")
    if username == _TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username=username, password=secret) if username or secret else None


def _credential(key: str, entry: Mapping[str, Any]) -> Credential | None:
    """An entry of `auths`; RegistryDenied for one that says something which cannot be used."""
    username, password = entry.get("username") or "", entry.get("password") or ""
    token, auth = entry.get("identitytoken") or "", entry.get("auth") or ""
    if not all(isinstance(value, str) for value in (username, password, token, auth)):
        raise RegistryDenied(f"docker config: auths.{key} holds something that is not text")
    if auth and not (username and password):
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise RegistryDenied(f"docker config: auths.{key}.auth is not the base64 of user:password")
        password = password.strip("\0")
    if token:
        return Credential(username=username, identity_token=token)
    if username or password:
        return Credential(username=username, password=password)
    if entry.get("registrytoken"):
        raise RegistryDenied(
            f"docker config: auths.{key} holds only a registrytoken, which crabpot does not take; give a password or an identitytoken"
        )
    return None


def _places(registry: str, repository: str) -> Iterator[str]:
    """`host/a/b`, `host/a`, `host`: the repository and everything that it lies under, longest first."""
    parts = [_place(registry), *(part for part in repository.split("/") if part)]
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])


def _by_place(given: Mapping[str, _Value]) -> dict[str, tuple[str, _Value]]:
    """Keyed by host and path; a key already written so wins over one with a scheme or slash around it."""
    return {_place(key): (key, value) for key, value in sorted(given.items(), key=lambda item: item[0] == _place(item[0]))}


def _place(key: str) -> str:
    """A key of a docker config as `host[:port][/path]`: people write them with a scheme, `/v1/` or `/v2/`, as docker once did."""
    bare = re.sub(r"^https?://", "", key)
    host, _, path = bare.rstrip("/").partition("/")
    if bare != key or bare.endswith("/"):
        path = "" if path in ("v1", "v2") else path
    return ("docker.io" if is_hub(host) else host.lower()) + (f"/{path}" if path else "")
