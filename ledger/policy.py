"""What a project's builds may use. Everything that reaches beyond the project is denied until its policy lists it.

Pure: `check` compares a valid request with a policy. It runs in the producer, before anything is queued.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from ledger.errors import PolicyDenied, Problem
from ledger.fields import Cpu, Frozen, Memory
from ledger.promotion import PromotionRequest
from ledger.quantities import parse_cpu, parse_memory
from ledger.references import ImageReference
from ledger.request import (
    BuildRequest,
    ClaimSource,
    ConfigMapSource,
    GitSource,
    HostPathSource,
    Placement,
    Registries,
    SecretValue,
    TarballSource,
)

_NAME_SECRETS = frozenset({"secrets", "build_args", "registries", "identity"})
"""The fields of a request that may name Secrets."""


class Policy(Frozen):
    """What requests of a project may name. Patterns: `*` is any text without '/', `**` any text; otherwise exact."""

    destinations: tuple[str, ...] = ()
    """Images (registry/repository) that may be pushed, and cached to."""
    promoted: tuple[str, ...] = ()
    """Images (registry/repository) besides the project's own destinations that may be promoted into them."""
    sources: tuple[str, ...] = ()
    """Git and tarball URLs besides the project's own repository."""
    host_paths: tuple[str, ...] = ()
    """Folders of nodes, with all that is below them."""
    claims: tuple[str, ...] = ()
    config_maps: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    node_names: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    """Keys that a node selector may use."""
    tolerations: tuple[str, ...] = ()
    """Taint keys that may be tolerated."""
    affinity: bool = False
    runtime_classes: tuple[str, ...] = ()
    priority_classes: tuple[str, ...] = ()
    capacity_classes: tuple[str, ...] = ()
    """Besides the platforms' architectures."""
    insecure_registries: tuple[str, ...] = ()
    """Registries that may be used over plain HTTP or without checking certificates."""
    mirrors: tuple[str, ...] = ()
    """Registries that others may be mapped to or mirrored by."""
    max_cpu: Cpu | None = None
    max_memory: Memory | None = None
    """Also the cap up to which memory is doubled after a build ran out of it."""


def check(request: BuildRequest, policy: Policy, repository: str | None) -> None:
    """Raise PolicyDenied with one problem per field that the policy does not allow."""
    problems = [
        Problem(path, repr(given), f"the project's policy does not allow it; add it to policy.{field} in the projects file")
        for path, given, field in _uses(request, repository)
        if not _allows(policy, field, given)
    ]
    if policy.max_memory and request.resources.memory and parse_memory(request.resources.memory) > parse_memory(policy.max_memory):
        problems.append(Problem("resources.memory", request.resources.memory, f"the project allows at most {policy.max_memory}"))
    if policy.max_cpu and request.resources.cpu and parse_cpu(request.resources.cpu) > parse_cpu(policy.max_cpu):
        problems.append(Problem("resources.cpu", request.resources.cpu, f"the project allows at most {policy.max_cpu}"))
    if problems:
        raise PolicyDenied(problems)


def check_promotion(request: PromotionRequest, policy: Policy) -> None:
    """The same for a promotion: into the project's own destinations only, and from them or what `promoted` lists."""
    denied = "the project's policy does not allow it; add it to policy.{} in the projects file"
    problems = [
        Problem(f"targets.{number}", repr(image.name), denied.format("destinations"))
        for number, image in enumerate(request.images)
        if not _allows(policy, "destinations", image.name)
    ]
    if not any(_allows(policy, field, request.source.name) for field in ("destinations", "promoted")):
        problems.append(Problem("image", repr(request.source.name), denied.format("promoted")))
    if problems:
        raise PolicyDenied(problems)


def _allows(policy: Policy, field: str, given: str) -> bool:
    allowed = getattr(policy, field)
    if isinstance(allowed, bool):
        return allowed
    if field == "host_paths":
        return any(given == folder or given.startswith(folder.rstrip("/") + "/") for folder in allowed)
    return any(pattern_of(pattern)(given) for pattern in allowed)


