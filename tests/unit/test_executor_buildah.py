"""What Buildah is told, and what its complaints become in Kaniko's words."""

from __future__ import annotations

import pytest

from ledger.build import Reason
from worker.complaint import find_complaint, judge
from worker.executor.buildah import build_arguments, registries_conf
from worker.executor.errors import BuildError, DockerfileError, PermissionDenied, PushError
from worker.executor.failures import build_failure, complaint, push_failure
from worker.executor.flags import Options, Secret
from worker.executor.places import Places, run_folder

NOWHERE = Places({})


def test_paths_are_translated_at_their_boundaries_and_nowhere_else():
    places = Places({"/kaniko/source": "/srv/app", "/kaniko/source/deep": "/srv/deep", "/dev/termination-log": "/run/message", "/": "/all"})
    found = {
        "/kaniko/source": "/srv/app",
        "/kaniko/source/": "/srv/app",
        "/kaniko/source/a/../b": "/srv/app/b",
        "/kaniko/source/deep/er": "/srv/deep/er",
        "/dev/termination-log": "/run/message",
        "/kaniko/sources": "/all/kaniko/sources",
        "/kaniko/source/../../etc": "/all/etc",
    }
    assert {path: str(places.find(path)) for path in found} == found
    assert str(NOWHERE.find("/x/y")) == "/x/y"


def test_places_are_read_from_the_environment():
    assert Places.read({}).folders == {}
    environment = {"CRABPOT_FOLDERS": '{"/a": "/b"}', "CRABPOT_TERMINATION_LOG": "/m"}
    assert Places.read(environment).folders == {"/a": "/b", "/dev/termination-log": "/m"}


def test_a_run_has_a_folder_that_goes_with_it_and_sweeps_what_dead_ones_left(tmp_path):
    dead = tmp_path / "run-dead"
    (dead / "images").mkdir(parents=True)
    (dead / "lock").touch()
    with run_folder(tmp_path) as first, run_folder(tmp_path) as second:
        assert first.is_dir()
        assert second.is_dir()
        assert not dead.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_build_arguments():
    options = Options(
        platform="linux/amd64",
        target="final",
        build_args=("A=b  c\nd", "FROM_HERE", "NOT_HERE"),
        labels=("l=v w",),
        secrets=(Secret(id="a", file="/kaniko/mounted-secrets/0"), Secret(id="b", variable="B")),
        cache="r.example.com/cache",
        cache_ttl="2h",
        layers=True,
        pull_retries=2,
    )
    arguments = build_arguments(options, Places({"/kaniko": "/srv"}), {"FROM_HERE": "secret"})
    assert {
        "--isolation=chroot",
        "--layers=true",
        "--retry=2",
        "--platform=linux/amd64",
        "--target=final",
        "--build-arg=A=b  c\nd",
        "--build-arg=FROM_HERE",
        "--build-arg=NOT_HERE=",
        "--label=l=v w",
        "--secret=id=a,src=/srv/mounted-secrets/0",
        "--secret=id=b,env=B",
        "--cache-from=r.example.com/cache",
        "--cache-to=r.example.com/cache",
        "--cache-ttl=2h",
    } <= set(arguments)
    assert "secret" not in arguments


def test_without_a_cache_nothing_is_kept_or_taken():
    arguments = build_arguments(Options(), NOWHERE, {})
    assert "--no-cache" in arguments
    assert "--layers=false" in arguments
    assert not any(argument.startswith("--cache") for argument in arguments)


def test_registries_conf():
    options = Options(
        insecure=frozenset({"b.example.com:5000", "m.example.com"}), mirrors={"docker.io": ("m.example.com/hub", "n.example.com")}
    )
    tables = registries_conf(options).split("\n\n")
    assert 'location = "docker.io"\ninsecure = false' in tables[1]
    assert tables[2] == '[[registry.mirror]]\nlocation = "m.example.com/hub"\ninsecure = true'
    assert tables[3].strip() == '[[registry.mirror]]\nlocation = "n.example.com"\ninsecure = false'
    assert tables[4].strip() == '[[registry]]\nlocation = "b.example.com:5000"\ninsecure = true'


