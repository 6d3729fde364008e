"""Whose word is taken for a host: the system's authorities, and a registry's own beside them.

The system's are OpenSSL's, as every other program on the machine has them; httpx alone would bring its own list.
"""

from __future__ import annotations

import ssl

from ledger.errors import Problem, SettingsInvalid


def systems() -> ssl.SSLContext:
    """The system's authorities alone."""
    return ssl.create_default_context()


def beside(registry: str, path: str) -> ssl.SSLContext:
    """The system's, and a registry's CA certificate (PEM). SettingsInvalid: it cannot be read."""
    context = systems()
    try:
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsInvalid(
            [Problem(f"registries.{registry}.certificate", path, f"must be a readable CA certificate in PEM form ({error})")]
        ) from None
    return context


def can_be_trusted(path: str) -> bool:
    """Whether a file holds a CA certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # ssl.SSLError is one
        return False
    return True
