"""What a request says besides its source, each field seen in the image, in the pod, or in the registry."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from ledger.build import State
from tests.e2e.conftest import Submit
from tests.e2e.harness import Crabpot
from tests.e2e.harness_cluster import until
from tests.e2e.harness_images import Image
from tests.e2e.harness_registry import LockedRegistry, PrivateRegistry
from tests.e2e.harness_servers import ACCESS_KEY, Proxy, files_over_tls, object_storage, proxy

ARGUMENTS = {
    "SPACES": "hello  big world",
    "QUOTES": 'it\'s "quoted" `and` \\ escaped',
    "EQUALS": "a=b==c",
    "LINES": "first line\nsecond line\n",
    "DOLLARS": "$(HOSTNAME) $HOME ${PATH} $$ 100%",
    "UNICODE": "蟹 🦀",
    "EMPTY": "",
}
"""Values that a shell, a template or a pod's `$(…)` would change."""
SECRET = secrets.token_hex(16)
TARBALL = "/team/context.tar.gz"


@pytest.fixture(scope="module")
def base(crabpot: Crabpot) -> str:
    """A base image with a shell."""
    return f"FROM {crabpot.cluster.registry}/base/busybox:1"


@pytest.fixture(scope="module")
def recorder(crabpot: Crabpot) -> Iterator[Proxy]:
    with proxy(crabpot.cluster.host) as served:
        yield served


