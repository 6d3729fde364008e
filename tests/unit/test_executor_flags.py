"""Kaniko's flags become options; what Buildah cannot do is refused by name."""

from __future__ import annotations

import pytest

from ledger.flags import EXTRA_FLAGS
from tests.requests import make_build, make_request
from worker.executor.errors import SetupError
from worker.executor.flags import Git, Options, Secret, parse_flags
from worker.kaniko import launch

BASE = ("--context=dir:///src", "--destination=r.example.com/app:1")


def parse(*more: str) -> Options:
    return parse_flags((*BASE, *more))


def test_the_flags_that_crabpot_emits_for_an_ordinary_build_are_honoured():
    build = make_build(attempt=1)
    options = parse_flags(launch(build, "linux/amd64", namespace="n", executor_image="i").arguments)
    assert options.context.startswith("git://git.example.com/team/demo.git#refs/heads/main#")
    assert options.destinations == (str(build.pushed_image),)
    assert options.platform == "linux/amd64"
    assert options.digest_file == "/dev/termination-log"
    assert (options.push_retries, options.pull_retries) == (2, 2)
    assert any(label.startswith("dev.crabpot.attempt=") for label in options.labels)


def test_the_flags_that_crabpot_emits_for_a_full_build_are_honoured():
    request = make_request(
        source={"kind": "host_path", "path": "/srv/source", "sub_path": "app"},
        destinations=["r.example.com/app:1.2.3", "other.example.com/app:1.2.3"],
        tar={"host_path": "/srv/out", "path": "image.tar"},
        target="final",
        build_args={"A": "b = c"},
        labels={"l": "v"},
        cache={"repository": "r.example.com/cache", "ttl": "2h"},
        registries={
            "insecure": ["r.example.com"],
            "skip_tls_verify": ["other.example.com"],
            "map": {"docker.io": ["m.example.com/hub"]},
            "mirrors": ["n.example.com"],
        },
        flags={"single-snapshot": "false", "compression": "gzip", "verbosity": "debug", "git": "depth=3"},
    )
    options = parse_flags(launch(make_build(request=request, attempt=1), "linux/amd64", namespace="n", executor_image="i").arguments)
    assert options.context == "dir:///kaniko/source"
    assert (options.sub_path, options.target, options.tar) == ("app", "final", "/kaniko/output/image.tar")
    assert options.build_args == ("A=b = c",)
    assert (options.cache, options.cache_ttl, options.layers) == ("r.example.com/cache", "7200000ms", True)
    assert options.mirrors == {"docker.io": ("m.example.com/hub", "n.example.com")}
    assert options.insecure == {"r.example.com", "other.example.com"}
    assert options.unverified == {"other.example.com"}
    assert options.git.depth == 3


def test_each_flag_that_a_request_may_set_is_known_to_be_honoured_or_refused():
    for name in EXTRA_FLAGS:
        try:
            parse(f"--{name}=true")
        except SetupError as error:
            assert f"--{name}" in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "dir:///src", "-d", "r.example.com/app:1", "-f", "sub/Dockerfile"),
        ("--context", "dir:///src", "--destination", "r.example.com/app:1", "--dockerfile", "sub/Dockerfile"),
        ("--context=dir:///src", "--destination=r.example.com/app:1", "--dockerfile=sub/Dockerfile"),
    ],
)
def test_values_are_joined_or_follow(arguments):
    assert parse_flags(arguments) == Options(context="dir:///src", destinations=("r.example.com/app:1",), dockerfile="sub/Dockerfile")


def test_a_value_keeps_every_character():
    value = 'A=it\'s "quoted" = $(B) $$\n--no-push\n'
    assert parse("--build-arg", value, f"--label={value}").build_args == (value,)
    assert parse(f"--build-arg={value}").build_args == (value,)


@pytest.mark.parametrize(
    "flag",
    [
        "--snapshot-mode=redo",
        "--use-new-run",
        "--ignore-path=/x",
        "--cache-run-layers=false",
        "--cache-copy-layers=false",
        "--compressed-caching=false",
        "--kaniko-dir=/x",
        "--git=unheard-of=1",
        "--no-such-flag",
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(flag):
    with pytest.raises(SetupError, match=flag.partition("=")[0]):
        parse(flag)


@pytest.mark.parametrize(
    "flags",
    [
        ("--no-push=perhaps",),
        ("stray",),
        ("--compression=lzma",),
        ("--compression=zstd", "--tar-path=/x"),
        ("--image-format=oci", "--tar-path=/x"),
        ("--cache", "--single-snapshot"),
        ("--cache", "--cache-repo=oci:/x"),
        ("--push-retry=many",),
        ("--registry-map=docker.io",),
        ("--secret=src=/x",),
        ("--secret=id=a,src=/x,env=Y",),
        ("--git=depth=deep",),
        ("--target=a", "--target=b"),
    ],
)
def test_what_is_malformed_is_refused(flags):
    with pytest.raises(SetupError):
        parse(*flags)


def test_a_push_needs_a_destination():
    with pytest.raises(SetupError, match="you must provide --destination, or use --no-push"):
        parse_flags(("--context=/src",))
    assert parse_flags(("--context=/src", "--no-push")).push is False


@pytest.mark.parametrize(
    "flag", ["--snapshot-mode=full", "--use-new-run=false", "--cleanup", "--log-timestamp=false", "--verbosity=debug", "--log-format=json"]
)
def test_what_buildah_does_anyway_and_how_logs_look_is_accepted(flag):
    assert parse(flag) == parse()


def test_layers_are_made_for_a_cache_and_where_they_are_asked_for():
    assert parse().layers is False
    assert parse("--single-snapshot").layers is False
    assert parse("--single-snapshot=false").layers is True
    assert parse("--cache=true").cache == "r.example.com/app/cache"
    assert parse("--cache=false", "--cache-repo=r.example.com/cache").cache is None


def test_secrets():
    given = ("--secret=id=a,type=file,src=/f", "--secret=id=b,env=B", "--secret=id=c", "--secret=id=d,type=env")
    assert parse(*given).secrets == (
        Secret(id="a", file="/f"),
        Secret(id="b", variable="B"),
        Secret(id="c", file="c"),
        Secret(id="d", variable="d"),
    )


def test_git():
    given = (
        "--git=branch=main",
        "--git=depth=1",
        "--git=recurse-submodules=true",
        "--git=insecure-skip-tls=true",
        "--git=single-branch=true",
    )
    assert parse(*given).git == Git(branch="main", depth=1, submodules=True, insecure=True)


def test_registry_maps_and_the_hubs_other_name():
    options = parse("--registry-map=index.docker.io=a.example.com;b.example.com=c.example.com/d", "--insecure-registry=index.docker.io")
    assert options.mirrors == {"docker.io": ("a.example.com",), "b.example.com": ("c.example.com/d",)}
    assert options.insecure == {"docker.io"}
