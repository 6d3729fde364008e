"""How the command line tells of builds: tables and colours on a terminal, plain lines elsewhere, JSON where asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ledger.console import on_terminal, say_table
from ledger.errors import Conflict, CrabpotError, InputInvalid, ManifestUnknown, NotFound

COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "superseded": "yellow", "running": "cyan", "publishing": "cyan"}
ENDS = {"succeeded": 0, "failed": 1, "cancelled": 5, "superseded": 5}
"""A final state's exit code."""


def exit_code_of(error: CrabpotError) -> int:
    """What the command exits with; listed in `crabpot --help`."""
    if isinstance(error, NotFound | ManifestUnknown):
        return 3
    if isinstance(error, Conflict):
        return 5
    if isinstance(error, InputInvalid):
        return 2
    return 4 if error.retryable else 1


def say_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, states in colour; tab-separated lines, without the header, elsewhere."""
    say_table(header, rows, COLOURS)


def say_builds(builds: Sequence[dict[str, Any]]) -> None:
    rows = [
        (build["id"], build["project"], build["state"], image_of(build), age(build["created"]), build.get("reason", ""))
        for build in map(_with_project, builds)
    ]
    say_rows(("BUILD", "PROJECT", "STATE", "IMAGE", "AGE", "REASON"), rows)


def _with_project(build: dict[str, Any]) -> dict[str, Any]:
    return {**build, "project": build["request"]["project"]}


def image_of(build: dict[str, Any]) -> str:
    return str(next(iter(build["request"].get("destinations", [])), ""))


def say_build(build: dict[str, Any]) -> None:
    """All that people ask about a build, the why first."""
    for name, value in _facts(build):
        if value:
            shown = click.style(value, fg=COLOURS.get(value)) if on_terminal() else value
            click.echo(f"{name + ':':<14}{shown}")
    for attempt in build.get("attempts", []):
        for run in attempt["runs"]:
            click.echo(f"attempt {attempt['number']}:    {_run(run)}")
    failed = [run for attempt in build.get("attempts", [])[-1:] for run in attempt["runs"] if run.get("reason")]
    for run in failed:
        if run.get("log_tail"):
            click.echo("\nlast lines of its log:")
            for line in run["log_tail"]:
                click.echo(f"  {line}")
    if build["state"] == "failed":
        click.echo(f"\nthe whole log: crabpot logs {build['id']}")


def _facts(build: dict[str, Any]) -> Iterable[tuple[str, str]]:
    request, source = build["request"], build["request"]["source"]
    place = " ".join(str(source[key]) for key in ("url", "path", "claim", "config_map", "ref", "commit") if source.get(key))
    yield "build", build["id"]
    yield "project", request["project"]
    yield "state", build["state"]
    yield "reason", build.get("reason", "")
    yield "why", build.get("message", "")
    yield (
        "exit code",
        next((str(run["exit_code"]) for attempt in build.get("attempts", [])[-1:] for run in attempt["runs"] if run.get("exit_code")), ""),
    )
    yield "waits for", build.get("waits_for", "")
    yield "estimate", _estimate(build.get("estimate"))
    yield "newer", build.get("superseded_by", "")
    yield "cancel", "asked for" if build.get("cancel_requested") and build["state"] not in ENDS else ""
    yield "source", place
    yield "images", ", ".join(request.get("destinations", []))
    yield "digest", build.get("digest", "")
    yield "size", f"{build['size'] / 2**20:.1f} MiB" if build.get("size") else ""
    yield "created", f"{build['created']} ({age(build['created'])} ago)"
    yield "took", _took(build)


def _estimate(given: dict[str, Any] | None) -> str:
    if given is None:
        return ""
    starts, ends = (
        " to ".join(f"{_time(given[f'{what}_{side}']).astimezone():%H:%M:%S}" for side in ("after", "before"))
        for what in ("starts", "ends")
    )
    low, high = (f"{seconds:.0f}" for seconds in given["spread"])
    return f"starts {starts}, ends {ends}; the project's builds run {given['runs_for']:.0f} s ({low} to {high} s)"


def _run(run: dict[str, Any]) -> str:
    told = [run["platform"], f"on {run['node']}" if run.get("node") else "", run.get("reason") or ("well" if run.get("ended") else "")]
    if run.get("started") and run.get("ended"):
        told.append(f"{(_time(run['ended']) - _time(run['started'])).total_seconds():.0f} s")
    return ", ".join(part for part in (*told, f"pod {run['pod']}") if part)


def _took(build: dict[str, Any]) -> str:
    if not build.get("finished"):
        return ""
    return f"{(_time(build['finished']) - _time(build['created'])).total_seconds():.1f} s from submit to end"


def age(created: str) -> str:
    seconds = max(0, int((datetime.now(UTC) - _time(created)).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
