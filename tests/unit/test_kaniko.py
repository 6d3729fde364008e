"""Every field of a request has its effect on the launch, and none more than that."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ledger.build import pod_name
from ledger.errors import RequestInvalid
from tests.requests import BUILD_ID, COMMIT, make_build, make_request
from worker.cluster import FolderMount, Launch, SecretMount, SecretVariable
from worker.kaniko import launch

GIT = {"kind": "git", "url": "https://git.example.com/team/demo.git", "ref": "refs/heads/main", "commit": COMMIT}


def launched(*, given: dict[str, Any] | None = None, **fields: Any) -> Launch:
    build = make_build(request=make_request(**fields), attempt=2)
    return launch(build, "linux/amd64", namespace="builds", executor_image="registry.example.com/kaniko:1", **(given or {}))


def values(launch: Launch, flag: str) -> list[str]:
    return [argument.partition("=")[2] for argument in launch.arguments if argument.partition("=")[0] == f"--{flag}"]


def test_names_and_place() -> None:
    made = launched()
    assert made.pod == pod_name(BUILD_ID, 2, "linux/amd64")
    assert (made.build, made.attempt, made.platform, made.project) == (BUILD_ID, 2, "linux/amd64", "demo")
    assert (made.namespace, made.image) == ("builds", "registry.example.com/kaniko:1")


@pytest.mark.parametrize(
    ("source", "context"),
    [
        (GIT, f"git://git.example.com/team/demo.git#refs/heads/main#{COMMIT}"),
        ({**GIT, "ref": None}, f"git://git.example.com/team/demo.git##{COMMIT}"),
        ({"kind": "host_path", "path": "/srv/code"}, "dir:///kaniko/source"),
        ({"kind": "claim", "claim": "code"}, "dir:///kaniko/source"),
        ({"kind": "config_map", "config_map": "code"}, "dir:///kaniko/source"),
        ({"kind": "tarball", "url": "https://files.example.com/a.tar.gz"}, "https://files.example.com/a.tar.gz"),
        ({"kind": "tarball", "url": "gs://bucket/a.tar.gz"}, "gs://bucket/a.tar.gz"),
    ],
)
def test_context(source: dict[str, Any], context: str) -> None:
    made = launched(source=source)
    assert values(made, "context") == [context]
    assert values(made, "context-sub-path") == []
    assert made.environment == {}


def test_sub_path_and_dockerfile_stay_below_the_context() -> None:
    made = launched(source={**GIT, "sub_path": "./a//b/"}, dockerfile="build//Dockerfile")
    assert values(made, "context-sub-path") == ["a/b"]
    assert values(made, "dockerfile") == ["build/Dockerfile"]
    with pytest.raises(RequestInvalid, match="dockerfile"):
        launched(dockerfile="https://evil.example.com/Dockerfile")  # Kaniko would fetch it


def test_git_over_plain_http_with_submodules_and_flags() -> None:
    made = launched(
        source={**GIT, "url": "http://git.example.com/team/demo.git", "submodules": True}, flags={"git": "depth=1,single-branch=true"}
    )
    assert made.environment == {"GIT_PULL_METHOD": "http"}
    assert values(made, "git") == ["recurse-submodules=true", "depth=1", "single-branch=true"]


@pytest.mark.parametrize(
    ("kind", "variables"),
    [("password", {"GIT_USERNAME": "username", "GIT_PASSWORD": "password"}), ("token", {"GIT_TOKEN": "token"})],
)
def test_git_credentials(kind: str, variables: dict[str, str]) -> None:
    made = launched(secrets={"git": {"secret": "forge", "kind": kind}})
    assert made.secret_variables == tuple(SecretVariable(name=name, secret="forge", key=key) for name, key in variables.items())


@pytest.mark.parametrize(
    ("source", "mount"),
    [
        ({"kind": "host_path", "path": "/srv/code"}, {"host_path": "/srv/code"}),
        ({"kind": "claim", "claim": "code"}, {"claim": "code"}),
        ({"kind": "config_map", "config_map": "code"}, {"config_map": "code"}),
    ],
)
def test_mounted_sources_are_read_only(source: dict[str, Any], mount: dict[str, str]) -> None:
    assert launched(source=source).folders == (FolderMount(path="/kaniko/source", **mount),)


def test_s3_compatible_store() -> None:
    made = launched(source={"kind": "tarball", "url": "s3://bucket/a.tar.gz", "s3_endpoint": "https://s3.example.com"})
    assert made.environment == {"S3_ENDPOINT": "https://s3.example.com", "S3_FORCE_PATH_STYLE": "true", "AWS_REGION": "us-east-1"}


def test_s3_region_and_keys() -> None:
    made = launched(
        source={"kind": "tarball", "url": "s3://bucket/a.tar.gz", "s3_region": "eu-west-1"}, secrets={"s3": {"secret": "store"}}
    )
    assert made.environment == {"AWS_REGION": "eu-west-1"}
    assert made.secret_variables == (
        SecretVariable(name="AWS_ACCESS_KEY_ID", secret="store", key="access_key_id"),
        SecretVariable(name="AWS_SECRET_ACCESS_KEY", secret="store", key="secret_access_key"),
    )


def test_further_tags_are_left_to_finish_and_other_repositories_are_pushed() -> None:
    fixed, other = f"registry.example.com/team/demo:{COMMIT}", "mirror.example.com/team/demo:1.2.3"
    made = launched(destinations=[fixed, "registry.example.com/team/demo:latest", other])
    assert values(made, "destination") == [fixed, other]
    assert "--no-push" not in made.arguments


def test_a_mutable_first_tag_is_never_pushed_by_kaniko() -> None:
    made = launched(destinations=["registry.example.com/team/demo:latest"])
    assert values(made, "destination") == [f"registry.example.com/team/demo:build-{BUILD_ID}"]


@pytest.mark.parametrize(
    ("tar", "folder", "path"),
    [
        ({"host_path": "/srv/out"}, {"host_path": "/srv/out"}, "image.tar"),
        ({"host_path": "/srv/out", "path": "a/b.tar"}, {"host_path": "/srv/out/a"}, "b.tar"),
        ({"host_path": "/"}, {"host_path": "/"}, "image.tar"),
        ({"claim": "out", "path": "a/b.tar"}, {"claim": "out"}, "a/b.tar"),
    ],
)
def test_no_push_with_tar(tar: dict[str, str], folder: dict[str, str], path: str) -> None:
    made = launched(push=False, destinations=["registry.example.com/team/demo:latest"], tar=tar)
    assert "--no-push" in made.arguments
    assert values(made, "destination") == ["registry.example.com/team/demo:latest"]
    assert values(made, "tar-path") == [f"/kaniko/output/{path}"]
    assert made.folders == (FolderMount(path="/kaniko/output", writable=True, **folder),)


def test_build_arguments_arrive_unchanged() -> None:
    odd = "a b \"c\" 'd' = $(X) $$ \n line2 \\"
    made = launched(build_args={"GREETING": odd, "EMPTY": "", "HIDDEN": {"secret": "s", "key": "k"}})
    assert values(made, "build-arg") == [f"GREETING={odd}", "EMPTY=", "HIDDEN"]
    assert "--build-arg=HIDDEN" in made.arguments
    assert made.secret_variables == (SecretVariable(name="HIDDEN", secret="s", key="k"),)


@pytest.mark.parametrize(
    "fields",
    [
        {"build_args": {"PATH": {"secret": "s", "key": "k"}}},
        {"build_args": {"HTTP_PROXY": {"secret": "s", "key": "k"}}, "environment": {"HTTP_PROXY": "x"}},
    ],
)
def test_a_secret_argument_never_steers_the_executor(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid, match="build_args"):
        launched(**fields)


def test_labels_say_where_the_image_comes_from() -> None:
    made = launched(labels={"team": "a = b", "org.opencontainers.image.source": "elsewhere", "dev.crabpot.attempt": "forged"})
    assert dict(label.split("=", 1) for label in values(made, "label")) == {
        "team": "a = b",
        "org.opencontainers.image.created": "2026-11-23T12:00:00Z",
        "org.opencontainers.image.source": "elsewhere",
        "org.opencontainers.image.revision": COMMIT,
        "org.opencontainers.image.ref.name": "refs/heads/main",
        "dev.crabpot.attempt": f"{BUILD_ID}.2",
    }


def test_cache_target_and_platform() -> None:
    made = launched(cache={"repository": "registry.example.com/cache", "ttl": "7d"}, target="final")
    assert values(made, "cache") == ["true"]
    assert values(made, "cache-repo") == ["registry.example.com/cache"]
    assert values(made, "cache-ttl") == ["604800000ms"]  # Go knows no days
    assert values(made, "target") == ["final"]
    assert values(made, "custom-platform") == ["linux/amd64"]


def test_registries() -> None:
    certificates = {"b.example.com": {"secret": "ca", "key": "ca.pem"}, "git.example.com": {"secret": "ca2", "key": "k"}}
    made = launched(
        registries={
            "map": {"docker.io": ["a.example.com/hub", "b.example.com"]},
            "mirrors": ["m.example.com"],
            "insecure": ["a.example.com:5000"],
            "skip_tls_verify": ["c.example.com"],
            "certificates": certificates,
        }
    )
    assert values(made, "registry-map") == ["index.docker.io=a.example.com/hub", "index.docker.io=b.example.com"]
    assert values(made, "registry-mirror") == ["m.example.com"]
    assert values(made, "insecure-registry") == ["a.example.com:5000"]
    assert values(made, "skip-tls-verify-registry") == ["c.example.com"]
    files = dict(value.split("=") for value in values(made, "registry-certificate"))
    assert made.secret_mounts == (
        SecretMount(secret="ca", key="ca.pem", path=files["b.example.com"]),
        SecretMount(secret="ca2", key="k", path=files["git.example.com"]),
    )
    assert files["git.example.com"].startswith("/kaniko/ssl/certs/")  # the source's own host is trusted by git too
    assert made.environment == {"SSL_CERT_DIR": "/kaniko/ssl/certs:/etc/ssl/certs"}


def test_secrets_are_mounted_and_never_arguments() -> None:
    made = launched(
        secrets={
            "docker_config": {"secret": "push", "key": ".dockerconfigjson"},
            "google_key": {"secret": "gcp", "key": "key.json"},
            "mounts": [{"id": "npm", "value": {"secret": "npm", "key": "token"}}],
        }
    )
    assert made.secret_mounts[:2] == (
        SecretMount(secret="push", key=".dockerconfigjson", path="/kaniko/.docker/config.json"),
        SecretMount(secret="gcp", key="key.json", path="/kaniko/google/key.json"),
    )
    assert made.environment == {"DOCKER_CONFIG": "/kaniko/.docker", "GOOGLE_APPLICATION_CREDENTIALS": "/kaniko/google/key.json"}
    assert values(made, "secret") == [f"id=npm,type=file,src={made.secret_mounts[2].path}"]
    assert not made.secret_mounts[2].path.startswith("/kaniko/secrets/")  # where Kaniko copies them to


def test_flags_and_what_is_always_there() -> None:
    made = launched(flags={"push-retry": "7", "reproducible": "true"})
    assert values(made, "push-retry") == ["7"]
    assert values(made, "reproducible") == ["true"]
    assert values(made, "image-download-retry") == ["2"]
    assert values(made, "log-format") == ["color"]
    assert values(made, "digest-file") == ["/dev/termination-log"]


def test_placement_identity_and_environment() -> None:
    made = launched(
        placement={
            "node_selector": {"disk": "ssd"},
            "node_name": "node1",
            "tolerations": [{"key": "builds", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"x": []}},
            "runtime_class": "gvisor",
            "priority_class": "low",
        },
        identity={"service_account": "builder", "labels": {"team": "a"}, "annotations": {"note": "b"}, "image_pull_secrets": ["pull"]},
        environment={"HTTPS_PROXY": "http://proxy.example.com"},
    )
    assert (made.node_selector, made.node_name) == ({"disk": "ssd"}, "node1")
    assert made.tolerations == ({"key": "builds", "operator": "Exists"},)
    assert made.affinity == {"nodeAffinity": {"x": []}}
    assert (made.runtime_class, made.priority_class, made.service_account) == ("gvisor", "low", "builder")
    assert (made.labels, made.annotations, made.image_pull_secrets) == ({"team": "a"}, {"note": "b"}, ("pull",))
    assert made.environment == {"HTTPS_PROXY": "http://proxy.example.com"}


def test_resources_and_deadline_of_the_attempt_go_before_the_request() -> None:
    asked = {"resources": {"cpu": "1", "memory": "1Gi", "ephemeral_storage": "2Gi"}, "deadlines": {"running": "10m"}}
    made = launched(**asked)
    assert (made.cpu, made.memory, made.ephemeral_storage, made.run_deadline) == ("1", "1Gi", "2Gi", timedelta(minutes=10))
    made = launched(given={"memory": "2Gi", "cpu": "2", "run_deadline": timedelta(hours=1)}, **asked)
    assert (made.cpu, made.memory, made.ephemeral_storage, made.run_deadline) == ("2", "2Gi", "2Gi", timedelta(hours=1))