def _uses(request: BuildRequest, repository: str | None) -> Iterator[tuple[str, str, str]]:
    """Every thing beyond the project that a request names: (path in the request, what it names, the policy's field)."""
    yield from _source_uses(request, repository)
    for number, image in enumerate(request.images):
        if request.push:
            yield f"destinations.{number}", image.name, "destinations"
    if request.cache:
        yield "cache.repository", ImageReference.parse(request.cache.repository).name, "destinations"
    if request.tar and request.tar.host_path:
        yield "tar.host_path", request.tar.host_path, "host_paths"
    if request.tar and request.tar.claim:
        yield "tar.claim", request.tar.claim, "claims"
    given = request.model_fields_set
    if not given.isdisjoint(_NAME_SECRETS):
        for path, secret in _secrets(request):
            yield path, secret, "secrets"
    if "placement" in given:
        yield from _placement_uses(request.placement)
    if "identity" in given and request.identity.service_account:
        yield "identity.service_account", request.identity.service_account, "service_accounts"
    if "registries" in given:
        yield from _registry_uses(request.registries)


def _placement_uses(placement: Placement) -> Iterator[tuple[str, str, str]]:
    if placement.node_name:
        yield "placement.node_name", placement.node_name, "node_names"
    for key in placement.node_selector:
        yield f"placement.node_selector.{key}", key, "node_labels"
    for number, toleration in enumerate(placement.tolerations):
        yield f"placement.tolerations.{number}", toleration.key or "every taint", "tolerations"
    if placement.affinity:
        yield "placement.affinity", "affinity", "affinity"
    if placement.runtime_class:
        yield "placement.runtime_class", placement.runtime_class, "runtime_classes"
    if placement.priority_class:
        yield "placement.priority_class", placement.priority_class, "priority_classes"
    if placement.capacity_class:
        yield "placement.capacity_class", placement.capacity_class, "capacity_classes"


def _registry_uses(registries: Registries) -> Iterator[tuple[str, str, str]]:
    for path, hosts in (("insecure", registries.insecure), ("skip_tls_verify", registries.skip_tls_verify)):
        for host in hosts:
            yield f"registries.{path}", host, "insecure_registries"
    for target in (*registries.mirrors, *(target for targets in registries.map.values() for target in targets)):
        yield "registries.mirrors", target, "mirrors"


def _source_uses(request: BuildRequest, repository: str | None) -> Iterator[tuple[str, str, str]]:
    match request.source:
        case GitSource(url=url) if url != repository:
            yield "source.url", url, "sources"
        case TarballSource(url=url, s3_endpoint=endpoint):
            yield "source.url", url, "sources"
            if endpoint:
                yield "source.s3_endpoint", endpoint, "sources"
        case HostPathSource(path=path):
            yield "source.path", path, "host_paths"
        case ClaimSource(claim=claim):
            yield "source.claim", claim, "claims"
        case ConfigMapSource(config_map=name):
            yield "source.config_map", name, "config_maps"


def _secrets(request: BuildRequest) -> Iterable[tuple[str, str]]:
    secrets = request.secrets
    named: list[tuple[str, SecretValue | None]] = [
        ("secrets.docker_config", secrets.docker_config),
        ("secrets.google_key", secrets.google_key),
        *((f"secrets.mounts.{mount.id}", mount.value) for mount in secrets.mounts),
        *((f"build_args.{name}", value) for name, value in request.build_args.items() if isinstance(value, SecretValue)),
        *((f"registries.certificates.{host}", value) for host, value in request.registries.certificates.items()),
    ]
    if secrets.git:
        yield "secrets.git", secrets.git.secret
    if secrets.s3:
        yield "secrets.s3", secrets.s3.secret
    yield from ((path, value.secret) for path, value in named if value)
    yield from (("identity.image_pull_secrets", name) for name in request.identity.image_pull_secrets)


@lru_cache(maxsize=4096)
def pattern_of(pattern: str) -> Callable[[str], bool]:
    """`*` is any text without `/`, `**` any text, anchored at both ends."""
    words = (("[^/]*" if word == "*" else ".*" if word == "**" else re.escape(word)) for word in re.split(r"(\*\*|\*)", pattern))
    compiled = re.compile("".join(words), re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None
