"""Kaniko's flags, read as its own parser reads them, into what the executor does. Pure.

Each flag is honoured, or accepted where Buildah does nothing else anyway, or refused by name; none is ignored. Accepted:
how the log looks (a runner stamps its lines), `--cleanup` (a run leaves nothing behind), how often an image's files are unpacked again
(a part of pulling here). Refused are values that would need another way of building, such as `--snapshot-mode=redo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worker.executor.errors import SetupError

_SHORT = {"c": "context", "f": "dockerfile", "d": "destination"}
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
_SWITCHES = frozenset({
    "no-push", "cache", "insecure", "insecure-pull", "skip-tls-verify", "skip-tls-verify-pull", "single-snapshot", "reproducible",
    "push-ignore-immutable-tag-errors", "skip-push-permission-check",
})  # fmt: skip
_TEXTS = frozenset({
    "context", "context-sub-path", "dockerfile", "target", "custom-platform", "tar-path", "digest-file", "cache-repo", "cache-ttl",
    "image-format", "compression",
})  # fmt: skip
_NUMBERS = frozenset({
    "push-retry", "image-download-retry", "image-fs-extract-retry", "compression-level",
})  # fmt: skip
_LISTS = frozenset({
    "destination", "build-arg", "label", "annotation", "secret", "git", "insecure-registry", "skip-tls-verify-registry",
    "registry-certificate", "registry-map", "registry-mirror",
})  # fmt: skip
_OUTPUT = frozenset({"verbosity", "log-format"})
_NATURE: Mapping[str, str] = {
    # Flag -> the value that says what Buildah does in any case.
    "snapshot-mode": "full",
    "use-new-run": "false",
    "cache-copy-layers": "true",
    "cache-run-layers": "true",
    "compressed-caching": "true",
    "skip-unused-stages": "true",
    "ignore-var-run": "true",
}
_PLAIN = frozenset(("log-timestamp", "cleanup"))
_KNOWN = _SWITCHES | _TEXTS | _NUMBERS | _LISTS | _OUTPUT | _PLAIN | frozenset(_NATURE)
_BOOLEAN = _SWITCHES | _PLAIN | frozenset(name for name, value in _NATURE.items() if value in _BOOLEANS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Git:
    """How a Git context is cloned; always one branch (`single-branch`), unless its commit is not on it."""

    branch: str | None = None
    depth: int = 0
    """0: the whole history."""
    submodules: bool = False
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret that a RUN may mount: from a file or from a variable."""

    id: str
    file: str | None = None
    variable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is to be built, and where it goes."""

    context: str = "/workspace/"
    sub_path: str = ""
    dockerfile: str = "Dockerfile"
    destinations: tuple[str, ...] = ()
    push: bool = True
    tar: str | None = None
    digest_file: str | None = None
    platform: str | None = None
    target: str | None = None
    build_args: tuple[str, ...] = ()
    """NAME=VALUE, or NAME whose value is the variable's of that name."""
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    git: Git = Git()
    cache: str | None = None
    """The repository that holds layers, if there is to be a cache."""
    cache_ttl: str | None = None
    """As Go writes durations."""
    layers: bool = False
    """A layer for each instruction."""
    reproducible: bool = False
    image_format: str = "oci"
    compression: str | None = None
    compression_level: int | None = None
    insecure: frozenset[str] = frozenset()
    """Registries spoken to over plain HTTP, or with certificates that nobody vouches for."""
    insecure_push: bool = False
    insecure_pull: bool = False
    unverified: frozenset[str] = frozenset()
    """The part of `insecure` that is spoken to over TLS."""
    certificates: Mapping[str, str] = field(default_factory=dict)
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Registry -> where to pull from first, in order."""
    push_retries: int = 0
    pull_retries: int = 0
    check_permission: bool = True
    ignore_immutable: bool = False


def parse_flags(arguments: Sequence[str]) -> Options:
    """Read the arguments. SetupError for a flag that is unknown, malformed, or that this executor cannot honour."""
    given: dict[str, list[str]] = {}
    for name, value in _split(arguments):
        given.setdefault(name, []).append(value)
    for name, value in _NATURE.items():
        for text in given.get(name, ()):
            if _BOOLEANS.get(text, text) != _BOOLEANS.get(value, value):
                raise _unable(f"--{name}={text}")
    return _options(given)


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of each; a switch without a value is `true`, other flags may take the next argument."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument in ("-", "--"):
            raise SetupError(f"unknown command {argument!r} for {'executor'!r}")
        name, equals, value = argument.lstrip("-").partition("=")
        name = name if argument.startswith("--") else _SHORT.get(name, name)
        if name not in _KNOWN:
            raise _unable(f"--{name}")
        if not equals:
            value = "true" if name in _BOOLEAN else next(rest, "")
        if name in _BOOLEAN and value not in _BOOLEANS:
            raise SetupError(f'invalid argument "{value}" for "--{name}" flag: must be true or false')
        yield name, value


def _unable(flag: str) -> SetupError:
    return SetupError(f"this executor builds with Buildah and cannot honour {flag}; leave it out, or set CRABPOT_CLUSTER=kubernetes")


def _options(given: Mapping[str, list[str]]) -> Options:
    def text(name: str) -> str | None:
        return given[name][-1] or None if name in given else None

    def switch(name: str) -> bool:
        return _BOOLEANS[given[name][-1]] if name in given else False

    def number(name: str) -> int:
        try:
            return int(text(name) or 0)
        except ValueError:
            raise SetupError(f'invalid argument "{text(name)}" for "--{name}" flag: must be a number') from None

    def several(name: str) -> tuple[str, ...]:
        return tuple(given.get(name, ()))

    push, tar, destinations = not switch("no-push"), text("tar-path"), several("destination")
    if push and not destinations:
        raise SetupError("you must provide --destination, or use --no-push")
    if len(several("target")) > 1:
        raise _unable("more than one --target")
    image_format, compression = text("image-format"), text("compression")
    if image_format not in (None, "docker", "oci") or compression not in (None, "gzip", "zstd"):
        raise SetupError("--image-format is docker or oci, and --compression gzip or zstd")
    if compression == "zstd" and (tar or image_format == "docker"):
        raise SetupError("--compression=zstd cannot be used with --tar-path or --image-format=docker, which know no such layers")
    if tar and image_format == "oci":
        raise SetupError("--tar-path writes a Docker tarball and cannot be used with --image-format=oci")
    cache = _cache(text("cache-repo"), destinations, push=push) if switch("cache") else None
    if cache and switch("single-snapshot"):
        raise _unable("--single-snapshot together with --cache")
    unverified = frozenset(several("skip-tls-verify-registry"))
    return Options(
        context=text("context") or Options().context,
        sub_path=text("context-sub-path") or "",
        dockerfile=text("dockerfile") or Options().dockerfile,
        destinations=destinations,
        push=push,
        tar=tar,
        digest_file=text("digest-file"),
        platform=text("custom-platform"),
        target=text("target"),
        build_args=several("build-arg"),
        labels=several("label"),
        annotations=several("annotation"),
        secrets=tuple(_secret(value) for value in several("secret")),
        git=_git(several("git")),
        cache=cache,
        cache_ttl=text("cache-ttl"),
        layers=bool(cache) or ("single-snapshot" in given and not switch("single-snapshot")),
        reproducible=switch("reproducible"),
        image_format=image_format or "oci",
        compression=compression,
        compression_level=number("compression-level") if text("compression-level") not in (None, "-1") else None,
        insecure=frozenset(_host(host) for host in several("insecure-registry")) | frozenset(_host(host) for host in unverified),
        insecure_push=switch("insecure") or switch("skip-tls-verify"),
        insecure_pull=switch("insecure-pull") or switch("skip-tls-verify-pull"),
        unverified=frozenset(_host(host) for host in unverified),
        certificates={
            _host(host): path for host, path in (_pair("registry-certificate", value) for value in several("registry-certificate"))
        },
        mirrors=_mirrors(several("registry-map"), several("registry-mirror")),
        push_retries=number("push-retry"),
        pull_retries=max(number("image-download-retry"), number("image-fs-extract-retry")),
        check_permission=not switch("skip-push-permission-check"),
        ignore_immutable=switch("push-ignore-immutable-tag-errors"),
    )


def _cache(repository: str | None, destinations: Sequence[str], *, push: bool) -> str:
    """Kaniko's own default where none is named: `cache` below the first destination."""
    if repository:
        if repository.startswith("oci:"):
            raise _unable(f"--cache-repo={repository}")
        return repository
    if not push:
        raise SetupError("cache flags invalid: if using cache with --no-push, specify cache repo with --cache-repo")
    name, _, last = destinations[0].partition("@")[0].rpartition("/")
    return f"{name}/{last.partition(':')[0]}/cache"


