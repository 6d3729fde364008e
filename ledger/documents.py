"""YAML as people write it, read as the JSON that it stands for: no dates, bytes or sets out of plain words, and no key twice.

Plain YAML would make a date of `2026-11-24` and forget the first of two projects of one name without a word.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import yaml

_DATE = "tag:yaml.org,2002:timestamp"
_JSON = ("null", "bool", "int", "float", "str", "seq", "map")


def read_yaml(text: str) -> Any:
    """The document's value. yaml.YAMLError, with the line, for what is no YAML or has no JSON."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it makes JSON values only
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def compose_yaml(text: str) -> yaml.Node | None:
    """The document's nodes, by which lines are found. yaml.YAMLError."""
    return yaml.compose(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != _DATE]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag.rpartition(":")[2] in _JSON
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT002
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            first = seen.setdefault(key.value, key) if isinstance(key.value, str) else key
            if first is not key:
                raise yaml.constructor.ConstructorError(
                    f"{key.value!r} is here first", first.start_mark, "and here again; each key may be there once", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value: float = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} is no number", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
