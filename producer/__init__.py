"""The producer's side: `submit_build()`, webhooks, REST and the command line. It writes the ledger and never imports the worker."""

from ledger.build import Build, BuildRequest, Reason, State
from ledger.errors import CrabpotError, LedgerUnavailable, NotFound, PolicyDenied, RequestInvalid
from producer.submit import submit_build, submit_build_async, wait_for_build, wait_for_build_async

__all__ = [
    "Build",
    "BuildRequest",
    "CrabpotError",
    "LedgerUnavailable",
    "NotFound",
    "PolicyDenied",
    "Reason",
    "RequestInvalid",
    "State",
    "submit_build",
    "submit_build_async",
    "wait_for_build",
    "wait_for_build_async",
]
