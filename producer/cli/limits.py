"""limits, pause, resume."""

from __future__ import annotations

from typing import Any

import click

from ledger.console import say_json
from producer.cli.client import connected
from producer.cli.output import age, say_rows

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SCOPE = "SCOPE is `all`, `project/NAME`, `class/NAME` (a capacity class)"


@click.command(epilog=f"{_SCOPE} or `keys/PROJECT` (each concurrency key of a project).")
@click.argument("scope", required=False)
@click.argument("limit", type=click.IntRange(0), required=False)
@click.option("--reset", is_flag=True, help="Let the projects file's limit hold again.")
@_JSON
def limits(scope: str | None, limit: int | None, reset: bool, as_json: bool) -> None:
    """Show the limits, or set one: how many builds may run at once. It holds from the next admission on; what runs goes on."""
    if (scope is None and reset) or (scope is not None and (limit is None) == (not reset)):
        raise click.UsageError("give a scope and its limit, or a scope and --reset, or nothing to see all")
    with connected() as client:
        if scope is None:
            found = client.limits()
        elif limit is None:
            found = client.reset_limit(scope)
        else:
            found = client.set_limit(scope, limit)
    _say(found, as_json)


@click.command(epilog=f"{_SCOPE}; by default `all`.")
@click.argument("scope", default="all")
@_JSON
def pause(scope: str, as_json: bool) -> None:
    """Start no more builds. Submits are still taken in, and what runs goes on."""
    with connected() as client:
        found = client.pause(scope)
    _say(found, as_json)


@click.command(epilog=f"{_SCOPE}; by default `all`.")
@click.argument("scope", default="all")
@_JSON
def resume(scope: str, as_json: bool) -> None:
    """End a pause."""
    with connected() as client:
        found = client.resume(scope)
    _say(found, as_json)


def _say(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(found)
        return
    rows = [
        (
            row["scope"],
            "none" if row["limit"] is None else str(row["limit"]),
            "" if row["taken"] is None else str(row["taken"]),
            "" if row["by_hand"] is None else f"by hand; the file says {'none' if row['file'] is None else row['file']}",
            f"paused for {age(row['paused'])}" if row["paused"] else "",
        )
        for row in found["limits"]
    ]
    say_rows(("SCOPE", "LIMIT", "RUNNING", "SET", "PAUSED"), rows)
