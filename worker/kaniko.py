"""What a build request becomes: the executor's arguments, environment and mounts. Pure; only this module knows Kaniko's flags.

Read from the executor's source (1.28) where its documentation is silent:

- A flag's text reaches Kaniko unchanged (no shell, no variable expansion), so values are never quoted.
- `git://host/path#ref#commit` clones the ref with its history and then checks the commit out: a branch that has moved on does no harm.
  `#commit` alone asks for the object by its hash, which many servers refuse; `##commit` clones every branch and then checks it out.
- Each `--git` takes one `name=value`. Submodules are those of the ref's tip, not of the commit, once the ref has moved on.
- Durations are Go's, which know no days. Docker Hub is called `index.docker.io` wherever registries are compared.
- A bare `--build-arg=NAME` takes its value from the executor's environment, so that a secret stands in no argument.
- `/kaniko` is never part of an image, whatever the Dockerfile does: all mounts are below it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from datetime import UTC, timedelta

from ledger.build import ATTEMPT_LABEL, Build, pod_name
from ledger.quantities import parse_duration
from ledger.references import ImageReference
from ledger.request import (
    BuildRequest,
    ClaimSource,
    ConfigMapSource,
    GitSource,
    HostPathSource,
    SecretValue,
    TarballSource,
    Toleration,
)
from worker.cluster import FolderMount, Launch, PodName, SecretMount, SecretVariable

SOURCE = "/kaniko/source"
OUTPUT = "/kaniko/output"
DOCKER_CONFIG = "/kaniko/.docker"
GOOGLE_KEY = "/kaniko/google/key.json"
AUTHORITIES = "/kaniko/ssl/certs"
TERMINATION_MESSAGE = "/dev/termination-log"
DEFAULT_FLAGS = {"log-format": "color", "push-retry": "2", "image-download-retry": "2", "image-fs-extract-retry": "1"}
COMPATIBLE_REGION = "us-east-1"
"""What stores that speak S3 and are not AWS sign by, unless they say otherwise."""


def launch(
    build: Build,
    platform: str,
    *,
    namespace: str,
    executor_image: str,
    cpu: str | None = None,
    memory: str | None = None,
    ephemeral_storage: str | None = None,
    run_deadline: timedelta | None = None,
) -> Launch:
    """The launch of the build's current attempt for one platform.

    The resources and the deadline are those that the attempt is given, after projects' and settings' defaults; unset ones are taken from
    the request. LaunchRefused for a request that cannot be said to Kaniko without changing what it means.
    """
    request = build.request
    placement, identity, resources = request.placement, request.identity, request.resources
    return Launch(
        pod=PodName(pod_name(build.id, build.attempt, platform)),
        build=build.id,
        attempt=build.attempt,
        platform=platform,
        project=build.project,
        namespace=namespace,
        image=executor_image,
        arguments=tuple(_arguments(build, platform)),
        environment={**request.environment, **dict(_environment(request))},
        secret_variables=tuple(_secret_variables(request)),
        secret_mounts=tuple(_secret_mounts(request)),
        folders=tuple(_folders(request)),
        cpu=cpu or resources.cpu,
        memory=memory or resources.memory,
        ephemeral_storage=ephemeral_storage or resources.ephemeral_storage,
        run_deadline=run_deadline or _deadline(request),
        node_selector=dict(placement.node_selector),
        node_name=placement.node_name,
        tolerations=tuple(_toleration(toleration) for toleration in placement.tolerations),
        affinity={str(kind): rules for kind, rules in placement.affinity.items()},
        runtime_class=placement.runtime_class,
        priority_class=placement.priority_class,
        service_account=identity.service_account,
        labels=dict(identity.labels),
        annotations=dict(identity.annotations),
        image_pull_secrets=identity.image_pull_secrets,
    )


def _arguments(build: Build, platform: str) -> Iterator[str]:
    request = build.request
    yield f"--context={_context(request)}"
    if request.source.sub_path:
        yield f"--context-sub-path={posixpath.normpath(request.source.sub_path)}"
    # Normalised, since Kaniko would fetch a Dockerfile whose path begins with https://.
    yield f"--dockerfile={posixpath.normpath(request.dockerfile)}"
    yield from (f"--destination={image}" for image in _destinations(build))
    if not request.push:
        yield "--no-push"
    if request.tar:
        yield f"--tar-path={OUTPUT}/{_tar_place(request)[1]}"
    yield f"--custom-platform={platform}"
    if request.target:
        yield f"--target={request.target}"
    for name, value in request.build_args.items():
        yield f"--build-arg={name}" if isinstance(value, SecretValue) else f"--build-arg={name}={value}"
    yield from (f"--label={name}={value}" for name, value in _labels(build).items())
    yield from _cache(request)
    yield from _registries(request)
    yield from (f"--secret=id={mount.id},type=file,src={_secret_file(number)}" for number, mount in enumerate(request.secrets.mounts))
    yield from _flags(request)
    yield f"--digest-file={TERMINATION_MESSAGE}"


def _context(request: BuildRequest) -> str:
    match request.source:
        case GitSource(url=url, ref=ref, commit=commit):
            return f"git://{url.partition('://')[2]}#{ref or ''}#{commit}"
        case TarballSource(url=url):
            return url
        case _:
            return f"dir://{SOURCE}"


def _destinations(build: Build) -> Iterator[ImageReference]:
    """What Kaniko names in its push or tar; further tags of the pushed repository are set by `finish`."""
    pushed = build.pushed_image
    if pushed is None:
        yield from build.request.images
        return
    yield pushed
    yield from (image for image in build.request.images if image.name != pushed.name)


def _labels(build: Build) -> dict[str, str]:
    """The OCI annotations that tell where an image comes from, which a request may say otherwise; and ours, which it may not."""
    origin = {"org.opencontainers.image.created": build.created.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")}
    if isinstance(source := build.request.source, GitSource):
        origin["org.opencontainers.image.source"] = source.url
        origin["org.opencontainers.image.revision"] = source.commit
        if source.ref:
            origin["org.opencontainers.image.ref.name"] = source.ref
    return {**origin, **build.request.labels, ATTEMPT_LABEL: f"{build.id}.{build.attempt}"}


def _cache(request: BuildRequest) -> Iterator[str]:
    if request.cache:
        yield "--cache=true"
        yield f"--cache-repo={request.cache.repository}"
        yield f"--cache-ttl={round(parse_duration(request.cache.ttl) * 1000)}ms"


def _registries(request: BuildRequest) -> Iterator[str]:
    registries = request.registries
    for host, targets in registries.map.items():
        yield from (f"--registry-map={_registry(host)}={target}" for target in targets)
    yield from (f"--registry-mirror={target}" for target in registries.mirrors)
    yield from (f"--insecure-registry={_registry(host)}" for host in registries.insecure)
    yield from (f"--skip-tls-verify-registry={_registry(host)}" for host in registries.skip_tls_verify)
    for host, path in _certificate_files(request).items():
        yield f"--registry-certificate={_registry(host)}={path}"


def _flags(request: BuildRequest) -> Iterator[str]:
    if isinstance(request.source, GitSource) and request.source.submodules:
        yield "--git=recurse-submodules=true"
    for name, text in {**DEFAULT_FLAGS, **request.flags}.items():
        yield from (f"--{name}={part}" for part in (text.split(",") if name == "git" else (text,)))


def _environment(request: BuildRequest) -> Iterator[tuple[str, str]]:
    match request.source:
        case GitSource(url=url) if url.startswith("http://"):
            yield "GIT_PULL_METHOD", "http"
        case TarballSource(s3_endpoint=endpoint, s3_region=region):
            if endpoint:
                yield "S3_ENDPOINT", endpoint
                yield "S3_FORCE_PATH_STYLE", "true"
            if region or endpoint:
                yield "AWS_REGION", region or COMPATIBLE_REGION
    if any(path.startswith(AUTHORITIES) for path in _certificate_files(request).values()):
        yield "SSL_CERT_DIR", f"{AUTHORITIES}:/etc/ssl/certs"
    if request.secrets.docker_config:
        yield "DOCKER_CONFIG", DOCKER_CONFIG
    if request.secrets.google_key:
        yield "GOOGLE_APPLICATION_CREDENTIALS", GOOGLE_KEY


def _secret_variables(request: BuildRequest) -> Iterator[SecretVariable]:
    for name, value in request.build_args.items():
        if isinstance(value, SecretValue):
            yield SecretVariable(name=name, secret=value.secret, key=value.key)
    if git := request.secrets.git:
        keys = {"GIT_TOKEN": "token"} if git.kind == "token" else {"GIT_USERNAME": "username", "GIT_PASSWORD": "password"}
        yield from (SecretVariable(name=name, secret=git.secret, key=key) for name, key in keys.items())
    if s3 := request.secrets.s3:
        yield SecretVariable(name="AWS_ACCESS_KEY_ID", secret=s3.secret, key="access_key_id")
        yield SecretVariable(name="AWS_SECRET_ACCESS_KEY", secret=s3.secret, key="secret_access_key")


def _secret_mounts(request: BuildRequest) -> Iterator[SecretMount]:
    secrets = request.secrets
    if secrets.docker_config:
        yield _mount(secrets.docker_config, f"{DOCKER_CONFIG}/config.json")
    if secrets.google_key:
        yield _mount(secrets.google_key, GOOGLE_KEY)
    yield from (_mount(mount.value, _secret_file(number)) for number, mount in enumerate(secrets.mounts))
    yield from (_mount(request.registries.certificates[host], path) for host, path in _certificate_files(request).items())


def _folders(request: BuildRequest) -> Iterator[FolderMount]:
    match request.source:
        case HostPathSource(path=path):
            yield FolderMount(path=SOURCE, host_path=path)
        case ClaimSource(claim=claim):
            yield FolderMount(path=SOURCE, claim=claim)
        case ConfigMapSource(config_map=config_map):
            yield FolderMount(path=SOURCE, config_map=config_map)
    if request.tar:
        yield FolderMount(path=OUTPUT, host_path=_tar_place(request)[0], claim=request.tar.claim, writable=True)


def _deadline(request: BuildRequest) -> timedelta | None:
    return timedelta(seconds=parse_duration(request.deadlines.running)) if request.deadlines.running else None


def _tar_place(request: BuildRequest) -> tuple[str | None, str]:
    """The node's folder that is mounted, and the tar's path below the mount. Kaniko makes no folders, but the node makes the mounted one."""
    tar = request.tar
    assert tar is not None
    path = posixpath.normpath(tar.path)
    if tar.host_path is None:
        return None, path
    folder, name = posixpath.split(path)
    return posixpath.join(tar.host_path, folder).rstrip("/") or "/", name


def _toleration(given: Toleration) -> dict[str, str]:
    return {name: value for name, value in given.model_dump().items() if value}


def _mount(value: SecretValue, path: str) -> SecretMount:
    return SecretMount(secret=value.secret, key=value.key, path=path)


def _secret_file(number: int) -> str:
    """Kaniko copies each secret to /kaniko/secrets first, which must not be the mount itself."""
    return f"/kaniko/mounted-secrets/{number}"


def _certificate_files(request: BuildRequest) -> dict[str, str]:
    """Host -> its CA certificate's file. One of the source's host goes where all of Kaniko's connections look for authorities."""
    source = request.source
    home = source.url.partition("://")[2].partition("/")[0] if isinstance(source, GitSource | TarballSource) else None
    return {
        host: f"{AUTHORITIES if host == home else '/kaniko/certificates'}/crabpot-{number}.pem"
        for number, host in enumerate(request.registries.certificates)
    }


def _registry(host: str) -> str:
    return "index.docker.io" if host == "docker.io" else host
