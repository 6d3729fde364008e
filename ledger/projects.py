"""The projects file: which repositories are built into which images, by which rules, within which limits and policy.

YAML, validated with line numbers. It names secrets (a variable, a file, a Kubernetes Secret) and never holds one, so that it can be
stored in the ledger, where every producer finds its project's policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from ledger.access import RegistryAccess
from ledger.documents import compose_yaml, read_yaml
from ledger.errors import Problem, ProjectsInvalid, RequestInvalid
from ledger.fields import CloneUrl, Frozen, Name, Project, RegistryHost
from ledger.policy import Policy, pattern_of
from ledger.references import ImageReference, branch_of, git_tag_of, parse_tag, tag_from
from ledger.request import BuildRequest, Deadlines, Resources, problems_of
from ledger.retention import Retention
from ledger.site import SecretSource, Site

_PLACES = {"sha": "0" * 40, "short_sha": "0" * 12, "branch": "main", "tag": "v1"}


def _template(text: str) -> str:
    try:
        parse_tag(text.format_map(_PLACES))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{text!r} must be an image tag with {{sha}}, {{short_sha}}, {{branch}} or {{tag}} in it ({error})") from None
    return text


def _bare_image(text: str) -> str:
    reference = ImageReference.parse(text)
    if reference.tag or reference.digest:
        raise ValueError(f"{text!r} must have no tag or digest: tags are listed under `tags`")
    return text


def _filled(template: str, values: dict[str, str]) -> str:
    """A concurrency key with {branch} and the like in it, as tags have them."""
    try:
        return template.format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        raise RequestInvalid([Problem("concurrency_key", repr(template), f"may have {', '.join(values)} in braces ({error})")]) from None


class Rule(Frozen):
    """Which refs are built into which image. The first rule of an image that matches a ref is used."""

    ref: str
    """A full ref with `*` (within a path part) or `**`, as refs/heads/main or refs/tags/v*."""
    image: Annotated[str, AfterValidator(_bare_image)]
    tags: Annotated[tuple[Annotated[str, AfterValidator(_template)], ...], Field(min_length=1)] = ("{sha}",)
    build: dict[str, Any] = {}
    """Further fields of the request (docs/requests.md): dockerfile, build_args, cache, resources, …"""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.ref.startswith("refs/"):
            raise ValueError("ref must begin with refs/, as refs/heads/main")
        for name in ("project", "destinations", "schema_version"):
            if name in self.build:
                raise ValueError(f"build.{name} is set by the project and its rules")
        return self


class ProjectSettings(Frozen):
    """One project of the projects file."""

    repository: CloneUrl | None = None
    """The clone URL; never taken from a webhook's payload."""
    names: tuple[str, ...] = ()
    """The repository's full names at its forge (owner/name), by which webhooks find the project; by default the URL's path."""
    namespace: Name | None = None
    """Where its pods run, if not in CRABPOT_NAMESPACE."""
    webhook_secret: SecretSource | None = None
    rules: tuple[Rule, ...] = ()
    policy: Policy = Policy()
    max_builds: Annotated[int, Field(ge=0)] | None = None
    """How many of its pods may exist at once; unset: only the global limit holds."""
    max_builds_per_key: Annotated[int, Field(ge=1)] = 1
    """How many builds of one `concurrency_key` may run at once."""
    max_queued: Annotated[int, Field(ge=1)] | None = None
    """How many of its builds may wait; beyond it a submit is refused, to be tried again. Unset: any number."""
    supersede: Literal["queued", "running", "never"] = "queued"
    """What a newer push of the same image from the same branch ends: an older build that waits, also one that runs, or none."""
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Its share of slots beside other projects'."""
    deadlines: Deadlines = Deadlines()
    resources: Resources = Resources()
    registries: dict[RegistryHost, RegistryAccess] = {}
    """How workers read and tag; what Kaniko uses is named by the request's `secrets`."""
    retention: tuple[Retention, ...] = ()
    """Which old images go; by default none."""
    build: dict[str, Any] = {}
    """Fields of the request for all rules."""

    @model_validator(mode="after")
    def _rules_make_requests(self) -> Self:
        for number, rule in enumerate(self.rules):
            if self.repository is None:
                raise ValueError("repository: a project with rules needs its clone URL")
            ref = rule.ref.replace("**", "x").replace("*", "x")
            try:
                self.request("x", rule, ref, "0" * 40)
            except RequestInvalid as error:
                raise ValueError(f"rules.{number}: {error}") from None
        return self

    @property
    def forge_names(self) -> tuple[str, ...]:
        if self.names or not self.repository:
            return self.names
        path = self.repository.split("://", 1)[1].partition("/")[2]
        return (path.strip("/").removesuffix(".git"),)

    @property
    def allowed(self) -> Policy:
        """The policy with what the project itself lists: its rules' images may be pushed, its registries' plain HTTP used."""
        images = tuple(dict.fromkeys(rule.image for rule in self.rules))
        insecure = tuple(host for host, access in self.registries.items() if access.insecure)
        return self.policy.model_copy(
            update={
                "destinations": (*self.policy.destinations, *images),
                "insecure_registries": (*self.policy.insecure_registries, *insecure),
            }
        )

    def request(self, name: str, rule: Rule, ref: str, commit: str) -> BuildRequest:
        """The request that a push of `commit` to `ref` makes by a rule."""
        values = {
            "sha": commit,
            "short_sha": commit[:12],
            "branch": tag_from(branch_of(ref) or git_tag_of(ref) or ref),
            "tag": tag_from(git_tag_of(ref) or branch_of(ref) or ref),
        }
        fields: dict[str, Any] = {**self.build, **rule.build}
        insecure = [host for host, access in self.registries.items() if access.insecure]
        if insecure and "registries" not in fields:
            fields["registries"] = {"insecure": insecure}
        source = {"kind": "git", "url": self.repository, "ref": ref, "commit": commit, **fields.pop("source", {})}
        if isinstance(fields.get("concurrency_key"), str):
            fields["concurrency_key"] = _filled(fields["concurrency_key"], values)
        tags = dict.fromkeys(tag.format_map(values) for tag in rule.tags)
        return BuildRequest.parse({**fields, "project": name, "source": source, "destinations": [f"{rule.image}:{tag}" for tag in tags]})

    def requests(self, name: str, ref: str, commit: str) -> Iterator[BuildRequest]:
        """The requests that a push makes: for each image, by its first rule that matches."""
        seen: set[str] = set()
        for rule in self.rules:
            if rule.image not in seen and pattern_of(rule.ref)(ref):
                seen.add(rule.image)
                yield self.request(name, rule, ref, commit)