@pytest.fixture(scope="module")
def tarball() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in (("app/Dockerfile", "FROM scratch\nCOPY . /files/\n"), ("app/packed.txt", "from a tarball")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return archive.getvalue()


@pytest.fixture(scope="module")
def website(crabpot: Crabpot, private: PrivateRegistry, tarball: bytes) -> Iterator[str]:
    """Where a tarball lies, over TLS by an authority of its own."""
    with files_over_tls(crabpot.cluster.host, private.certificate, private.key, {TARBALL: tarball}) as host:
        yield host


@pytest.fixture(scope="module")
def bucket(crabpot: Crabpot, tarball: bytes) -> Iterator[str]:
    """An object storage with a tarball in it."""
    with object_storage(crabpot.cluster.host, {TARBALL: tarball}) as host:
        yield host


@pytest.fixture(scope="module")
def builds(
    crabpot: Crabpot,
    base: str,
    locked: LockedRegistry,
    private: PrivateRegistry,
    recorder: Proxy,
    website: str,
    bucket: str,
    submit_all: Submit,
) -> dict[str, str]:
    registry = crabpot.cluster.registry
    crabpot.secret("values", {"password": SECRET})
    crabpot.secret("store", {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET})
    crabpot.secret("push-login", {"config.json": locked.docker_config()})
    crabpot.secret("authority", {"ca.pem": private.certificate.read_text()})
    every = "".join(f'ARG {name}\nENV GOT_{name}=${name}\nRUN printf %s "${name}" > /got-{name}\n' for name in ARGUMENTS)
    random = f"{base}\nRUN cat /proc/sys/kernel/random/uuid > /random\n"
    stages = "\n".join(
        (
            f"{base} AS build",
            "COPY binary /binary",
            f"{base} AS debug",
            "COPY --from=build /binary /debug-binary",
            "FROM scratch AS final",
            "COPY --from=build /binary /binary",
            "LABEL from=the-dockerfile",
        )
    )
    cache = {"cache": {"repository": crabpot.image("cache").rpartition(":")[0], "ttl": "1d"}}
    insecure = {"insecure": [registry, locked.host]}

    def context(name: str, dockerfile: str, **files: str) -> dict[str, str]:
        return crabpot.config_map(name, {"Dockerfile": dockerfile, **files})

    plain = context("plain", f"{base}\nRUN echo built > /built\n")
    staged = context("stages", stages, binary="compiled")
    requests: dict[str, dict[str, Any]] = {
        "arguments": {"source": context("arguments", f"{base}\n{every}"), "build_args": ARGUMENTS},
        "argument-secret": {
            "source": context("argument-secret", f'{base}\nARG PASSWORD\nRUN printf %s "$PASSWORD" | sha256sum > /sum\n'),
            "build_args": {"PASSWORD": {"secret": "values", "key": "password"}},
        },
        "mounted-secret": {
            "source": context(
                "mounted-secret", f"{base}\nRUN --mount=type=secret,id=key sha256sum < /run/secrets/key > /sum\nRUN ! test -e /run/secrets/key\n"
            ),
            "secrets": {"mounts": [{"id": "key", "value": {"secret": "values", "key": "password"}}]},
        },
        "multi-stage": {"source": staged, "labels": {"org.opencontainers.image.title": "a title = with equals", "team": "crabs"}},
        "target": {"source": staged, "target": "debug"},
        "cache-first": {"source": context("random", random), **cache},
        "uncached": {"source": context("random", random)},
        "dockerfile": {"source": context("other", "FROM scratch\n", **{"Other.dockerfile": f"{base}\nLABEL which=other\n"}), "dockerfile": "Other.dockerfile"},
        "tags": {
            "source": plain,
            "destinations": [crabpot.image("tags"), crabpot.image("tags", "stable"), crabpot.image("tags-too", "1.2.3")],
        },
        "map": {
            "source": context("map", "FROM registry.example.com/base/busybox:1\nLABEL which=map\n"),
            "registries": {"insecure": [registry], "map": {"registry.example.com": [registry]}},
        },
        "mirror": {
            "source": context("mirror", "FROM base/busybox:1\nLABEL which=mirror\n"),
            "registries": {"insecure": [registry], "mirrors": [registry]},
        },
        "proxy": {"source": plain, "environment": {"HTTP_PROXY": recorder.url}},
        "no-proxy": {"source": plain, "environment": {"HTTP_PROXY": "http://192.0.2.1:9", "NO_PROXY": crabpot.cluster.host + "," + registry.split(":")[0]}},
        "flags": {"source": context("flags", "FROM scratch\nCOPY Dockerfile /\n"), "flags": {"reproducible": "true", "single-snapshot": "true"}},
        "locked": {
            "source": plain,
            "destinations": [f"{locked.host}/team/app:1.0.0", f"{locked.host}/team/app:latest"],
            "registries": insecure,
            "secrets": {"docker_config": {"secret": "push-login", "key": "config.json"}},
        },
        "certificate": {
            "source": plain,
            "destinations": [f"{private.host}/team/app:1.0.0", f"{private.host}/team/app:latest"],
            "registries": {"insecure": [registry], "certificates": {private.host: {"secret": "authority", "key": "ca.pem"}}},
        },
        "tarball": {
            "source": {"kind": "tarball", "url": f"https://{website}{TARBALL}", "sub_path": "app"},
            "registries": {"insecure": [registry], "certificates": {website: {"secret": "authority", "key": "ca.pem"}}},
        },
        "s3": {
            "source": {"kind": "tarball", "url": f"s3:/{TARBALL}", "s3_endpoint": f"http://{bucket}", "sub_path": "app"},
            "secrets": {"s3": {"secret": "store"}},
        },
        "gs": {
            "source": {"kind": "tarball", "url": f"gs:/{TARBALL}", "sub_path": "app"},
            "environment": {"STORAGE_EMULATOR_HOST": f"http://{bucket}"},
        },
    }  # fmt: skip
    if not crabpot.cluster.real:  # what the stand-in cannot do would only fail, loudly and long
        for name in ("map", "mirror", "certificate", "tarball", "s3", "gs"):
            del requests[name]
    return submit_all(crabpot, requests)


@pytest.fixture
def real(crabpot: Crabpot) -> None:
    if not crabpot.cluster.real:
        pytest.skip("the stand-in does not keep what RUN changes, and has no cache, secrets, mirrors or certificates; real Kaniko only")


def image_of(crabpot: Crabpot, builds: dict[str, str], name: str) -> Image:
    return crabpot.pushed(crabpot.succeed(builds[name]))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_build_argument_arrives_unchanged(crabpot: Crabpot, builds: dict[str, str], name: str) -> None:
    image = image_of(crabpot, builds, "arguments")
    environment = dict(entry.split("=", 1) for entry in image.config["config"]["Env"])
    if crabpot.cluster.real:
        assert image.text(f"/got-{name}") == ARGUMENTS[name]
    assert environment[f"GOT_{name}"] == ARGUMENTS[name]


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["argument-secret", "mounted-secret"])
def test_a_secret_reaches_the_build_and_stays_out_of_everything_else(crabpot: Crabpot, builds: dict[str, str], name: str) -> None:
    image = image_of(crabpot, builds, name)
    assert image.text("/sum").split()[0] == hashlib.sha256(SECRET.encode()).hexdigest()
    if name == "mounted-secret":  # a build argument's value stays in the image's history, whoever builds it
        assert not [blob for blob in image.blob_texts() if SECRET.encode() in blob]
    assert SECRET not in crabpot.log(builds[name])
    assert SECRET not in crabpot.read(builds[name]).model_dump_json()
    assert SECRET not in json.dumps(crabpot.events(builds[name]))


