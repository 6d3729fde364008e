"""The request: every bad field is refused by name, and what is good survives the wire unchanged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.build import BuildRequest
from ledger.errors import RequestInvalid
from ledger.flags import SECRET_LOOKING
from ledger.quantities import parse_cpu, parse_duration, parse_memory, say_memory
from tests.requests import COMMIT, make_build, make_request, request_fields

IMAGE = "registry.example.com/team/demo"


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"project": "Demo"}, "project", "pattern"),
        ({"nonsense": 1}, "nonsense", "not permitted"),
        ({"schema_version": 2}, "schema_version", "1"),
        (
            {"source": {"kind": "tarball", "url": "gs://b/a.tar.gz", "s3_region": "eu-west-1"}},
            "source",
            "s3_region is for a url that begins",
        ),
        ({"source": {"kind": "git", "url": "https://h/r.git", "commit": "abc"}}, "source.commit", "git rev-parse"),
        ({"source": {"kind": "git", "url": "git@h:r.git", "commit": COMMIT}}, "source.url", "http(s)"),
        ({"source": {"kind": "git", "url": "https://user:pass@h/r.git", "commit": COMMIT}}, "source.url", "secrets.git"),
        ({"source": {"kind": "git", "url": "https://h/r.git", "commit": COMMIT, "ref": "main"}}, "source.ref", "refs/heads/main"),
        ({"source": {"kind": "git", "url": "https://h/r.git", "commit": COMMIT, "sub_path": "../x"}}, "source.sub_path", "'..'"),
        ({"source": {"kind": "host_path", "path": "etc"}}, "source.path", "absolute"),
        ({"source": {"kind": "tarball", "url": "http://h/x.tar.gz"}}, "source.url", "https://"),
        ({"source": {"kind": "svn"}}, "source", "svn"),
        ({"dockerfile": "/etc/passwd"}, "dockerfile", "below the context"),
        ({"destinations": []}, "destinations", "at least one image"),
        ({"destinations": ["demo:1"]}, "destinations.0", "name the registry"),
        ({"destinations": [IMAGE]}, "destinations", "needs a tag"),
        ({"destinations": [f"{IMAGE}:1", f"{IMAGE}:1"]}, "destinations", "twice"),
        ({"destinations": [f"{IMAGE}:1", "other.example.com/demo:latest"]}, "destinations", "another repository"),
        ({"push": False}, "push", "tar"),
        ({"platforms": ["linux/amd64", "linux/arm64"]}, "platforms", "one platform"),
        ({"build_args": {"NPM_TOKEN": "x"}}, "build_args", "looks like a secret"),
        ({"build_args": {"A": 3}}, "build_args.A", "string"),
        ({"environment": {"KANIKO_DIR": "/x"}}, "environment", "steers the executor"),
        ({"environment": {"DOCKER_CONFIG": "/x"}}, "environment", "steers the executor"),
        ({"environment": {"HTTP_PROXY": "http://u:p@proxy"}}, "environment", "secret"),
        ({"flags": {"force": "true"}}, "flags", "not allowed"),
        ({"flags": {"snapshot-mode": "fast"}}, "flags", "full|redo|time"),
        ({"resources": {"memory": "lots"}}, "resources.memory", "512Mi"),
        ({"resources": {"cpu": "0"}}, "resources.cpu", "500m"),
        ({"deadlines": {"running": "5"}}, "deadlines.running", "90s"),
        ({"cache": {"repository": f"{IMAGE}:1"}}, "cache", "no tag"),
        ({"identity": {"labels": {"crabpot.dev/build": "x"}}}, "identity", "set by crabpot"),
        ({"priority": 1000}, "priority", "100"),
    ],
)
def test_a_bad_field_is_refused_by_name(changes, path, said):
    with pytest.raises(RequestInvalid) as caught:
        BuildRequest.parse(request_fields(**changes))
    told = [f"{problem.given} {problem.allowed}" for problem in caught.value.problems if problem.path == path]
    assert told, caught.value.problems
    assert said in " ".join(told)


def test_a_refused_secret_is_not_repeated():
    with pytest.raises(RequestInvalid) as caught:
        BuildRequest.parse(request_fields(build_args={"API_KEY": "hunter2"}))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(RequestInvalid) as caught:
        BuildRequest.parse(request_fields(source={"kind": "git", "url": "https://user:hunter2@h/r.git", "commit": COMMIT}))
    assert "hunter2" not in str(caught.value)


@given(
    st.dictionaries(
        st.from_regex(r"\AX_[A-Z][A-Z0-9]{0,8}\Z").filter(lambda name: not SECRET_LOOKING.search(name)),
        st.text().filter(lambda text: "\0" not in text),
    )
)
def test_build_args_survive_the_wire_unchanged(arguments):
    request = make_request(build_args=arguments)
    assert BuildRequest.parse(request.to_json()).build_args == arguments


def test_the_wire_form_is_small_and_versioned():
    wire = json.loads(make_request().to_json())
    assert wire == {"schema_version": 1, **request_fields()}


def test_an_executor_never_pushes_a_mutable_tag():
    mutable = make_build(request=make_request(destinations=[f"{IMAGE}:latest", f"{IMAGE}:1.2.3"]))
    assert mutable.pushed_image.tag == f"build-{mutable.id}"
    assert [image.tag for image in mutable.further_tags] == ["latest", "1.2.3"]
    fixed = make_build(request=make_request(destinations=[f"{IMAGE}:{COMMIT[:12]}", f"{IMAGE}:latest"]))
    assert fixed.pushed_image.tag == COMMIT[:12]
    assert [image.tag for image in fixed.further_tags] == ["latest"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("7d", 604800), ("250ms", 0.25)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@given(st.integers(1, 2**50))
def test_memory_is_said_without_loss(count):
    assert parse_memory(say_memory(count)) == count


@pytest.mark.parametrize("text", ["", "-1", "1.5.2", "1GiB", "0", "inf"])
def test_bad_quantities_are_refused(text):
    for parse in (parse_cpu, parse_memory, parse_duration):
        with pytest.raises(ValueError, match="must be"):
            parse(text)