# Buildah 1.28's own last lines, its exit code -> Kaniko's exit code, what crabpot takes it for, words that must stay.
FAILURES = [
    (
        ["subprocess exited with status 7", 'Error: building at STEP "RUN exit 7": exit status 7'],
        7,
        7,
        Reason.BUILD_FAILED,
        "exited with 7",
    ),
    (['Error: building at STEP "RUN exit 7": while running runtime: exit status 7'], 7, 7, Reason.BUILD_FAILED, "exited with 7"),
    (
        ["subprocess exited with status 137", 'Error: building at STEP "RUN exit 137": exit status 137'],
        137,
        137,
        Reason.BUILD_FAILED,
        "exited with 137",
    ),
    (
        ["subprocess exited on killed", "subprocess exited with status 1", 'Error: building at STEP "RUN head": exit status 1'],
        1,
        255,
        Reason.OUT_OF_MEMORY,
        "signal: killed",
    ),
    (
        [
            "subprocess exited on killed",
            "subprocess exited with status 1",
            "subprocess exited with status 1",
            'Error: building at STEP "RUN echo": exit status 1',
        ],
        1,
        1,
        Reason.BUILD_FAILED,
        "exited with 1",
    ),
    (
        [
            "process failed to start with error: fork/exec /nothing: no such file or directoryprocess exited with error: exec: not started",
            'Error: building at STEP "RUN /nothing": exit status 1',
        ],
        1,
        1,
        Reason.BUILD_FAILED,
        "starting command: fork/exec /nothing",
    ),
    (
        ['Error: building at STEP "COPY nothing /x": checking on sources under "/c": copier: stat: "/nothing": no such file or directory'],
        125,
        1,
        Reason.BUILD_FAILED,
        "COPY or ADD",
    ),
    (
        ['Error: building at STEP "RUNN ": Build error: Unknown instruction: "RUNN" &imagebuilder.Step{Env:[]string{"PATH=/bin"}}'],
        125,
        1,
        Reason.DOCKERFILE_INVALID,
        "RUNN",
    ),
    (["Error: no FROM statement found"], 125, 1, Reason.DOCKERFILE_INVALID, "FROM"),
    (['Error: no contents in "/c/Dockerfile"'], 125, 1, Reason.DOCKERFILE_INVALID, "no contents"),
    (['Error: The target "nope" was not found in the provided Dockerfile'], 125, 1, Reason.DOCKERFILE_INVALID, "nope"),
    (["Error: creating build container: invalid reference format"], 125, 1, Reason.DOCKERFILE_INVALID, "reference"),
    (
        [
            "Error: creating build container: initializing source docker://r/x:1: reading manifest 1 in r/x: manifest unknown: manifest unknown"
        ],
        125,
        1,
        Reason.BASE_IMAGE_MISSING,
        "manifest unknown",
    ),
    (
        ["Error: creating build container: initializing source docker://r/x:1: reading manifest 1 in r/x: name unknown: repository"],
        125,
        1,
        Reason.BASE_IMAGE_MISSING,
        "name unknown",
    ),
    (
        [
            'Error: creating build container: pinging container registry r: Get "https://r/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
        ],
        125,
        1,
        Reason.REGISTRY_UNAVAILABLE,
        "connection refused",
    ),
    (
        ["Error: creating build container: initializing source: reading manifest 1: unauthorized: authentication required"],
        125,
        1,
        Reason.REGISTRY_DENIED,
        "unauthorized",
    ),
    (
        ["Error: creating build container: pinging: http: server gave HTTP response to HTTPS client"],
        125,
        1,
        Reason.CONFIG_ERROR,
        "registries.insecure",
    ),
    (["Error: creating build container: reading manifest: toomanyrequests: slow down"], 125, 1, Reason.RATE_LIMITED, "toomanyrequests"),
    (["anything"], -9, 255, Reason.OUT_OF_MEMORY, "signal: killed"),
]


@pytest.mark.parametrize(("lines", "exit_code", "kanikos", "reason", "words"), FAILURES)
def test_a_failed_build_is_told_in_kanikos_words(lines, exit_code, kanikos, reason, words):
    error = build_failure(["STEP 1/2: FROM x", *lines], exit_code, retries=2)
    assert error.exit_code == kanikos
    found = find_complaint(str(error).splitlines())
    assert found
    judged, message = judge(found)
    assert judged is reason, message
    assert words in message
    assert "imagebuilder" not in message


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            "writing blob: initiating layer upload to /v2/x/blobs/uploads/ in r: unauthorized: authentication required",
            Reason.REGISTRY_DENIED,
        ),
        ("writing blob: requested access to the resource is denied", Reason.REGISTRY_DENIED),
        ("writing blob: Patch: received unexpected HTTP status: 503 Service Unavailable", Reason.REGISTRY_UNAVAILABLE),
        ("pinging: Get: dial tcp 127.0.0.1:1: connect: connection refused", Reason.REGISTRY_UNAVAILABLE),
        ("invalid status code from registry 429 (Too Many Requests)", Reason.RATE_LIMITED),
        ("something that nobody has heard of", Reason.PUSH_FAILED),
    ],
)
def test_a_failed_push_is_told_in_kanikos_words(words, reason):
    error = push_failure("r.example.com/x:1", [f'Error: pushing image "abc" to "docker://r.example.com/x:1": {words}'])
    assert str(error).startswith("error pushing image: failed to push to destination r.example.com/x:1: ")
    found = find_complaint([str(error)])
    assert found
    assert judge(found)[0] is reason


def test_errors_begin_as_kanikos_do():
    assert str(DockerfileError("x")) == "error resolving dockerfile path: x"
    assert str(PermissionDenied("x")) == "error checking push permissions: x"
    assert str(BuildError("x", 3)) == "error building image: x"
    assert str(PushError("x")) == "error pushing image: x"


def test_a_complaint_of_several_lines_is_kept_whole():
    assert complaint(["noise", "Error: of a RUN", "Error: first", "second"]) == "first\nsecond"
    assert complaint([]) == "it said nothing"
