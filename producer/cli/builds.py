"""list, show, logs, wait, cancel, retry."""

from __future__ import annotations

import sys
from typing import Any

import click

from ledger.build import State
from ledger.console import JSON, on_terminal, say_json
from producer.cli.client import Client, connected
from producer.cli.output import ENDS, say_build, say_builds

TIME_IS_UP = 124


@click.command("list")
@click.option("--project", help="Only this project's.")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only in this state.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True)
@click.option("--cursor", help="Go on after the page that gave this cursor.")
@JSON
def list_builds(project: str | None, state: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List builds, newest first: id, project, state, image, age, reason."""
    with connected() as client:
        found = client.page(project=project, state=state, limit=limit, cursor=cursor)
    if as_json:
        say_json(found)
        return
    say_builds(found["builds"])
    if found["cursor"] and on_terminal():
        click.echo(f"more: --cursor {found['cursor']}", err=True)


@click.command()
@click.argument("build")
@JSON
def show(build: str, as_json: bool) -> None:
    """Show a build: its state, why it waits or failed, its images and attempts."""
    with connected() as client:
        found = client.show(build)
    say_json(found) if as_json else say_build(found)


@click.command()
@click.argument("build")
@click.option("-f", "--follow", is_flag=True, help="Go on until the build has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Another attempt than the last.")
@click.option("--timestamps", is_flag=True, help="Put each line's time before it.")
def logs(build: str, follow: bool, attempt: int | None, timestamps: bool) -> None:
    """Print a build's log."""
    with connected() as client:
        for text in client.logs(build, follow=1 if follow else None, attempt=attempt, timestamps=1 if timestamps else None):
            click.echo(text, nl=False)


@click.command()
@click.argument("build")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait at most; exits 124 after them.")
@JSON
def wait(build: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a build has ended. Exits 0 if it succeeded, 1 if it failed, 5 if it was cancelled."""
    with connected() as client:
        sys.exit(await_end(client, build, timeout, as_json=as_json))


@click.command()
@click.argument("build")
@JSON
def cancel(build: str, as_json: bool) -> None:
    """Cancel a build. One that waits ends at once; one that runs ends when its pod has."""
    with connected() as client:
        found = client.cancel(build)
    if as_json:
        say_json(found)
    else:
        click.echo(
            f"{build} is cancelled"
            if found["state"] == "cancelled"
            else f"{build} is being cancelled; `crabpot wait {build}` waits for its end"
        )


@click.command()
@click.argument("build")
@click.option("--wait", is_flag=True, help="Wait until the new build has ended, as `crabpot wait` does.")
@JSON
def retry(build: str, wait: bool, as_json: bool) -> None:
    """Queue a new build of the same request: same commit, same destinations. Prints its id."""
    with connected() as client:
        found = client.retry(build)
        if not (wait and as_json):
            say_json(found) if as_json else click.echo(found["id"])
        if wait:
            sys.exit(await_end(client, found["id"], None, as_json=as_json))


def await_end(client: Client, build: str, timeout: float | None, *, as_json: bool) -> int:
    """Follow a build to its end, telling of its states on the way; the exit code."""
    last: dict[str, Any] = {}
    for record in client.changes(build, timeout):
        if record["state"] != last.get("state") and not as_json:
            _tell_state(record)
        last = record
    if last.get("state") not in ENDS:
        click.echo(f"crabpot: {build} is still {last.get('state', 'waited for')} after {timeout:g} s", err=True)
        return TIME_IS_UP
    if as_json:
        say_json(last)
    return ENDS[last["state"]]


def _tell_state(record: dict[str, Any]) -> None:
    more = {
        "queued": record.get("waits_for"),
        "succeeded": record.get("digest"),
        "failed": f"{record.get('reason')}: {record.get('message')}",
    }
    told = more.get(record["state"])
    click.echo(f"{record['state']}{': ' + told if told else ''}")
