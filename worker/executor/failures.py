"""Buildah's complaints in Kaniko's words, so that one reading of a log's end tells why a build failed. Pure.

Exit codes are Kaniko's too: a RUN's own where one failed, 255 where it was killed by a signal, else 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from worker.executor.errors import BuildError, PushError

_ERROR = "Error: "
_RUN = re.compile(r'building at STEP "RUN .*": (?:while running runtime: )?exit status (\d+)$', re.DOTALL)
_COPY = re.compile(r'building at STEP "(?:COPY|ADD) .*": ', re.DOTALL)
_TARGET = re.compile(r'target "(.*)" was not found')
_DOCKERFILE = re.compile(
    r"Unknown instruction|dockerfile parse error|no FROM statement|no contents in|only supports the|syntax error", re.IGNORECASE
)
_DUMP = re.compile(r" &imagebuilder\.Step\{.*", re.DOTALL)
_CODES = (
    # Error codes of the distribution protocol, which Buildah spells out in words.
    (re.compile(r"manifest unknown|no image found in (?:manifest list|image index)"), "MANIFEST_UNKNOWN"),
    (re.compile(r"name unknown|repository name not known"), "NAME_UNKNOWN"),
    (re.compile(r"toomanyrequests|too many requests|\b429\b", re.IGNORECASE), "TOOMANYREQUESTS"),
    (re.compile(r"unauthorized|authentication required|invalid username/password|\b401\b"), "UNAUTHORIZED"),
    (re.compile(r"denied|\b403\b"), "DENIED"),
)


def complaint(lines: Sequence[str]) -> str:
    """What Buildah's last words are about: from its last `Error:` on."""
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(_ERROR):
            return "\n".join(lines[number:]).removeprefix(_ERROR).strip()
    return lines[-1].strip() if lines else "it said nothing"


def build_failure(lines: Sequence[str], exit_code: int, *, retries: int) -> BuildError:
    """Why `buildah build` failed, from the end of its output and its exit code."""
    text = complaint(lines)
    if exit_code < 0:
        return BuildError(f"buildah: signal: {'killed' if exit_code == -9 else -exit_code}: {text}", 255)
    if run := _RUN.search(text):
        return _run_failure(lines, int(run[1]))
    if target := _TARGET.search(text):
        return BuildError(f'error finding target stage: "{target[1]}" is not a valid target build stage')
    if _DOCKERFILE.search(text):
        return BuildError(f"parsing dockerfile: dockerfile parse error: {_DUMP.sub('', text)}")
    if "invalid reference format" in text:
        return BuildError(f"could not parse reference: {text}")
    if _COPY.match(text):
        return BuildError(f"error building stage: failed to get files used from context: {text}")
    if text.startswith("building at STEP"):
        return BuildError(f"error building stage: failed to execute command: {text}")
    return BuildError(f"unable to complete operation after {retries} attempts, last error: {_with_code(text)}")


def push_failure(destination: str, lines: Sequence[str]) -> PushError:
    """Why `buildah push` failed."""
    return PushError(f"failed to push to destination {destination}: {_with_code(complaint(lines))}")


def _run_failure(lines: Sequence[str], status: int) -> BuildError:
    """Buildah tells of a signal, or of a program that does not start, only in the lines before."""
    before = [line for line in lines if not line.startswith(_ERROR)][-2:]
    if before == ["subprocess exited on killed", "subprocess exited with status 1"]:
        return BuildError("error building stage: failed to execute command: waiting for process to exit: signal: killed", 255)
    if before and before[-1].startswith("process failed to start with error: "):
        reason = before[-1].removeprefix("process failed to start with error: ").partition("process exited with error")[0]
        return BuildError(f"error building stage: failed to execute command: starting command: {reason}")
    return BuildError(f"error building stage: failed to execute command: waiting for process to exit: exit status {status}", status)


def _with_code(text: str) -> str:
    for words, code in _CODES:
        if words.search(text):
            return f"{code}: {text}"
    return text