class Limits(Frozen):
    """Limits over all projects."""

    max_builds: Annotated[int, Field(ge=0)] = 20
    """How many pods of ours may exist at once."""
    classes: dict[Name, Annotated[int, Field(ge=0)]] = {}
    """The same for each capacity class: an architecture (arm64), or what requests name in placement.capacity_class."""


class Projects(Site):
    """The projects file as a whole."""

    version: Literal[1] = 1
    limits: Limits = Limits()
    projects: dict[Project, ProjectSettings]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        owners: dict[str, str] = {}
        for project, given in self.projects.items():
            for name in given.forge_names:
                other = owners.setdefault(name.lower(), project)
                if other != project:
                    raise ValueError(f"projects.{project}: the forge name {name} belongs to project {other} already; set `names` apart")
        return self

    def by_forge_name(self, name: str) -> tuple[str, ProjectSettings] | None:
        """The project of a repository as its forge calls it (owner/name)."""
        for project, given in self.projects.items():
            if name.lower() in (known.lower() for known in given.forge_names):
                return project, given
        return None


def version_of(stored: str) -> str:
    """A short digest of a stored project, by which a producer knows whether its copy is current."""
    return hashlib.sha256(stored.encode()).hexdigest()[:16]


def read_projects(path: Path) -> Projects:
    """Read the projects file; ProjectsInvalid names each problem's line."""
    try:
        return parse_projects(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectsInvalid(f"{path} cannot be read ({error}); set CRABPOT_PROJECTS to the projects file") from None


def parse_projects(text: str, name: str = "projects.yaml") -> Projects:
    try:
        root, data = compose_yaml(text), read_yaml(text)
    except yaml.YAMLError as error:
        raise ProjectsInvalid(f"{name}: not YAML: {error}") from None
    try:
        return Projects.model_validate({} if data is None else data)
    except ValidationError as error:
        problems = problems_of(error)
        raise ProjectsInvalid(
            [Problem(f"{name}:{_line(root, problem.path)}: {problem.path}", problem.given, problem.allowed) for problem in problems]
        ) from None


def _line(node: yaml.Node | None, path: str) -> int:
    """The line (from 1) of the deepest part of a path that the file has."""
    line = node.start_mark.line + 1 if node else 1
    for part in path.split("."):
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line
