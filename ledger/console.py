"""How commands print, on either side: a table on a terminal, plain lines elsewhere, JSON where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click


def on_terminal() -> bool:
    return sys.stdout.isatty()


def say_json(told: Any) -> None:
    click.echo(json.dumps(told, indent=2 if on_terminal() else None))


def say_table(header: Sequence[str], rows: Iterable[Sequence[str]], colours: Mapping[str, str] = MappingProxyType({})) -> None:
    """A table on a terminal, cells of some words in colour; tab-separated lines, without the header, elsewhere."""
    if not on_terminal():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, style=colours.get(cell, "")) for cell in row))
    Console().print(table)


def say_size(size: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
