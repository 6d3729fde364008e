"""What a producer asks for: one image from one source at one commit. Frozen, versioned, and checked field by field.

Everything the hand-written Kaniko pods of docs/requests.md set can be said here, in the words of images and builds; what it becomes
is decided by `worker/kaniko.py`. What a project *may* use is decided by its policy (`ledger/policy.py`).
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ledger.errors import Problem, RequestInvalid
from ledger.fields import (
    AbsolutePath,
    CloneUrl,
    Cpu,
    Duration,
    Frozen,
    Image,
    Key,
    LabelKey,
    LabelValue,
    Memory,
    Name,
    Project,
    RegistryHost,
    RelativePath,
    Text,
    Variable,
    checked,
    tarball_url,
    unless_given,
)
from ledger.flags import EXTRA_FLAGS, RESERVED_ENVIRONMENT, SECRET_LOOKING
from ledger.references import ImageReference, is_fixed, parse_commit, parse_git_ref, parse_registry, parse_repository

SCHEMA_VERSION: Literal[1] = 1
_VERSION_FIELD = {"schema_version"}


class GitSource(Frozen):
    """A commit of a Git repository, over http(s)."""

    kind: Literal["git"]
    url: CloneUrl
    ref: Annotated[str, checked(parse_git_ref)] | None = None
    """The full ref that the commit was pushed to; it orders mutable tags and becomes `org.opencontainers.image.ref.name`."""
    commit: Annotated[str, checked(parse_commit)]
    submodules: bool = False
    sub_path: RelativePath = ""


class HostPathSource(Frozen):
    """A folder on the node that the build is pinned to."""

    kind: Literal["host_path"]
    path: AbsolutePath
    sub_path: RelativePath = ""


class ClaimSource(Frozen):
    """A folder on a PersistentVolumeClaim of the project's namespace."""

    kind: Literal["claim"]
    claim: Name
    sub_path: RelativePath = ""


class ConfigMapSource(Frozen):
    """The files of a ConfigMap of the project's namespace."""

    kind: Literal["config_map"]
    config_map: Name
    sub_path: RelativePath = ""


class TarballSource(Frozen):
    """A .tar.gz over https, or in object storage (gs://, s3://)."""

    kind: Literal["tarball"]
    url: Annotated[str, AfterValidator(tarball_url)]
    sub_path: RelativePath = ""
    s3_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/@#?]+$")] | None = None
    """For stores that speak S3 but are not AWS; paths are then used instead of host names."""
    s3_region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")] | None = None
    """Where AWS does not tell its pods. Other stores have `us-east-1` unless they say otherwise."""

    @model_validator(mode="after")
    def _s3_is_for_s3(self) -> TarballSource:
        for name in ("s3_endpoint", "s3_region"):
            if getattr(self, name) and not self.url.startswith("s3://"):
                raise ValueError(f"{name} is for a url that begins with s3://")
        return self


Source = Annotated[GitSource | HostPathSource | ClaimSource | ConfigMapSource | TarballSource, Field(discriminator="kind")]


class SecretValue(Frozen):
    """One key of a Secret in the project's namespace, named and never read by the producer."""

    secret: Name
    key: Key


class Cache(Frozen):
    """Kaniko's layer cache in a registry."""

    repository: Annotated[str, checked(ImageReference.parse)]
    """As `registry.example.com/team/app/cache`, without a tag."""
    ttl: Duration = "336h"

    @model_validator(mode="after")
    def _bare(self) -> Self:
        reference = ImageReference.parse(self.repository)
        if reference.tag or reference.digest:
            raise ValueError("the cache's repository takes no tag or digest")
        return self


class TarOutput(Frozen):
    """Where the image is written as a tar, beside or instead of a push: exactly one of the two places."""

    host_path: AbsolutePath | None = None
    """A folder on the node."""
    claim: Name | None = None
    """A PersistentVolumeClaim."""
    path: RelativePath = "image.tar"
    """The tar's file below that place."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.host_path is None) == (self.claim is None):
            raise ValueError("name either host_path or claim")
        return self


class Toleration(Frozen):
    """A node taint that the build's pod may run on."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Placement(Frozen):
    """Where the build may run."""

    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    node_name: Name | None = None
    tolerations: tuple[Toleration, ...] = ()
    affinity: dict[Literal["nodeAffinity", "podAffinity", "podAntiAffinity"], dict[str, Any]] = Field(default_factory=dict)
    """As in a pod's spec; the cluster checks its inside."""
    runtime_class: Name | None = None
    priority_class: Name | None = None
    capacity_class: Name | None = None
    """Which of the cluster's capacities it uses, as `large`, for the limits of classes; by default its platform's architecture."""


