"""What a registry's answer means: every refusal becomes one of our errors here, and how long it asks us to wait is read.

Pure: nothing is sent or waited for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from ledger.errors import (
    ManifestUnknown,
    RateLimited,
    RegistryConfused,
    RegistryDenied,
    RegistryError,
    RegistryUnavailable,
    RegistryUnsupported,
)

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be another in a moment."""


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

    @property
    def asks_to_slow_down(self) -> bool:
        return self.status == 429 or any(code == "TOOMANYREQUESTS" for code, _ in (self.errors if self.status == 403 else ()))


def refusal(answer: Answer, doing: str, *, now: datetime | None = None) -> RegistryError:
    """What an answer that is no success means; `doing` says what was asked, as "read the manifest of X"."""
    codes = {code for code, _ in answer.errors}
    said = "; ".join(f"{code}: {message}".strip(": ")[:200] for code, message in answer.errors[:2])
    text = f"cannot {doing}: {answer.host} answered {answer.status}{f' ({said})' if said else ''}"
    wait = retry_after(answer, now)
    status = answer.status
    if status == 429 or "TOOMANYREQUESTS" in codes:
        return RateLimited(text, retry_after=wait)
    if "UNSUPPORTED" in codes:
        return RegistryUnsupported(text)
    if status in (401, 403):
        return RegistryDenied(text)
    if status == 412:  # Harbor's word for a tag under a rule of immutability; no condition of ours can fail, as none is ever sent
        return RegistryDenied(f"{text}; a rule there keeps it as it is, as Harbor's immutable tags: the rule's owner must except it")
    if status >= 500 or status == 408:
        return RegistryUnavailable(text, retry_after=wait)
    if status == 405:  # how distribution answers writes while `maintenance.readonly` is on
        return RegistryUnavailable(f"{text}; it may be read-only for maintenance", retry_after=wait)
    if "MANIFEST_BLOB_UNKNOWN" in codes or (status == 404 and answer.from_registry):
        return ManifestUnknown(text)
    if status == 404:
        return RegistryUnavailable(f"{text}, but not as a registry does: something before it answers in its place", retry_after=wait)
    return RegistryConfused(text)


def retry_after(answer: Answer, now: datetime | None = None) -> float | None:
    """Seconds that an answer asks us to wait; None where it does not ask."""
    return parse_retry_after(answer.headers.get("retry-after"), now or datetime.now(UTC))


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Retry-After in seconds from now: it is a number of seconds or an HTTP date. None where there is none or it makes no sense."""
    if not text:
        return None
    if re.fullmatch(r"\d{1,9}", seconds := text.strip(), re.ASCII):
        return float(seconds)
    try:
        at = parsedate_to_datetime(text)
        return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
