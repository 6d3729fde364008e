"""`crabpot promote`: further tags for an image that is there, in its repository or another one, without building it again."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from ledger.console import me, say_json
from ledger.errors import LedgerUnavailable, Problem, RequestInvalid, ServerUnavailable
from ledger.promotion import PromotionState
from ledger.references import ImageReference
from producer.cli.builds import TIME_IS_UP
from producer.cli.client import Client, connected

_ENDS = {PromotionState.PROMOTED: 0, PromotionState.FAILED: 1, PromotionState.OVERTAKEN: 5}
"""A final state's exit code."""
_PULSE = 0.5
_BACK = 90.0
"""Seconds for a server that answered before to answer again."""


@click.command()
@click.argument("image", metavar="IMAGE@DIGEST")
@click.argument("tags", nargs=-1, required=True, metavar="TAG...")
@click.option("--project", required=True, help="Whose policy must allow the targets, and whose credentials are used.")
@click.option("--idempotency-key", help="A repeat with the same key gives the first promotion.")
@click.option("--no-wait", is_flag=True, help="Print the promotion's id and go; the workers go on.")
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait at most; exits 124 after them, and the workers go on.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def promote(
    image: str, tags: tuple[str, ...], project: str, idempotency_key: str | None, no_wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Give an image further tags, without building it again.

    A TAG is one of the image's own repository (stable), or of another (registry.example.com/prod/app:stable): then the image is copied
    there, with all its platforms and byte for byte. A mutable tag follows the order of pushes and promotions: a build that was submitted
    before and ends later does not move it back.
    """
    request = {"project": project, "image": image, "targets": _targets(image, tags), "by": me()}
    with connected() as client:
        promotion = client.promote(request, idempotency_key)
        if not no_wait:
            promotion = _await_end(client, promotion, timeout)
    if as_json:
        say_json(promotion)
    elif no_wait:
        click.echo(promotion["id"])
    else:
        _say(promotion)
    if not no_wait:
        sys.exit(_ENDS.get(promotion["state"], TIME_IS_UP))


def _targets(image: str, tags: tuple[str, ...]) -> list[str]:
    """Each tag with its repository."""
    try:
        own = ImageReference.parse(image)
    except ValueError as error:
        raise RequestInvalid([Problem("image", repr(image)[:120], str(error))]) from None
    return [tag if "/" in tag else f"{own.name}:{tag}" for tag in tags]


def _await_end(client: Client, promotion: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """The record once it has ended, or as it is when the time is up. A server that is restarted meanwhile is asked again for a while."""
    heard = time.monotonic()
    end = None if seconds is None else heard + seconds
    waits = None
    while promotion["state"] not in _ENDS and (end is None or time.monotonic() < end):
        if promotion.get("message") != waits:
            waits = promotion.get("message")
            click.echo(f"crabpot: {waits}", err=True)
        time.sleep(_PULSE)
        try:
            promotion = client.promotion(promotion["id"])
            heard = time.monotonic()
        except (ServerUnavailable, LedgerUnavailable):
            if time.monotonic() > heard + _BACK:
                raise
    return promotion


def _say(promotion: dict[str, Any]) -> None:
    digest = promotion["request"]["image"].rpartition("@")[2]
    for target in promotion["promoted"]:
        click.echo(f"{target}@{digest}")
    if promotion["state"] not in _ENDS:
        click.echo(f"crabpot: promotion {promotion['id']} is under way still; it goes on by itself", err=True)
    elif promotion.get("message"):
        click.echo(f"crabpot: {promotion['message']}", err=True)
