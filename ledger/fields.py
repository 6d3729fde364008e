"""The kinds of text that requests, projects and settings are made of, each refused where it is wrong with what would be right."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from ledger.quantities import parse_cpu, parse_duration, parse_memory
from ledger.references import ImageReference, parse_registry


def checked(parse: Any) -> AfterValidator:
    """Keep the text as given, once `parse` accepts it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or "://" in path:
        raise ValueError("must be a path below the context, without '..'")
    return path


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path or ":" in path:
        raise ValueError("must be an absolute path without '..' or ':'")
    return path


def _git_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@#?]+/[^\s@#?]+", url):
        raise ValueError("must be an http(s) clone URL without a user, password, query or fragment; credentials come from `secrets.git`")
    return url


def tarball_url(url: str) -> str:
    if not re.fullmatch(r"(https|gs|s3)://[^\s/@#]+/[^\s@#]+", url):
        raise ValueError("must be https://, gs:// or s3:// and name a .tar.gz, without a user or password")
    return url


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""The name of a Kubernetes object (RFC 1123 subdomain)."""
Project = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Key = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$")]
LabelKey = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$", max_length=316)
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=65536)]
RelativePath = Annotated[str, AfterValidator(_relative), StringConstraints(max_length=1024)]
AbsolutePath = Annotated[str, AfterValidator(_absolute), StringConstraints(max_length=1024)]
Image = Annotated[str, checked(ImageReference.parse)]
RegistryHost = Annotated[str, checked(parse_registry)]
Memory = Annotated[str, checked(parse_memory)]
Cpu = Annotated[str, checked(parse_cpu)]
CloneUrl = Annotated[str, AfterValidator(_git_url)]
Duration = Annotated[str, checked(parse_duration)]
"""A length of time as `90s`, `30m`, `6h` or `7d`."""


class Frozen(BaseModel):
    """A value that never changes once made, and that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def unless_given(value: Frozen) -> Any:
    """A default that all share, since it never changes: making six of them anew would take a third of a submit's time."""
    return Field(default_factory=lambda: value)
