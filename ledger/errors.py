"""Every error that crabpot raises on purpose, as one tree. Outside systems' errors are translated into these at their module.

CrabpotError
├── InputInvalid            something given to us is wrong; the problems name the fields
│   ├── RequestInvalid      a build request
│   │   └── PolicyDenied    a valid request that its project's policy does not allow
│   ├── SettingsInvalid     the environment
│   ├── ProjectsInvalid     the projects file
│   └── WebhookInvalid      a forge's request
├── NotFound                no such build, project or cursor
├── Conflict                the record says no
│   ├── VersionConflict     somebody else wrote first; read again (retryable)
│   ├── FenceLost           this process no longer leads; stop writing
│   ├── ChoreLost           another worker goes on with the chore; stop writing
│   ├── TooLate             the build has ended, or its tags are being moved
│   ├── ImageInUse          other tags or an index need the image
│   ├── TagFixed            a tag that never moves stands at another image
│   ├── StillRuns           the build has not ended yet
│   ├── FileInTheWay        a file is there that would be written over
│   ├── RegistryHeld        somebody else holds the registry (retryable)
│   └── PodConflict         a pod of that name exists and is not ours
├── LedgerError
│   ├── LedgerUnavailable   Redis did not answer (retryable)
│   ├── LedgerFull          Redis refuses writes: no memory (retryable)
│   ├── QueueFull           as many of the project wait as may (retryable)
│   └── LedgerUnfit         Redis's settings would lose builds; refuse to start
├── ClusterError
│   ├── ClusterUnavailable  no answer, 429, 5xx (retryable)
│   ├── ClusterDenied       401, 403
│   ├── NoRoom              the namespace's quota is used up (retryable)
│   ├── LaunchRefused       the cluster will never accept this launch
│   └── WatchExpired        list again (retryable)
├── RegistryError
│   ├── RegistryUnavailable no answer, 5xx (retryable)
│   ├── RateLimited         429 (retryable)
│   ├── RegistryDenied      401, 403, or a token with less than was asked for
│   │   ├── RegistryUnsupported the registry never does this
│   │   │   └── DeletesByDigest it takes no tag away alone
│   │   └── ReadOnly        a client that may only read was told to write
│   ├── ManifestUnknown     404: a definite answer
│   └── RegistryConfused    an answer that breaks the protocol
└── ServerUnavailable       the REST API did not answer (retryable)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

MOST_PATIENCE = 600.0
"""Seconds: who asks us to wait for longer is asked again all the same. A proxy's odd page must not hold a build for a day."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input: where, what was given, and what is allowed."""

    path: str
    given: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.path}: got {self.given}; {self.allowed}"


class CrabpotError(Exception):
    """Something went wrong that crabpot foresaw."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.retry_after = None if retry_after is None else min(retry_after, MOST_PATIENCE)
        """Seconds that the other side asked us to wait, if it did; at most `MOST_PATIENCE`."""


class InputInvalid(CrabpotError):
    """The input is not valid."""

    def __init__(self, problems: Iterable[Problem] | str) -> None:
        self.problems = (Problem("", "", problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__(problems if isinstance(problems, str) else "; ".join(str(problem) for problem in self.problems))


class RequestInvalid(InputInvalid):
    """The build request is not valid."""


class PolicyDenied(RequestInvalid):
    """The project's policy does not allow this request."""


class SettingsInvalid(InputInvalid):
    """A setting is not valid."""


class ProjectsInvalid(InputInvalid):
    """The projects file is not valid."""


class WebhookInvalid(InputInvalid):
    """The webhook's request is not valid."""


class NotFound(CrabpotError):
    """There is no such thing."""


class Conflict(CrabpotError):
    """The record's present state does not allow this."""


class VersionConflict(Conflict):
    """The record was changed by somebody else in the meantime; read it again."""

    retryable = True


class FenceLost(Conflict):
    """Another process leads now; this one must stop writing."""


class ChoreLost(Conflict):
    """Another worker has taken the chore on; this one must stop."""


class TooLate(Conflict):
    """The build can no longer be stopped."""


class StillRuns(Conflict):
    """The build has not ended yet."""


class FileInTheWay(Conflict):
    """A file is there already; say --force to write over it."""


class RegistryHeld(Conflict):
    """Somebody else holds the registry for maintenance."""

    retryable = True


class PodConflict(Conflict):
    """A pod of this name exists that crabpot did not make."""


class ImageInUse(Conflict):
    """Other tags or an index need this image."""


class TagFixed(Conflict):
    """The tag names a version, which never moves, and stands at another image."""


class LedgerError(CrabpotError):
    """The ledger failed."""


class LedgerUnavailable(LedgerError):
    """Redis did not answer; check CRABPOT_REDIS_URL and that Redis runs, then try again."""

    retryable = True


class LedgerFull(LedgerError):
    """Redis has no memory left for new builds; raise maxmemory or wait until builds finish."""

    retryable = True


class QueueFull(LedgerError):
    """As many builds of the project wait as its `max_queued` allows; try again when some have been admitted."""

    retryable = True


class LedgerUnfit(LedgerError):
    """Redis's settings would lose builds; `crabpot doctor` says how to mend them."""


class ClusterError(CrabpotError):
    """The cluster failed."""


class ClusterUnavailable(ClusterError):
    """The cluster did not answer or is overloaded; it is asked again."""

    retryable = True


class ClusterDenied(ClusterError):
    """The cluster does not allow this to crabpot's account; `crabpot doctor` lists the missing rights."""


class NoRoom(ClusterError):
    """The cluster has no room for the pod now (quota)."""

    retryable = True


class LaunchRefused(ClusterError):
    """The cluster will never accept this launch: the request must change."""


class WatchExpired(ClusterError):
    """The watch's version is too old; list again and go on from there."""

    retryable = True


class RegistryError(CrabpotError):
    """The registry failed."""


class RegistryUnavailable(RegistryError):
    """The registry did not answer or answered 5xx; it is asked again."""

    retryable = True


class RateLimited(RegistryError):
    """The registry asks for fewer requests."""

    retryable = True


class RegistryDenied(RegistryError):
    """The registry does not allow this with the configured credential."""


class RegistryUnsupported(RegistryDenied):
    """The registry does not do this at all, whoever asks."""


class DeletesByDigest(RegistryUnsupported):
    """The registry deletes by digest only, and with a digest all its tags."""


class ReadOnly(RegistryDenied):
    """This client was made to read only, and sends nothing else."""


class ManifestUnknown(RegistryError):
    """The registry definitely has no such manifest."""


class RegistryConfused(RegistryError):
    """The registry's answer breaks the distribution protocol."""


class ServerUnavailable(CrabpotError):
    """The crabpot server did not answer; check CRABPOT_URL and that `crabpot serve` runs."""

    retryable = True