def _mirrors(maps: Sequence[str], mirrors: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for value in maps:
        for pair in value.split(";"):
            host, target = _pair("registry-map", pair)
            found.setdefault(_host(host), []).append(target)
    if mirrors:
        found.setdefault("docker.io", []).extend(mirrors)
    return {host: tuple(targets) for host, targets in found.items()}


def _host(host: str) -> str:
    """Docker Hub has a name of its own in Kaniko, and another in Buildah."""
    return "docker.io" if host == "index.docker.io" else host


def _pair(name: str, value: str) -> tuple[str, str]:
    key, equals, rest = value.partition("=")
    if not equals:
        raise SetupError(f'invalid argument "{value}" for "--{name}" flag: expect key=value')
    return key, rest


def _secret(value: str) -> Secret:
    fields = dict(_pair("secret", part) for part in value.split(","))
    kind, source, variable = fields.pop("type", None), fields.pop("src", None) or fields.pop("source", None), fields.pop("env", None)
    name = fields.pop("id", "")
    if fields or not name or kind not in (None, "file", "env") or (source and variable) or (kind == "file" and variable):
        raise SetupError(f'invalid argument "{value}" for "--secret" flag: expect id=ID[,src=/file][,env=VAR][,type=file|env]')
    if variable or kind == "env":
        return Secret(id=name, variable=variable or source or name)
    return Secret(id=name, file=source or name)


def _git(values: Sequence[str]) -> Git:
    fields = dict(_pair("git", value) for value in values)
    switches = {name: fields.pop(name, "false") for name in ("single-branch", "recurse-submodules", "insecure-skip-tls")}
    branch, depth = fields.pop("branch", None), fields.pop("depth", "0")
    if fields:
        raise _unable(f"--git={next(iter(fields))}")
    if not depth.isdigit() or not _BOOLEANS.keys() >= set(switches.values()):
        raise SetupError(f'invalid argument "{",".join(values)}" for "--git" flag')
    return Git(
        branch=branch,
        depth=int(depth),
        submodules=_BOOLEANS[switches["recurse-submodules"]],
        insecure=_BOOLEANS[switches["insecure-skip-tls"]],
    )
