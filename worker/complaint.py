"""Why Kaniko failed, in its own words: the complaint found in a log's end, and what it means. Pure; the words are those of its source.

Kaniko says why in one of two places. What fails before the build (flags, context, Dockerfile's path) is an `Error:` line followed by some
eighty lines of usage; what fails later is the last line, after `error building image:` and the like. A RUN's output may look the same,
so the last such line counts. Rules are tried in order within their stage, the most telling first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ledger.build import Reason

_LONGEST = 600
_STAGES = {
    "error building image: ": "build",
    "error pushing image: ": "push",
    "error checking push permissions: ": "push",
    # Until 1.24.0, which is archived and still pinned by many.
    "error checking push permissions -- make sure you entered the correct tag name, and that you are authenticated correctly, and try again: ": "push",
    "error resolving relative paths to absolute paths: ": "setup",
    "error changing to root dir: ": "setup",
}
_FATAL = re.compile(r'(?:level=fatal msg="|^FATA\[\d+\] )(?P<text>.*?)"?$')
_PANIC = re.compile(r"(?:panic|fatal error): ")
_USAGE = "Usage:"
_NETWORK = r"dial tcp|no such host|i/o timeout|connection re(set|fused)|no route to host|TLS handshake|context deadline exceeded|\bEOF\b|broken pipe"
_SERVER = r"status code:? 5\d\d|bad status from server: 5\d\d|UNAVAILABLE|Internal Server Error|Bad Gateway|Service Unavailable"


@dataclass(frozen=True, slots=True)
class Complaint:
    """What Kaniko complained of."""

    stage: str
    """setup (before the build), build, push, or crash."""
    text: str


class _Rule(NamedTuple):
    words: str
    reason: Reason
    advice: str


_EXIT = re.compile(r"waiting for process to exit: exit status (\d+)")
_KILLED = re.compile(r"signal: killed|cannot allocate memory|out of memory")
_REGISTRY = (
    _Rule(r"HTTP response to HTTPS client", Reason.CONFIG_ERROR, "the registry speaks plain HTTP: list it under registries.insecure"),
    _Rule(
        r"x509:|certificate",
        Reason.CONFIG_ERROR,
        "the registry's certificate is not trusted: name its authority under registries.certificates",
    ),
    _Rule(r"TOOMANYREQUESTS|status code 429|toomanyrequests", Reason.RATE_LIMITED, "the registry asks for fewer requests"),
    _Rule(
        r"UNAUTHORIZED|DENIED|status code 40[13]|unauthorized|access denied|tag immutability|tag is immutable",
        Reason.REGISTRY_DENIED,
        "the registry does not allow it with the credential in secrets.docker_config",
    ),
    _Rule(f"{_SERVER}|{_NETWORK}", Reason.REGISTRY_UNAVAILABLE, "the registry did not answer as it should"),
)
_RULES: dict[str, tuple[_Rule, ...]] = {
    "setup": (
        _Rule(
            r"error resolving dockerfile path",
            Reason.DOCKERFILE_INVALID,
            "there is no Dockerfile at that path of the source: check dockerfile and source.sub_path",
        ),
        _Rule(
            r"authentication required|authorization failed|invalid auth|status code: 40[13]|bad status from server: 40[13]|AccessDenied|Forbidden|no EC2 IMDS",
            Reason.SOURCE_DENIED,
            "the source may not be read with the credential given: check secrets.git, secrets.google_key or identity.service_account",
        ),
        _Rule(
            r"source context: .*x509:",
            Reason.CONFIG_ERROR,
            "the source's certificate is not trusted: name its authority under registries.certificates",
        ),
        _Rule(
            r"repository not found|remote repository is empty|bad status from server: 404|NoSuchKey|NoSuchBucket|object doesn't exist|bucket doesn't exist",
            Reason.SOURCE_MISSING,
            "there is no such source, or it is hidden from this credential: check source.url and secrets.git",
        ),
        _Rule(
            r"reference not found|couldn't find remote ref|object not found|not our ref|exact SHA1|entry not found",
            Reason.SOURCE_MISSING,
            "the source has no such ref or commit any more: was the branch deleted or overwritten by force?",
        ),
        _Rule(r"source context: stat .*no such file", Reason.SOURCE_MISSING, "the source has no such folder: check source.sub_path"),
        _Rule(r"source context: .*(gzip: invalid header|archive/tar:)", Reason.SOURCE_MISSING, "the source is not a .tar.gz"),
        _Rule(r"error resolving source context", Reason.START_FAILED, "the source could not be fetched"),
        _Rule(
            r"",
            Reason.CONFIG_ERROR,
            "the executor does not accept what it was given; is CRABPOT_EXECUTOR_IMAGE the Kaniko that crabpot is made for?",
        ),
    ),
    "build": (
        _Rule(
            r"parsing dockerfile|dockerfile parse error|valid target build stage|at least one FROM|meta ARGs|could not parse reference"
            r"|does not exist: stage|stage that does not exist|resolving base name|ONBUILD|reading dockerfile|arg values must be matched",
            Reason.DOCKERFILE_INVALID,
            "the Dockerfile is not valid",
        ),
        _Rule(
            r"no space left on device",
            Reason.UNKNOWN,
            "the node's disk is full; raise resources.ephemeral_storage, so that the build gets a node with room",
        ),
        _Rule(
            r"failed to get files used from context|could not copy source|failed to get fileinfo",
            Reason.BUILD_FAILED,
            "COPY or ADD names a file that the context has not (or .dockerignore leaves out)",
        ),
        _Rule(r"failed to execute command", Reason.BUILD_FAILED, "an instruction of the Dockerfile failed"),
        _Rule(
            r"MANIFEST_UNKNOWN|NAME_UNKNOWN|NOT_FOUND|manifests/\S+ unexpected status code 404|no child with platform|not found on any configured",
            Reason.BASE_IMAGE_MISSING,
            "a base image does not exist for this platform: check FROM",
        ),
        *_REGISTRY,
        _Rule(r"", Reason.BUILD_FAILED, "the build failed"),
    ),
    "push": (
        *_REGISTRY[:3],
        _Rule(
            r"NAME_UNKNOWN|NOT_FOUND|status code 404",
            Reason.REGISTRY_DENIED,
            "the registry has no such repository or project: create it there first",
        ),
        *_REGISTRY[3:],
        _Rule(r"writing tarball to file failed", Reason.CONFIG_ERROR, "the tar cannot be written: its folder must exist, and have room"),
        _Rule(r"", Reason.PUSH_FAILED, "the image could not be pushed"),
    ),
    "crash": (_Rule(r"", Reason.UNKNOWN, "the executor crashed"),),
}


def find_complaint(lines: Sequence[str]) -> Complaint | None:
    """What Kaniko complained of in the end of its log; None where it did not."""
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        for prefix, stage in _STAGES.items():
            if line.startswith(prefix):
                return Complaint(stage, line.removeprefix(prefix))
        if fatal := _FATAL.search(line):
            return Complaint("setup", fatal["text"].replace('\\"', '"'))
        if line == _USAGE and (error := _error_before(lines, number)) is not None:
            return Complaint("setup", "\n".join(lines[error:number]).removeprefix("Error: ").strip())
        if _PANIC.match(line):
            return Complaint("crash", line)
    return None


def _error_before(lines: Sequence[str], usage: int) -> int | None:
    """Where the `Error:` line is that a usage text follows; what a server said in it may have line breaks of its own."""
    return next((number for number in range(usage - 1, max(-1, usage - 6), -1) if lines[number].startswith("Error: ")), None)


def judge(complaint: Complaint) -> tuple[Reason, str]:
    """The reason, and a sentence for people that says what to do and ends in Kaniko's own words."""
    if (exited := _EXIT.search(complaint.text)) and complaint.stage == "build":
        return Reason.BUILD_FAILED, f"a RUN of the Dockerfile exited with {exited[1]}; its output is at the end of the log"
    if _KILLED.search(complaint.text) and complaint.stage in ("build", "crash"):
        return Reason.OUT_OF_MEMORY, f"the build was killed for want of memory: raise resources.memory ({complaint.text[:_LONGEST]})"
    rule = next(rule for rule in _RULES[complaint.stage] if re.search(rule.words, complaint.text))
    return rule.reason, f"{rule.advice} ({complaint.text.strip()[:_LONGEST]})"


def excerpt(lines: Sequence[str], count: int = 30) -> tuple[str, ...]:
    """The last lines of a log that tell people something: without the usage text that Kaniko prints after what it complains of."""
    for number in range(len(lines) - 1, 0, -1):
        if lines[number] == _USAGE and _error_before(lines, number) is not None:
            lines = lines[:number]
            break
    return tuple(lines[-count:])
