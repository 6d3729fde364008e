"""How commands print, on either side: a table on a terminal, plain lines elsewhere, JSON where asked for; and who runs them."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SHORT = 12
"""Letters of a cell that a narrow terminal does not cut."""


def on_terminal() -> bool:
    return sys.stdout.isatty()


def me() -> str | None:
    """Who runs this, where the machine knows a name for them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


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

    lines = list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(header):
        width = max(map(len, (name, *(line[at] for line in lines))))
        # The first column is what people copy, and short words need no cutting: what is long gives way.
        fixed = at == 0 or width <= _SHORT
        table.add_column(name, no_wrap=True, min_width=width) if fixed else table.add_column(name, overflow="ellipsis", max_width=width)
    for row in lines:
        table.add_row(*(Text(cell, style=colours.get(cell, "")) for cell in row))
    Console().print(table)


def say_time(at: datetime | None) -> str:
    """A moment for people, with its zone: the ledger's times are in UTC."""
    return f"{at:%Y-%m-%d %H:%M} UTC" if at else ""


def say_size(size: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
