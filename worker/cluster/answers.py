"""What the API server's answers mean, as our errors. Pure: told by status, reason and message, so that tests need no server.

Only a `Status` that Kubernetes itself wrote is a definite no. Anything else (a proxy's page, a cut connection, a 5xx) leaves open what
happened, and must never be taken for a refusal: the pod may exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ledger.errors import ClusterDenied, ClusterError, ClusterUnavailable, LaunchRefused, NoRoom, WatchExpired

_NOT_YET = ("status unknown for quota", 'serviceaccount "default" not found')
"""Refusals that pass by themselves, moments after a namespace or its quota was made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the API server."""

    status: int
    body: Mapping[str, Any] | None
    """The JSON object; None where the body is none, as a proxy's page is."""
    retry_after: float | None = None
    """Seconds that it asked us to wait."""

    @classmethod
    def read(cls, status: int, headers: Mapping[str, str], raw: bytes) -> Answer:
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        wait = headers.get("Retry-After", "")
        return cls(status, body if isinstance(body, dict) else None, float(wait) if wait.isascii() and wait.isdigit() else None)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300 and self.body is not None

    @property
    def definite(self) -> bool:
        """Kubernetes itself said no, and nothing was done."""
        return self.body is not None and self.body.get("kind") == "Status" and 400 <= self.status < 500 and self.status not in (408, 429)

    @property
    def reason(self) -> str:
        """Kubernetes' word, as AlreadyExists."""
        return str((self.body or {}).get("reason") or "")

    @property
    def message(self) -> str:
        return str((self.body or {}).get("message") or f"HTTP {self.status}")


def failure_of(answer: Answer, doing: str) -> ClusterError:
    """An answer that was not hoped for, to anything but a create. `doing` is said to people, as "watch pods"."""
    if answer.status == 410 or answer.reason in ("Expired", "Gone"):
        return WatchExpired(f"could not {doing}: {answer.message}")
    if answer.definite and answer.status in (401, 403):
        return ClusterDenied(f"could not {doing}: {answer.message}; `crabpot doctor` lists the missing rights")
    if answer.body is None:
        return ClusterUnavailable(
            f"could not {doing}: HTTP {answer.status} that Kubernetes did not write; is a proxy in between?", retry_after=answer.retry_after
        )
    return ClusterUnavailable(f"could not {doing}: {answer.message}", retry_after=answer.retry_after)


def refusal_of(answer: Answer) -> ClusterError | None:
    """Why a create was definitely refused; None where it is to be repeated under the same name."""
    if not answer.definite or (answer.status == 409):
        return None
    message = answer.message
    if any(words in message for words in _NOT_YET):
        return None
    if answer.status == 401 or (answer.status == 403 and " cannot create resource " in message):
        return ClusterDenied(f"could not create a pod: {message}; `crabpot doctor` lists the missing rights")
    if answer.status == 403 and "exceeded quota" in message:
        return NoRoom(f"the namespace's quota is used up: {message}")
    if answer.status == 404:
        return LaunchRefused(f"{message}; create the namespace, or name another in the projects file")
    return LaunchRefused(f"the cluster refuses the pod: {message}")
