"""limits, pause, resume."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import click

from ledger.console import JSON, say_json
from producer.cli.builds import TIME_IS_UP
from producer.cli.client import Client, connected
from producer.cli.output import age, say_rows

_DRAIN_PULSE = 0.5
_SCOPE = "SCOPE is `all`, `project/NAME`, `class/NAME` (a capacity class)"


@click.command(epilog=f"{_SCOPE} or `keys/PROJECT` (each concurrency key of a project).")
@click.argument("scope", required=False)
@click.argument("limit", type=click.IntRange(0), required=False)
@click.option("--reset", is_flag=True, help="Let the projects file's limit hold again.")
@JSON
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
@click.option("--drain", is_flag=True, help="Wait until nothing of it runs any more.")
@click.option("--timeout", type=click.FloatRange(0), help="With --drain: seconds to wait at most; exits 124 after them.")
@JSON
def pause(scope: str, drain: bool, timeout: float | None, as_json: bool) -> None:
    """Start no more builds. Submits are still taken in, and what runs goes on.

    `crabpot pause --drain` empties the cluster: it returns once no build has a pod there.
    """
    with connected() as client:
        found = client.pause(scope)
        if drain and not _drained(client, scope, timeout):
            click.echo(f"crabpot: builds of {scope} still run after {timeout:g} s; the pause goes on", err=True)
            sys.exit(TIME_IS_UP)
        _say(client.limits() if drain else found, as_json)


def _drained(client: Client, scope: str, seconds: float | None) -> bool:
    """Wait until a scope holds no slot. Whether it came to that in time."""
    end = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        taken = next(row["taken"] for row in client.limits()["limits"] if row["scope"] == scope)
        if not taken:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_DRAIN_PULSE)


@click.command(epilog=f"{_SCOPE}; by default `all`.")
@click.argument("scope", default="all")
@JSON
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
    rows += [(f"registry/{hold['registry']}", "", "", hold["by"], f"held for {age(hold['since'])}") for hold in found["holds"]]
    say_rows(("SCOPE", "LIMIT", "RUNNING", "SET", "PAUSED"), rows)