class Identity(Frozen):
    """Who the build's pod is, to the cluster and to the people who look at it."""

    service_account: Name | None = None
    """For workload identity; its API token is not mounted."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    annotations: dict[LabelKey, Text] = Field(default_factory=dict)
    image_pull_secrets: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _not_ours(self) -> Self:
        for key in (*self.labels, *self.annotations):
            if key.partition("/")[0].endswith(("crabpot.dev", "kubernetes.io", "k8s.io")) and "/" in key:
                raise ValueError(f"{key!r}: keys of crabpot.dev and kubernetes.io are set by crabpot and Kubernetes only")
        return self


class MountedSecret(Frozen):
    """A secret that a Dockerfile mounts by `RUN --mount=type=secret,id=…`."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
    value: SecretValue


class GitCredentials(Frozen):
    """A Secret with `username` and `password`, or with `token`."""

    secret: Name
    kind: Literal["password", "token"] = "password"


class S3Credentials(Frozen):
    """A Secret with `access_key_id` and `secret_access_key`."""

    secret: Name


class Secrets(Frozen):
    """Secrets by name; their values never pass through crabpot's records."""

    docker_config: SecretValue | None = None
    """A docker config.json, by which Kaniko pulls and pushes."""
    google_key: SecretValue | None = None
    """A Google service account's key file, mounted and named by GOOGLE_APPLICATION_CREDENTIALS."""
    git: GitCredentials | None = None
    s3: S3Credentials | None = None
    """For a store where workload identity is not to be had."""
    mounts: tuple[MountedSecret, ...] = ()


class Registries(Frozen):
    """How registries are reached."""

    map: dict[RegistryHost, tuple[str, ...]] = Field(default_factory=dict)
    """Registry -> the registries (with an optional path) to pull from instead, in order."""
    mirrors: tuple[str, ...] = ()
    """Mirrors of the default registry."""
    insecure: tuple[RegistryHost, ...] = ()
    """Registries spoken to over plain HTTP."""
    skip_tls_verify: tuple[RegistryHost, ...] = ()
    certificates: dict[RegistryHost, SecretValue] = Field(default_factory=dict)
    """Registry -> the Secret's key that holds its CA certificate (PEM)."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for target in (*self.mirrors, *(target for targets in self.map.values() for target in targets)):
            host, _, path = target.partition("/")
            parse_registry(host)
            if path:
                parse_repository(path)
        return self


class Resources(Frozen):
    """What the build's container is given: requests and limits are equal for memory, CPU is a request with the same limit."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    ephemeral_storage: Memory | None = None


class Deadlines(Frozen):
    """How long a build may stay in each state; unset ones come from the project."""

    queued: Duration | None = None
    pending: Duration | None = None
    running: Duration | None = None
    publishing: Duration | None = None


