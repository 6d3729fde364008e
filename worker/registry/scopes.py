"""Rights on a registry: what a request needs, and what a token says that it grants."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from ledger.errors import RegistryDenied


@dataclass(frozen=True, slots=True)
class Scope:
    """Rights on one thing: `repository:team/app:pull,push`."""

    name: str
    actions: tuple[str, ...]
    kind: str = "repository"

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}:{','.join(self.actions)}"


def granted(token: str) -> list[tuple[str, str, frozenset[str]]] | None:
    """Kind, name and actions that a token says it grants (its JWT's `access` claim); None where it does not say."""
    try:
        payload = token.split(".")[1]
        access: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["access"]
        return [(str(one["type"]), str(one["name"]), frozenset(one["actions"] or ())) for one in access]
    except (IndexError, KeyError, TypeError, ValueError, RecursionError, binascii.Error):
        return None


def check_grant(registry: str, token: str, scopes: tuple[Scope, ...]) -> None:
    """RegistryDenied for a token that says it grants less. Names that it does not mention are the registry's to judge: a proxy may rewrite them."""
    access = granted(token)
    if access is None:
        return
    for scope in scopes:
        here = [actions for kind, name, actions in access if (kind, name) == (scope.kind, scope.name)]
        if (here or not access) and not any("*" in actions or actions.issuperset(scope.actions) for actions in here):
            got = ",".join(sorted(frozenset().union(*here))) or "nothing"
            raise RegistryDenied(f"the credential for {registry} grants {got} on {scope.name}, and {','.join(scope.actions)} is needed")
