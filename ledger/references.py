"""Image references, digests and Git refs, parsed once at the edge, so that nothing later guesses with a regex of its own.

The grammar is distribution's (`reference.go`) and the OCI distribution specification's; Git's is `git check-ref-format`.
Unlike Docker, a registry must be named: a build queue that pushes to "app:1" pushes to somebody else's registry.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HEXADECIMAL = re.compile(r"[0-9a-f]{7,64}")
_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+(?:[-+_.][0-9A-Za-z.+_-]+)?")
_REF_BANNED = re.compile(r"[\x00-\x20\x7f~^:?*\[\\#\ud800-\udfff]|\.\.|@\{|//")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """`registry/repository[:tag][@digest]`, for example `registry.example.com:5000/team/app:1`."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @staticmethod
    @lru_cache(maxsize=1024)  # a request's references are looked at several times
    def parse(text: str) -> ImageReference:
        """Read a reference. ValueError says what is wrong and what would be right."""
        rest, at, digest = text.partition("@")
        if at:
            digest = parse_digest(digest)
        host, slash, path = rest.partition("/")
        if "://" in rest:
            raise ValueError("name the registry by its host name, without a scheme, as in registry.example.com/team/app:1")
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            raise ValueError("name the registry too, as in registry.example.com/team/app:1")
        path, colon, tag = path.partition(":")
        return ImageReference(parse_registry(host), parse_repository(path), parse_tag(tag) if colon else None, digest or None)

    @property
    def name(self) -> str:
        """Registry and repository, without tag or digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag (`latest` if there is none)."""
        return self.digest or self.tag or "latest"

    @property
    def mark(self) -> str:
        """How an image that somebody uses or keeps is named: its digest, which tags may leave, else its name and tag."""
        return self.digest or f"{marked_name(self.name)}:{self.reference}"

    def with_tag(self, tag: str) -> ImageReference:
        return ImageReference(self.registry, self.repository, tag)

    def with_digest(self, digest: str) -> ImageReference:
        return ImageReference(self.registry, self.repository, digest=digest)

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def marked_name(name: str) -> str:
    """A registry, or a repository with its registry, as marks name it. Who pins or runs an image may spell its host otherwise than a policy does."""
    host, slash, path = name.partition("/")
    return host.lower().removesuffix(":443").removesuffix(":80") + slash + path


def parse_mark(text: str) -> str:
    """The mark of an image that is named with its tag or digest, or a digest alone. ValueError: it names a whole repository."""
    if text.startswith("sha256:"):
        return parse_digest(text)
    image = ImageReference.parse(text)
    if not (image.tag or image.digest):
        raise ValueError(f"name a tag or a digest of it, as {image.name}:1 or {image.name}@sha256:…")
    return image.mark


def parse_target(text: str) -> str:
    """A registry, or a repository with its registry. ValueError."""
    if "/" not in text:
        return parse_registry(text)
    image = ImageReference.parse(text)
    if image.tag or image.digest:
        raise ValueError(f"name a registry or a repository, as {image.name}: a repository is meant with all its tags")
    return image.name


def parse_registry(text: str) -> str:
    """`host[:port]`, as a registry is named in image references."""
    host, port = text, ""
    if not text.endswith("]"):
        head, colon, tail = text.rpartition(":")
        host, port = (head, tail) if colon else (text, "")
        # One text for one registry: with leading zeros two names would be the same place.
        if colon and not (_PORT.fullmatch(port) and int(port) < 65536):
            raise ValueError(f"the port of the registry {text[:80]!r} must be a number from 1 to 65535")
    if not _HOST.fullmatch(host) or len(host) > 253 or (host.startswith("[") and not _is_ipv6(host[1:-1])):
        raise ValueError(f"the registry {text[:80]!r} must be a host name or address with an optional port, without a scheme")
    return text


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def parse_repository(text: str) -> str:
    if len(text) > 255 or not all(_COMPONENT.fullmatch(part) for part in text.split("/")):
        raise ValueError(
            f"the repository {text[:80]!r} must be lower-case names joined by '/', each of letters and digits with single '.', '_' or '-' between"
        )
    return text


def parse_tag(text: str) -> str:
    if not _TAG.fullmatch(text):
        raise ValueError(f"the tag {text[:80]!r} must be 1 to 128 letters, digits, '_', '.' or '-', not beginning with '.' or '-'")
    return text


def parse_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"the digest {text[:80]!r} must be 'sha256:' and 64 lower-case hexadecimal digits")
    return text


def parse_commit(text: str) -> str:
    if not _COMMIT.fullmatch(text):
        raise ValueError(
            f"the commit {text[:80]!r} must be a full SHA-1 or SHA-256 in lower-case hexadecimal digits (git rev-parse HEAD prints it)"
        )
    return text


@lru_cache(maxsize=1024)
def parse_git_ref(text: str) -> str:
    """A full ref name, as `refs/heads/main`; the rules are those of `git check-ref-format`, and no '#', which parts a context's URL from its ref."""
    parts = text.split("/")
    bad = (
        parts[0] != "refs"
        or len(parts) < 3
        or _REF_BANNED.search(text)
        or text.endswith((".", "/"))
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
        or len(text) > 1024
    )
    if bad:
        raise ValueError(
            f"the Git ref {text[:80]!r} must be a full name as refs/heads/main or refs/tags/v1, as `git check-ref-format` allows"
        )
    return text


def branch_of(ref: str | None) -> str | None:
    return ref.removeprefix("refs/heads/") if ref and ref.startswith("refs/heads/") else None


def git_tag_of(ref: str | None) -> str | None:
    return ref.removeprefix("refs/tags/") if ref and ref.startswith("refs/tags/") else None


def tag_from(text: str) -> str:
    """A branch's or Git tag's name as an image tag: what a tag cannot hold becomes '-', cut at 128 characters."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip(".-")[:128] or "unnamed"


def is_fixed(tag: str, *, commit: str | None, ref: str | None) -> bool:
    """Whether a tag names one source state for good, so that pushing it out of order cannot move it backwards.

    True for a tag with at least seven digits of the commit in it, for the Git tag being built, and for a full version (1.2.3).
    Everything else (`latest`, a branch, `1.2`) is taken as mutable and moved only in the ledger's order. So is what a branch's
    own name brings into a tag: a branch called `1.2.3`, or `0123abc-fix` after a commit, moves on with each push.
    """
    branch = tag_from(branch_of(ref) or "")
    words = set(_HEXADECIMAL.findall(tag)) - set(_HEXADECIMAL.findall(branch))
    if commit and any(commit.startswith(word) for word in words):
        return True
    git_tag = git_tag_of(ref)
    if git_tag is not None and tag == tag_from(git_tag):
        return True
    return _VERSION.fullmatch(tag) is not None and not (_VERSION.fullmatch(branch) and tag.startswith(branch))
