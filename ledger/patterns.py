r"""Patterns of tags and repositories that people write: anchored at both ends, and matched in time linear to the text, whatever they write.

A glob (`*`, `?`; in repositories `*` stays within a name and `**` does not), or a regular expression between slashes, as `/v\d+(\.\d+)*/`.
Expressions are RE2's, which never go back: no look-around, no references to groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import cast

Matcher = Callable[[str], object]
"""True, or something as good, for what is meant; None or False for the rest."""
_TAG_GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,200}")
_REPOSITORY_GLOB = re.compile(r"[A-Za-z0-9_.:\[\]/*?-]{1,500}")
_WORDS = {"branch": "(?P<branch>.+)", "sha": "[0-9a-f]{7,64}+", "short_sha": "[0-9a-f]{7,64}+", "number": "[0-9]{1,20}+"}
"""Of these only the branch is ever tried at another length, so that a tag's 128 letters cost little, whatever they are."""


@lru_cache(maxsize=1024)
def tag_pattern(text: str) -> Matcher:
    """Whether a tag is meant. ValueError says what is wrong with the pattern."""
    if expression := _expression(text):
        return expression
    if not _TAG_GLOB.fullmatch(text):
        raise ValueError(
            f"the pattern {text[:80]!r} must be made of a tag's letters, '*' and '?', or be a regular expression between slashes"
        )
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", text))
    # What follows a `*` is taken where it comes first, and that is final: enough for globs, and it never goes back.
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(f"{first}{middle}.*{rest[-1]}" if rest else first).fullmatch


@lru_cache(maxsize=1024)
def repository_pattern(text: str) -> Matcher:
    """Whether a repository (`registry/path`) is meant. ValueError says what is wrong with the pattern."""
    if expression := _expression(text):
        return expression
    if not _REPOSITORY_GLOB.fullmatch(text) or "/" not in text:
        raise ValueError(f"the pattern {text[:80]!r} must name a registry and a repository, as registry.example.com/team/*")
    if is_plain(text):
        return text.__eq__
    words = (
        "[^/]*" if word == "*" else ".*" if word == "**" else re.escape(word).replace(r"\?", "[^/]")
        for word in re.split(r"(\*\*|\*)", text)
    )
    return _linear("".join(words), text)


def is_plain(pattern: str) -> bool:
    """Whether a repository pattern is a repository's name."""
    return not pattern.startswith("/") and not set("*?") & set(pattern)


@lru_cache(maxsize=256)
def branch_template(text: str) -> Callable[[str], str | None]:
    """The branch that a tag names by a template as `{branch}-{short_sha}`, None where it has another form. ValueError for a template without it.

    Words: `{branch}`, `{sha}` and `{short_sha}` (7 to 64 hexadecimal digits), `{number}`.
    """
    parts = re.split(r"\{([a-z_]*)\}", text)
    if parts[1::2].count("branch") != 1 or not set(parts[1::2]) <= set(_WORDS) or any(set("{}") & set(part) for part in parts[::2]):
        raise ValueError(f"{text[:80]!r} must hold {{branch}} once, and of other words only {{sha}}, {{short_sha}} and {{number}}")
    match = re.compile("".join(_WORDS[part] if number % 2 else re.escape(part) for number, part in enumerate(parts))).fullmatch

    def branch_of(tag: str) -> str | None:
        found = match(tag)
        return found["branch"] if found else None

    return branch_of


def _expression(text: str) -> Matcher | None:
    if len(text) < 3 or not (text.startswith("/") and text.endswith("/")):
        return None
    return _linear(text[1:-1], text)


def _linear(expression: str, text: str) -> Matcher:
    import re2  # only where somebody uses it: it is a library of its own

    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return cast("Matcher", re2.compile(expression, options).fullmatch)
    except re2.error as error:
        raise ValueError(f"{text[:80]!r} is no regular expression of RE2: {_words(error)}") from None


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