def test_stages_and_labels(crabpot: Crabpot, builds: dict[str, str]) -> None:
    record = crabpot.succeed(builds["multi-stage"])
    image = crabpot.pushed(record)
    assert image.labels["org.opencontainers.image.title"] == "a title = with equals"
    assert image.labels["team"] == "crabs"
    assert image.labels["from"] == "the-dockerfile"
    assert image.labels["dev.crabpot.attempt"] == f"{record.id}.1"
    assert image.labels["org.opencontainers.image.created"] == record.created.isoformat(timespec="seconds").replace("+00:00", "Z")
    assert image.files == {"/binary": b"compiled"}


def test_the_target_stage_is_the_last_that_is_built(crabpot: Crabpot, builds: dict[str, str]) -> None:
    image = image_of(crabpot, builds, "target")
    assert "from" not in image.labels
    assert image.config["config"]["Env"]
    assert image.text("/debug-binary") == "compiled"
    assert "/bin/busybox" in image.files


@pytest.mark.usefixtures("real")
def test_a_second_build_is_served_from_the_cache(crabpot: Crabpot, builds: dict[str, str]) -> None:
    first = image_of(crabpot, builds, "cache-first").text("/random")
    record = crabpot.read(builds["cache-first"])
    again = crabpot.succeed(
        crabpot.submit(record.request.model_dump(mode="json", exclude_defaults=True) | {"destinations": [crabpot.image("cached")]})
    )
    assert crabpot.pushed(again).text("/random") == first
    assert image_of(crabpot, builds, "uncached").text("/random") != first, "without a cache the layer is made anew"


def test_a_dockerfile_of_another_name(crabpot: Crabpot, builds: dict[str, str]) -> None:
    assert image_of(crabpot, builds, "dockerfile").labels["which"] == "other"


def test_every_tag_and_repository_names_the_same_image(crabpot: Crabpot, builds: dict[str, str]) -> None:
    record = crabpot.succeed(builds["tags"])
    assert {Image(name).digest for name in record.request.destinations} == {record.digest}
    assert record.size == crabpot.pushed(record).size
    published = [event["data"]["customData"] for event in crabpot.events(record.id) if ".artifact.published." in event["type"]]
    assert [told["image"] for told in published] == list(record.request.destinations)
    assert {told["digest"] for told in published} == {record.digest}


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["map", "mirror"])
def test_a_base_image_comes_from_where_its_registry_is_mapped_to(crabpot: Crabpot, builds: dict[str, str], name: str) -> None:
    image = image_of(crabpot, builds, name)
    assert image.labels["which"] == name
    assert "/bin/busybox" in image.files


def test_the_executor_goes_through_the_proxy_of_its_environment(crabpot: Crabpot, builds: dict[str, str], recorder: Proxy) -> None:
    crabpot.succeed(builds["proxy"])
    assert set(recorder.asked_for) == {crabpot.cluster.registry}


def test_hosts_that_are_excepted_from_the_proxy_are_reached_directly(crabpot: Crabpot, builds: dict[str, str]) -> None:
    crabpot.succeed(builds["no-proxy"])


@pytest.mark.usefixtures("real")
def test_further_flags_of_kaniko(crabpot: Crabpot, builds: dict[str, str]) -> None:
    assert image_of(crabpot, builds, "flags").config["created"].startswith("0001-01-01")
    assert not image_of(crabpot, builds, "multi-stage").config["created"].startswith("0001-01-01")


def test_a_registry_with_a_password_by_the_credential_of_a_secret(crabpot: Crabpot, builds: dict[str, str], locked: LockedRegistry) -> None:
    """Kaniko pushes by the request's Secret; the worker confirms and tags by the project's, which it may read and no other."""
    record = crabpot.succeed(builds["locked"])
    assert {Image(name, locked.auth).digest for name in record.request.destinations} == {record.digest}
    password = locked.auth[1]
    assert password not in record.model_dump_json()


@pytest.mark.usefixtures("real")
def test_a_registry_whose_authority_is_named(crabpot: Crabpot, builds: dict[str, str], private: PrivateRegistry) -> None:
    record = crabpot.succeed(builds["certificate"])
    accept = {"1.0.0", "latest"}
    assert set(private.get("team/app/tags/list").raise_for_status().json()["tags"]) == accept
    assert record.digest


@pytest.mark.usefixtures("real")
def test_a_tarball_from_a_web_server_whose_authority_is_named(crabpot: Crabpot, builds: dict[str, str]) -> None:
    assert image_of(crabpot, builds, "tarball").text("/files/packed.txt") == "from a tarball"


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["s3", "gs"])
def test_a_tarball_in_object_storage(crabpot: Crabpot, builds: dict[str, str], name: str) -> None:
    """S3's with a key. Google's client asks nobody who it is where it is told of an emulator."""
    assert image_of(crabpot, builds, name).text("/files/packed.txt") == "from a tarball"


