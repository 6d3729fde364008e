"""`crabpot schema`."""

from __future__ import annotations

from importlib.resources import files

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of a build request."""
    click.echo((files("ledger") / "schemas" / "request.json").read_text(), nl=False)
