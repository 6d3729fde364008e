"""A registry's lists, page by page: `Link: rel="next"` says whether there is more. Pages are never counted: a short one is not the end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from ledger.errors import RegistryConfused
from worker.registry.answers import Answer, refusal
from worker.registry.auth import Authorizer
from worker.registry.manifests import parse_object
from worker.registry.scopes import Scope

MAX_PAGE = 64 * 1024 * 1024  # distribution 2.8 answers all tags in one page
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*?\brel="?next"?', re.IGNORECASE)


async def pages(authorizer: Authorizer, base: str, registry: str, path: str, scope: Scope, what: str) -> AsyncIterator[dict[str, Any]]:
    """The JSON object of each page of a list that begins at `path`; `what` names it in errors. RegistryConfused for one that never ends."""
    seen = set[str]()
    while path:
        if path in seen:
            raise RegistryConfused(f"{registry} lists {what} in a circle")
        seen.add(path)
        answer = await authorizer.send("GET", registry, path, scope, limit=MAX_PAGE)
        if answer.status != 200:
            raise refusal(answer, f"list {what}")
        yield parse_object(answer.body, f"list of {what}")
        path = next_page(base, registry, path, answer)


def next_page(base: str, registry: str, path: str, answer: Answer) -> str:
    """Where a list goes on after the answer to `path`, empty at its end. RegistryConfused: at another host."""
    match = _NEXT.search(answer.headers.get("link", ""))
    following = local_path(base, path, match[1]) if match else ""
    if following is None:
        raise RegistryConfused(f"{registry} names another host for the rest of its list")
    return following


def has_next(answer: Answer) -> bool:
    """Whether a page of a list says that there is another."""
    return _NEXT.search(answer.headers.get("link", "")) is not None


def local_path(base: str, path: str, location: str) -> str | None:
    """An address from an answer as a path of the same registry, None if it is elsewhere: the credential goes nowhere else.

    The scheme is not compared: a registry behind a proxy that ends TLS thinks that it is asked over http.
    """
    try:
        url = urlsplit(urljoin(base + path, location))
    except ValueError:
        return None
    if not location or url.hostname != urlsplit(base).hostname or not url.path.startswith("/v2/"):
        return None
    return url.path + (f"?{url.query}" if url.query else "")