def test_a_google_key_lies_where_its_variable_says(crabpot: Crabpot, base: str) -> None:
    crabpot.secret("google", {"key.json": "{}"})
    build = crabpot.submit(
        crabpot.request(
            "google",
            source=crabpot.config_map("google", {"Dockerfile": f"{base}\nRUN sleep 2\n"}),
            secrets={"google_key": {"secret": "google", "key": "key.json"}},
        )
    )
    pod = crabpot.keep_pod(build)
    [container] = pod["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    path = variables["GOOGLE_APPLICATION_CREDENTIALS"]
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    mount = mounts.get(path) or mounts[path.rpartition("/")[0]]
    [volume] = [one for one in pod["spec"]["volumes"] if one["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "google"
    assert crabpot.succeed(build).digest


def test_placement_identity_and_resources_are_the_pod_s(crabpot: Crabpot, base: str) -> None:
    """Fields that shape the pod and not the image, seen on the pod while it runs."""
    cluster, mark = crabpot.cluster, crabpot.name
    here, node = ("--namespace", crabpot.namespace), cluster.node()
    classes = (
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": mark}, "handler": "runc"},
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": mark}, "value": 7, "description": "e2e"},
    )
    cluster.apply(crabpot.namespace, *classes, {"kind": "ServiceAccount", "metadata": {"name": "builder"}})
    cluster.kubectl("label", "node", node, f"e2e.example.com/{mark}=yes")
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": f"e2e.example.com/{mark}", "operator": "In", "values": ["yes"]}]},
    ]}}}  # fmt: skip
    try:
        build = crabpot.submit(
            crabpot.request(
                "placed",
                source=crabpot.config_map("placed", {"Dockerfile": f"{base}\nRUN sleep 2\n"}),
                placement={
                    "node_selector": {f"e2e.example.com/{mark}": "yes"},
                    "tolerations": [{"key": "builds", "operator": "Equal", "value": "only", "effect": "NoSchedule"}],
                    "affinity": affinity,
                    "runtime_class": mark,
                    "priority_class": mark,
                },
                identity={
                    "service_account": "builder",
                    "labels": {"team": "crabs"},
                    "annotations": {"example.com/note": "a note: with $(THINGS)"},
                    "image_pull_secrets": ["pull-login"],
                },
                resources={"cpu": "150m", "memory": "300Mi", "ephemeral_storage": "500Mi"},
                environment={"NO_PROXY": "$(HOME)"},
            )
        )
        pod = crabpot.keep_pod(build)
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        assert spec["nodeSelector"] == {f"e2e.example.com/{mark}": "yes"}
        assert {"key": "builds", "operator": "Equal", "value": "only", "effect": "NoSchedule"} in spec["tolerations"]
        assert spec["affinity"] == affinity
        assert (spec["runtimeClassName"], spec["priorityClassName"], spec["priority"]) == (mark, mark, 7)
        assert spec["serviceAccountName"] == "builder"
        assert spec["imagePullSecrets"] == [{"name": "pull-login"}]
        assert pod["metadata"]["labels"]["team"] == "crabs"
        assert pod["metadata"]["annotations"]["example.com/note"] == "a note: with $(THINGS)"
        amounts = {"cpu": "150m", "memory": "300Mi", "ephemeral-storage": "500Mi"}
        assert container["resources"] == {"limits": amounts, "requests": amounts}
        assert {"name": "NO_PROXY", "value": "$$(HOME)"} in container["env"], (
            "a pod's $(HOME) is escaped, so that the value arrives as given"
        )
        # Hardened, whatever the request says: no token, no privilege, five capabilities.
        assert spec["automountServiceAccountToken"] is False
        assert not [volume for volume in spec.get("volumes", ()) if "projected" in volume]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        record = crabpot.succeed(build)
        assert record.current.runs[0].node == node
    finally:
        cluster.kubectl("label", "node", node, f"e2e.example.com/{mark}-")
        cluster.kubectl(*here, "delete", "runtimeclass,priorityclass", mark)


def test_a_request_that_the_policy_denies_never_becomes_a_pod(crabpot: Crabpot) -> None:
    from ledger.errors import PolicyDenied

    denied = crabpot.request("denied", source={"kind": "host_path", "path": "/etc"}) | {"project": "app"}
    with pytest.raises(PolicyDenied, match=r"source\.path"):
        crabpot.submit(denied)


def test_the_log_is_kept_after_the_pod_is_gone(crabpot: Crabpot, builds: dict[str, str]) -> None:
    record = crabpot.succeed(builds["tags"])
    until(lambda: crabpot.pod(record.id) is None, "its pod is gone")
    assert record.state is State.SUCCEEDED
    assert "RUN echo built" in crabpot.log(record.id)
