"""The producer's side: `submit_build()`, webhooks, REST and the command line. It writes the ledger and never imports the worker.

Names are imported when they are first used (PEP 562), so that `crabpot --help` does not wait for pydantic and redis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledger.build import Build, BuildRequest, Reason, State
    from ledger.errors import CrabpotError, LedgerFull, LedgerUnavailable, NotFound, PolicyDenied, QueueFull, RequestInvalid
    from producer.submit import submit_build, submit_build_async, wait_for_build, wait_for_build_async

_HOMES = {
    **dict.fromkeys(("Build", "BuildRequest", "Reason", "State"), "ledger.build"),
    **dict.fromkeys(
        ("CrabpotError", "LedgerFull", "LedgerUnavailable", "NotFound", "PolicyDenied", "QueueFull", "RequestInvalid"), "ledger.errors"
    ),
    **dict.fromkeys(("submit_build", "submit_build_async", "wait_for_build", "wait_for_build_async"), "producer.submit"),
}

__all__ = [
    "Build",
    "BuildRequest",
    "CrabpotError",
    "LedgerFull",
    "LedgerUnavailable",
    "NotFound",
    "PolicyDenied",
    "QueueFull",
    "Reason",
    "RequestInvalid",
    "State",
    "submit_build",
    "submit_build_async",
    "wait_for_build",
    "wait_for_build_async",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'producer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
