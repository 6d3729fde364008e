"""`crabpot registry adopt`: learning a registry that was there before crabpot. A worker does it; times that are known elsewhere come in a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ledger.adoption import chore_of, read_json, read_times, start
from ledger.console import JSON, say_json
from ledger.store import Ledger
from worker.command_line import TARGET, WAIT, ended, on_ledger


@click.command()
@click.argument("target", type=TARGET, metavar="REGISTRY|REPOSITORY")
@click.option(
    "--times",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='When tags were pushed, as JSON: {"REGISTRY/REPOSITORY:TAG": "2025-01-01T00:00:00Z"}.',
)
@WAIT
@JSON
def adopt(target: str, times: Path | None, timeout: float, as_json: bool) -> None:
    """Learn a registry, or one repository, that was there before crabpot.

    What has no credible time counts as pushed now, so that retention can act on it one day; until then it keeps its whole repository.
    Nothing is changed in the registry, and no time that is known. To adopt again is safe.
    """
    told = read_times(read_json(times.read_bytes(), "the file of times"), target, datetime.now(UTC)) if times else {}
    chore = chore_of(target)

    async def work(ledger: Ledger) -> tuple[str, Mapping[str, Any]]:
        await start(ledger, target, told)
        return await ended(ledger, chore, timeout), (await ledger.chores.read(chore)).progress

    said, found = on_ledger(work)
    say_json({"said": said, **found}) if as_json else click.echo(said)
    if found.get("unread"):
        sys.exit(1)