class BuildRequest(Frozen):
    """One image to be built, with all its tags, from one source."""

    schema_version: Literal[1] = SCHEMA_VERSION
    project: Project
    source: Source
    dockerfile: RelativePath = "Dockerfile"
    destinations: tuple[Image, ...] = ()
    """The first names the image; further tags of its repository are set after the push; other repositories are pushed too."""
    push: bool = True
    tar: TarOutput | None = None
    build_args: dict[Variable, Text | SecretValue] = Field(default_factory=dict)
    target: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")] | None = None
    labels: dict[Annotated[str, StringConstraints(pattern=r"^[^\s=\x00]{1,255}$")], Text] = Field(default_factory=dict)
    platforms: tuple[
        Annotated[str, StringConstraints(pattern=r"^linux/(386|amd64|arm|arm64|loong64|mips64le|ppc64le|riscv64|s390x)(/v[0-9]+)?$")], ...
    ] = ("linux/amd64",)
    cache: Cache | None = None
    placement: Placement = unless_given(Placement())
    identity: Identity = unless_given(Identity())
    environment: dict[Variable, Text] = Field(default_factory=dict)
    """For the executor's process: HTTP_PROXY, HTTPS_PROXY, NO_PROXY and the like."""
    secrets: Secrets = unless_given(Secrets())
    registries: Registries = unless_given(Registries())
    resources: Resources = unless_given(Resources())
    deadlines: Deadlines = unless_given(Deadlines())
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Within the project: a point is worth a minute of waiting."""
    concurrency_key: Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$")] | None = None
    """Free text, as `repo@branch`: of the project's builds with the same key only so many run at once (`max_builds_per_key`, 1)."""
    flags: dict[str, str] = Field(default_factory=dict)
    """Further Kaniko flags, by name without the dashes; see docs/requests.md for those that are allowed."""

    max_platforms: ClassVar[int] = 1

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        given = [ImageReference.parse(text) for text in self.destinations]
        if any(reference.digest or not reference.tag for reference in given):
            raise ValueError("destinations: each needs a tag and no digest, as registry.example.com/team/app:1")
        if len(set(self.destinations)) < len(given):
            raise ValueError("destinations: the same image is named twice")
        if self.push and not given:
            raise ValueError("destinations: name at least one image to push, or set push to false")
        if not self.push and not (given and self.tar):
            raise ValueError("push: without a push, a destination (the image's name in the tar) and `tar` are needed")
        if len(self.platforms) != 1:
            raise ValueError("platforms: exactly one platform for now")
        for reference in given[1:]:
            if reference.name != given[0].name and not self.is_fixed(reference):
                raise ValueError(
                    f"destinations: {reference} is in another repository than the first, where only tags that never move can be set: "
                    "one with the commit in it, the Git tag, or a full version as 1.2.3"
                )
        for name in self.environment:
            if RESERVED_ENVIRONMENT.fullmatch(name):
                raise ValueError(
                    f"environment: {name} steers the executor and cannot be set here; see docs/requests.md for the field that says it"
                )
        for name, value in self.build_args.items():
            if isinstance(value, str) and SECRET_LOOKING.search(name):
                raise ValueError(
                    f"build_args: {name} looks like a secret; give it as {{secret, key}}, or better mount it by secrets.mounts (build arguments stay in the image's history)"
                )
            if not isinstance(value, str) and (RESERVED_ENVIRONMENT.fullmatch(name) or name in self.environment):
                raise ValueError(
                    f"build_args: {name} from a Secret reaches the executor as a variable of that name, which is taken; use another name"
                )
        for name, text in self.environment.items():
            if SECRET_LOOKING.search(name) or re.search(r"://[^/\s]*:[^/\s]*@", text):
                raise ValueError(f"environment: {name} holds or looks like a secret; secrets are named under `secrets`")
        for name, text in self.flags.items():
            allowed = EXTRA_FLAGS.get(name)
            if allowed is None:
                raise ValueError(f"flags: {name!r} is not allowed; allowed are {', '.join(sorted(EXTRA_FLAGS))}")
            if not allowed.fullmatch(text):
                raise ValueError(f"flags: {name} takes {allowed.pattern}, not {text!r}")
        return self

    @cached_property
    def images(self) -> tuple[ImageReference, ...]:
        return tuple(ImageReference.parse(text) for text in self.destinations)

    @property
    def capacity_class(self) -> str:
        given = self.placement.capacity_class if "placement" in self.model_fields_set else None
        return given or self.platforms[0].split("/")[1]

    @property
    def written(self) -> tuple[str, ...]:
        """The registries that the build pushes to or caches in, in order."""
        hosts = {image.registry for image in self.images} if self.push else set()
        if self.cache:
            hosts.add(ImageReference.parse(self.cache.repository).registry)
        return tuple(sorted(hosts))

    @property
    def lane(self) -> str:
        """What it waits among: builds that write to the same registries, with the same concurrency key."""
        return f"{','.join(self.written)}|{self.concurrency_key or ''}"

    @property
    def commit(self) -> str | None:
        return self.source.commit if isinstance(self.source, GitSource) else None

    @property
    def ref(self) -> str | None:
        return self.source.ref if isinstance(self.source, GitSource) else None

    def is_fixed(self, reference: ImageReference) -> bool:
        return is_fixed(reference.tag or "latest", commit=self.commit, ref=self.ref)

    def to_json(self) -> str:
        """The wire form: what was given, and always the schema's version."""
        return f'{{"schema_version":{SCHEMA_VERSION},{self.__pydantic_serializer__.to_json(self, exclude_unset=True, exclude=_VERSION_FIELD).decode()[1:]}'

    @classmethod
    def parse(cls, given: Any) -> Self:
        """Validate a mapping or a JSON text; RequestInvalid names each bad field, what was given and what is allowed."""
        try:
            return cls.model_validate_json(given) if isinstance(given, str | bytes | bytearray) else cls.model_validate(given)
        except ValidationError as error:
            raise RequestInvalid(problems_of(error)) from None


def problems_of(error: ValidationError) -> list[Problem]:
    """Pydantic's findings as ours: the path as `build_args.NAME`, and nothing that looks like a secret repeated."""
    return [_problem(detail) for detail in error.errors(include_url=False, include_context=False)]


def _problem(detail: ErrorDetails) -> Problem:
    # pydantic names the branch of a union in the path; people know only the field.
    branches = (
        {"git", "host_path", "claim", "config_map", "tarball"} if detail["loc"][:1] == ("source",) else {"constrained-str", "SecretValue"}
    )
    path = ".".join(str(part) for number, part in enumerate(detail["loc"]) if not (number > 0 and part in branches))
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error" and not path:
        path, _, message = message.partition(": ")
    given = detail["input"]
    if detail["type"] == "missing":
        shown, message = "nothing", "must be given"
    elif isinstance(given, dict) or SECRET_LOOKING.search(path):
        shown = "a value not shown here"
    else:
        shown = re.sub(r"://[^/\s]*@", "://…@", json.dumps(given, default=str))[:120]
    return Problem(path or "request", shown, message)
