"""`crabpot registry adopt`: learning a registry that was there before crabpot. A worker does it; times that are known elsewhere come in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ledger.console import JSON, say_json
from ledger.errors import Conflict, InputInvalid, Problem
from ledger.references import ImageReference
from ledger.store import Ledger
from worker.command_line import TARGET, WAIT, ended, on_ledger
from worker.retention.inventory import credible

_NAMED = 20
"""Wrong entries of a file that are told at once."""


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
    told = read_times(times.read_bytes(), target, datetime.now(UTC)) if times else {}
    chore, registry = f"adopt:{target}", target.partition("/")[0]

    async def work(ledger: Ledger) -> tuple[str, Mapping[str, Any]]:
        await ledger.shelf.tell(told)
        if not await ledger.chores.start(chore, registry) and told:
            raise Conflict(f"an adoption of {target} is under way, which may have passed what the file is about; run this again after it")
        return await ended(ledger, chore, timeout), (await ledger.chores.read(chore)).progress

    said, found = on_ledger(work)
    say_json({"said": said, **found}) if as_json else click.echo(said)
    if found.get("unread"):
        sys.exit(1)


def read_times(raw: bytes, target: str, now: datetime) -> dict[str, dict[str, datetime]]:
    """A file of times, by repository and tag. InputInvalid names each entry that is wrong."""
    problems: list[Problem] = []

    def entries(given: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in given]
        problems.extend(Problem(name, "two times", "say one") for name in sorted({name for name in names if names.count(name) > 1}))
        return dict(given)

    try:
        said = json.loads(raw, object_pairs_hook=entries)
    except ValueError as error:
        raise InputInvalid(f"the file of times is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise InputInvalid('the file of times must be one object, as {"registry.example.com/team/app:1": "2025-01-01T00:00:00Z"}')
    found: dict[str, dict[str, datetime]] = {}
    for name, at in said.items():
        try:
            image, time = _tag_of(name, target), _time_of(at, now)
        except ValueError as error:
            problems.append(Problem(name, repr(at)[:60], str(error)))
        else:
            found.setdefault(image.name, {})[image.tag or ""] = time
    if problems:
        raise InputInvalid(problems[:_NAMED])
    return found


def _tag_of(name: str, target: str) -> ImageReference:
    image = ImageReference.parse(name)
    if image.tag is None or image.digest:
        raise ValueError("an entry names a tag, as registry.example.com/team/app:1")
    if target not in (image.registry, image.name):
        raise ValueError(f"it is not of {target}, which is adopted")
    return image


def _time_of(at: Any, now: datetime) -> datetime:
    try:
        time = datetime.fromisoformat(at) if isinstance(at, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError("a time is a date with hours and a time zone, as 2025-01-01T00:00:00Z")
    if credible(time, now) is None:
        raise ValueError("no image was pushed then: it is before March 2013, or yet to come")
    return time
