"""What is taken out of log lines and messages before they are stored: terminal colours, and what looks like a secret. Pure.

The values of Secrets are not known to the watcher, which may not read them; what is known is how credentials look.
"""

from __future__ import annotations

import re

MARK = "[redacted]"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SECRETS = (
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s:@]*:[^/\s@]+@"), rf"\1{MARK}@"),  # user:password in a URL
    (re.compile(r"(?i)\b((?:proxy-)?authorization\s*[:=]\s*)(?:\w+\s+)?[^\s,;'\"]+"), rf"\1{MARK}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/_.=~-]{16,}"), rf"\1 {MARK}"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_\w{20,}\b|\bglpat-[\w-]{20,}"), MARK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MARK),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"), MARK),  # a JSON web token
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), MARK),
    (
        re.compile(
            r"(?i)\b([\w.-]*(?:passw(?:or)?d|secret|api[_-]?key|access[_-]?token|auth[_-]?token|private[_-]?key)[\w.-]*[\"']?\s*[=:]\s*[\"']?)(?!\s|\$|\[redacted\])[^\s\"',;&]+"
        ),
        rf"\1{MARK}",
    ),
)
_LONGEST = 16_384
"""Characters of one line that are kept."""


def clean(line: str) -> str:
    """A line as it is stored."""
    text = _CONTROL.sub("", _ANSI.sub("", line))
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … ({len(text) - _LONGEST} characters more)"
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
