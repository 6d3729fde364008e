"""What a 401 asks for: WWW-Authenticate headers, read in time linear to their length, whoever wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_CHALLENGE = re.compile(r"""[\s,]*(?P<scheme>[!#$%&'*+.^_`|~\w-]+)(?:\s+(?=[^\s=,]+\s*=)|\s*(?=,|$))""", re.ASCII)
_PARAMETER = re.compile(r"""[\s,]*(?P<name>[!#$%&'*+.^_`|~\w-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s",]+))""", re.ASCII)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a 401 asks for; the scheme in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers (RFC 9110 11.6.1), in order; what cannot be read ends its header."""
    found: list[Challenge] = []
    for header in headers:
        at = 0
        while match := _CHALLENGE.match(header, at):
            at, parameters = match.end(), {}
            while parameter := _PARAMETER.match(header, at):
                at, quoted = parameter.end(), parameter["quoted"]
                parameters[parameter["name"].lower()] = parameter["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found.append(Challenge(match["scheme"].lower(), parameters))
    return found
