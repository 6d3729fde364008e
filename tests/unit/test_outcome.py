"""What ends mean: pods as a real cluster told of them, and the very words of Kaniko 1.28."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ledger.build import Reason
from tests.unit.test_pod_status import pod
from worker.cluster import Phase
from worker.complaint import excerpt
from worker.outcome import outcome, pending

DIGEST = "sha256:" + "a" * 64
FAILED = replace(pod("failed"), message=None, exit_code=1)
USAGE = ("Usage:", "  executor [flags]", "  executor [command]", *(f"      --flag-{number} string" for number in range(78)), "")


def reason_of(*tail: str, **changes: object) -> Reason | None:
    return outcome(replace(FAILED, **changes), tail, pushes=True).reason  # type: ignore[arg-type]


def test_success_is_exit_0_and_a_digest() -> None:
    ended = replace(pod("succeeded-phase-running"), message=f"{DIGEST}\n")
    found = outcome(ended, (), pushes=True)
    assert (found.reason, found.message, found.exit_code, found.digest) == (None, None, 0, DIGEST)
    assert outcome(replace(ended, phase=Phase.GONE), (), pushes=True).digest == DIGEST
    assert outcome(replace(ended, deleting=True), (), pushes=True).digest == DIGEST


@pytest.mark.parametrize("message", [None, "", "sha256:short", "done"])
def test_exit_0_without_a_digest_is_no_success(message: str | None) -> None:
    found = outcome(replace(pod("succeeded"), message=message), (), pushes=True)
    assert (found.reason, found.digest, found.exit_code) == (Reason.UNKNOWN, None, 0)


def test_a_digest_with_another_exit_counts_for_nothing() -> None:
    found = outcome(replace(FAILED, message=DIGEST, exit_code=7), (), pushes=True)
    assert (found.reason, found.digest) == (Reason.UNKNOWN, None)


def test_absence_is_no_success() -> None:
    gone = replace(pod("running"), phase=Phase.GONE)
    assert outcome(gone, (), pushes=True).reason is Reason.POD_LOST
    assert outcome(replace(gone, message=DIGEST), (), pushes=False).reason is Reason.POD_LOST


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("oom-killed", Reason.OUT_OF_MEMORY),
        ("deadline", Reason.RUN_DEADLINE),
        ("deleted", Reason.POD_LOST),
        ("deleted-before-start", Reason.POD_LOST),
        ("evicted-by-api", Reason.EVICTED),
        ("evicted-disk", Reason.BUILD_FAILED),
        ("out-of-memory-node", Reason.UNSCHEDULABLE),
        ("start-error", Reason.START_FAILED),
        ("exit-137", Reason.OUT_OF_MEMORY),
        ("failed", Reason.UNKNOWN),
        ("succeeded-no-digest", Reason.UNKNOWN),
        ("node-deleted", Reason.NODE_LOST),
    ],
)
def test_what_the_cluster_says(name: str, reason: Reason) -> None:
    found = outcome(pod(name), (), pushes=True)
    assert found.reason is reason
    assert found.message


@pytest.mark.parametrize("word", ["DeletionByTaintManager", "DeletionByPodGC", "NodeLost"])
def test_a_lost_node(word: str) -> None:
    assert reason_of(reason=word, disrupted=True, exit_code=137) is Reason.NODE_LOST


def test_the_clusters_word_goes_before_kanikos() -> None:
    run = "error building image: error building stage: failed to execute command: waiting for process to exit: exit status 137"
    assert reason_of(run, exit_code=137, reason="OOMKilled") is Reason.OUT_OF_MEMORY
    assert reason_of(run, exit_code=137, reason="Error") is Reason.BUILD_FAILED  # the RUN itself exited with 137


PUSH = "error pushing image: failed to push to destination r.example.com/a:1: "
CHECK = 'error checking push permissions: checking push permission for "r.example.com/a:1": '
# The archived Kaniko (1.24.0 and before), which many still pin, says the same with more words.
CHECK_ARCHIVED = (
    "error checking push permissions -- make sure you entered the correct tag name, and that you are authenticated correctly, and try again: "
    'checking push permission for "r.example.com/a:1": '
)
BUILD = "error building image: "
PULL = f"{BUILD}unable to complete operation after 2 attempts, last error: GET https://r.example.com/v2/base/manifests/1: "
STAGE = f"{BUILD}error building stage: "


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{PUSH}PUT https://r.example.com/v2/a/manifests/1: UNAUTHORIZED: authentication required; [map[]]", Reason.REGISTRY_DENIED),
        (f"{PUSH}PUT https://r.example.com/v2/a/manifests/1: unexpected status code 403 Forbidden", Reason.REGISTRY_DENIED),
        (f"{PUSH}PUT https://r.example.com/v2/a/manifests/1: TAG_INVALID: The image tag '1' cannot be overwritten because the tag is immutable.", Reason.REGISTRY_DENIED),
        (f"{PUSH}PATCH https://r.example.com/v2/a/blobs/x: TOOMANYREQUESTS: slow down", Reason.RATE_LIMITED),
        (f"{PUSH}PATCH https://r.example.com/v2/a/blobs/x: unexpected status code 429 Too Many Requests", Reason.RATE_LIMITED),
        (f"{PUSH}PATCH https://r.example.com/v2/a/blobs/x: unexpected status code 502 Bad Gateway: <html>", Reason.REGISTRY_UNAVAILABLE),
        (f'{PUSH}Get "https://r.example.com/v2/": dial tcp 10.0.0.1:443: connect: connection refused', Reason.REGISTRY_UNAVAILABLE),
        (f"{PUSH}PUT https://r.example.com/v2/a/manifests/1: NAME_UNKNOWN: The repository with name 'a' does not exist", Reason.REGISTRY_DENIED),
        (f"{PUSH}PUT https://r.example.com/v2/a/manifests/1: MANIFEST_INVALID: manifest invalid", Reason.PUSH_FAILED),
        ("error pushing image: writing tarball to file failed: open /kaniko/output/a/b.tar: no such file or directory", Reason.CONFIG_ERROR),
        (f"{CHECK}POST https://r.example.com/v2/a/blobs/uploads/: DENIED: requested access to the resource is denied", Reason.REGISTRY_DENIED),
        (f"{CHECK}creating push check transport for r.example.com failed: GET https://auth.example.com/token: unexpected status code 401 Unauthorized", Reason.REGISTRY_DENIED),
        (f'{CHECK}creating push check transport for 10.200.0.2:1 failed: Get "https://10.200.0.2:1/v2/": dial tcp 10.200.0.2:1: connect: connection refused', Reason.REGISTRY_UNAVAILABLE),
        (f'{CHECK}creating push check transport for r failed: Get "https://r/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority', Reason.CONFIG_ERROR),
        (f'{CHECK}creating push check transport for r failed: Get "https://r/v2/": http: server gave HTTP response to HTTPS client', Reason.CONFIG_ERROR),
        (f"{CHECK_ARCHIVED}POST http://r.example.com/v2/a/blobs/uploads/: UNAUTHORIZED: authentication required; [map[]]", Reason.REGISTRY_DENIED),
        (f"{PULL}MANIFEST_UNKNOWN: manifest unknown; unknown tag=1", Reason.BASE_IMAGE_MISSING),
        (f"{PULL}unexpected status code 404 Not Found", Reason.BASE_IMAGE_MISSING),
        (f"{BUILD}no child with platform linux/arm64 in index r.example.com/base:1", Reason.BASE_IMAGE_MISSING),
        (f"{PULL}UNAUTHORIZED: authentication required", Reason.REGISTRY_DENIED),
        (f"{PULL}TOOMANYREQUESTS: You have reached your pull rate limit.", Reason.RATE_LIMITED),
        (f"{PULL}unexpected status code 503 Service Unavailable", Reason.REGISTRY_UNAVAILABLE),
        (f'{BUILD}unable to complete operation after 0 attempts, last error: Get "https://r/v2/": dial tcp: lookup r: no such host', Reason.REGISTRY_UNAVAILABLE),
        (f"{STAGE}failed to get filesystem from image: GET https://r.example.com/v2/base/blobs/x: TOOMANYREQUESTS: slow down", Reason.RATE_LIMITED),
        (f"{BUILD}parsing dockerfile: dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)", Reason.DOCKERFILE_INVALID),
        (f"{BUILD}parsing dockerfile: file with no instructions", Reason.DOCKERFILE_INVALID),
        (f'{BUILD}error finding target stage: "nope" is not a valid target build stage', Reason.DOCKERFILE_INVALID),
        (f"{BUILD}could not parse reference: ", Reason.DOCKERFILE_INVALID),
        (f"{STAGE}failed to execute command: waiting for process to exit: exit status 7", Reason.BUILD_FAILED),
        (f"{STAGE}failed to execute command: waiting for process to exit: signal: killed", Reason.OUT_OF_MEMORY),
        (f"{STAGE}failed to execute command: starting command: fork/exec /bin/sh: no such file or directory", Reason.BUILD_FAILED),
        (f"{STAGE}failed to execute command: HTTP GET https://x: unexpected status code 503", Reason.BUILD_FAILED),
        (f"{STAGE}failed to get files used from context: failed to get fileinfo for /kaniko/buildcontext/nothing: lstat: no such file or directory", Reason.BUILD_FAILED),
        ("panic: runtime error: index out of range [3] with length 3", Reason.UNKNOWN),
        ("fatal error: runtime: out of memory", Reason.OUT_OF_MEMORY),
        ('time="2026-11-23T22:30:48Z" level=fatal msg="Invalid platform \\"x\\": bad"', Reason.CONFIG_ERROR),
    ],
)  # fmt: skip
def test_kanikos_last_line(line: str, reason: Reason) -> None:
    found = outcome(FAILED, ("RUN x", line, "", "trace"), pushes=True)
    assert found.reason is reason
    assert found.message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("error resolving dockerfile path: please provide a valid path to a Dockerfile within the build context with --dockerfile", Reason.DOCKERFILE_INVALID),
        ("error resolving source context: stat /kaniko/buildcontext/nope: no such file or directory", Reason.SOURCE_MISSING),
        ("error resolving source context: repository not found: ", Reason.SOURCE_MISSING),
        ("error resolving source context: reference not found", Reason.SOURCE_MISSING),
        ("error resolving source context: object not found", Reason.SOURCE_MISSING),
        ("error resolving source context: authentication required: Unauthorized", Reason.SOURCE_DENIED),
        ("error resolving source context: authorization failed: ", Reason.SOURCE_DENIED),
        ("error resolving source context: HTTPSTar bad status from server: 404 Not Found", Reason.SOURCE_MISSING),
        ("error resolving source context: HTTPSTar bad status from server: 403 Forbidden", Reason.SOURCE_DENIED),
        ("error resolving source context: HTTPSTar bad status from server: 503 Service Unavailable", Reason.START_FAILED),
        ("error resolving source context: gzip: invalid header", Reason.SOURCE_MISSING),
        ('error resolving source context: Get "https://h/start.tar.gz": dial tcp 10.200.0.2:1: connect: connection refused', Reason.START_FAILED),
        ('error resolving source context: Get "https://h/x": tls: failed to verify certificate: x509: certificate signed by unknown authority', Reason.CONFIG_ERROR),
        ("error resolving secrets: copying secret /x: open /x: no such file or directory", Reason.CONFIG_ERROR),
        ("unknown flag: --nope", Reason.CONFIG_ERROR),
    ],
)  # fmt: skip
def test_what_fails_before_the_build_is_told_above_the_usage(line: str, reason: Reason) -> None:
    assert reason_of("Enumerating objects: 21, done.", f"Error: {line}", *USAGE) is reason


def test_a_runs_output_is_not_taken_for_kanikos_word() -> None:
    run = f"{STAGE}failed to execute command: waiting for process to exit: exit status 2"
    assert reason_of("Error: repository not found", "panic: oops", f"{PUSH}TOOMANYREQUESTS", run) is Reason.BUILD_FAILED
    assert reason_of("Error: repository not found", "some text") is Reason.UNKNOWN


def test_the_log_is_read_where_the_message_is_a_digest() -> None:
    run = f"{STAGE}failed to execute command: waiting for process to exit: exit status 7"
    assert reason_of("boom", run, message=DIGEST, exit_code=7) is Reason.BUILD_FAILED


def test_the_message_is_read_where_the_log_is_lost() -> None:
    assert reason_of(message=f"boom\n{PUSH}UNAUTHORIZED\n") is Reason.REGISTRY_DENIED


def test_a_killed_run_of_a_deleted_pod_is_not_the_builds_fault() -> None:
    assert reason_of(f"{STAGE}failed to execute command: waiting for process to exit: signal: killed", deleting=True) is Reason.POD_LOST
    assert reason_of(f"{STAGE}failed to execute command: waiting for process to exit: exit status 1", deleting=True) is Reason.BUILD_FAILED


def test_messages_say_what_happened_and_what_to_do() -> None:
    found = outcome(FAILED, (f"{PULL}MANIFEST_UNKNOWN: manifest unknown; unknown tag=1",), pushes=True)
    assert found.message is not None
    assert "check FROM" in found.message
    assert "unknown tag=1" in found.message
    assert "exited with 7" in (
        outcome(FAILED, (f"{STAGE}failed to execute command: waiting for process to exit: exit status 7",), pushes=True).message or ""
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("created", None),
        ("container-creating", None),
        ("running", None),
        ("err-image-pull", None),  # the kubelet tries again by itself
        ("image-pull-backoff", Reason.IMAGE_PULL),
        ("invalid-image-name", Reason.CONFIG_ERROR),
        ("config-error", Reason.CONFIG_ERROR),
        ("err-image-never-pull", Reason.CONFIG_ERROR),
        ("unschedulable", Reason.UNSCHEDULABLE),
        ("node-tainted", None),  # it runs, as far as anybody knows: its node is waited for
    ],
)
def test_pending(name: str, reason: Reason | None) -> None:
    found = pending(pod(name))
    assert (found and found.reason) == reason
    assert found is None or (found.message and found.exit_code is None and found.digest is None)


@pytest.mark.parametrize(("word", "reason"), [("RunContainerError", Reason.START_FAILED), ("CreateContainerError", Reason.START_FAILED), ("ErrImageNeverPull", Reason.CONFIG_ERROR), ("FailedMount", None), ("PodInitializing", None)])  # fmt: skip
def test_pending_by_word(word: str, reason: Reason | None) -> None:
    found = pending(replace(pod("config-error"), reason=word, detail="x"))
    assert (found and found.reason) == reason


def test_a_mount_of_what_is_not_there_is_a_mistake() -> None:
    found = pending(replace(pod("config-error"), reason="FailedMount", detail='MountVolume.SetUp failed: secret "absent" not found'))
    assert found is not None
    assert found.reason is Reason.CONFIG_ERROR


def test_a_slow_api_server_is_waited_for() -> None:
    assert pending(replace(pod("config-error"), detail="failed to sync secret cache: timed out waiting for the condition")) is None


def test_a_deleted_pending_pod_is_waited_for() -> None:
    assert pending(replace(pod("image-pull-backoff"), deleting=True)) is None


def test_excerpt_leaves_the_usage_out() -> None:
    log = ("a", "b", "Error: unknown flag", *USAGE)
    assert excerpt(log, 2) == ("b", "Error: unknown flag")
    assert excerpt(("Usage:", "x")) == ("Usage:", "x")
