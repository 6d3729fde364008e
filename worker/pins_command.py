"""`crabpot registry pin`, `unpin` and `pins`: images that stay whatever a policy says, because somebody says so.

A pin stands in the ledger, so it holds for every worker from the moment that the command returns, also in the middle of an application.
"""

from __future__ import annotations

import asyncio

import click

from ledger.console import JSON, me, say_json, say_table, say_time
from ledger.errors import ManifestUnknown, NotFound, RegistryError
from ledger.references import ImageReference, parse_mark
from worker.command_line import IMAGE, Parsed, on_ledger
from worker.registry.pace import IMPATIENT
from worker.registry.reader import RegistryReader
from worker.registry_access import Access, accessing


@click.command()
@click.argument("image", type=IMAGE)
@click.option("--reason", required=True, help="Why: plans tell it.")
@click.option("--absent", is_flag=True, help="Pin it although the registry has no such image: one that is to come.")
@accessing
def pin(image: ImageReference, reason: str, absent: bool, access: Access, as_json: bool) -> None:
    """Keep an image, whatever a policy says, until `unpin`.

    By a tag: whatever the tag stands for. By a digest: that image, wherever it lies, with every index that holds it.
    """
    if not (image.tag or image.digest):
        raise click.UsageError(f"name a tag or a digest, as {image.name}:1; for patterns of tags a policy has `protect`")
    if not reason.strip():
        raise click.BadParameter("say why, so that others know when it may go", param_hint="--reason")
    if not absent:
        asyncio.run(_require(image, access))
    made = on_ledger(lambda ledger: ledger.shelf.pin(image.mark, reason.strip(), image=str(image), by=me()))
    say_json(made.told()) if as_json else click.echo(f"{made.mark} is pinned")


@click.command()
@click.argument("mark", type=Parsed("image", parse_mark), metavar="IMAGE")
@JSON
def unpin(mark: str, as_json: bool) -> None:
    """Let policies decide about an image again. IMAGE is what `pins` shows: with its tag, or its digest."""
    if not on_ledger(lambda ledger: ledger.shelf.unpin(mark)):
        raise NotFound(f"{mark} is not pinned; `crabpot registry pins` shows what is")
    say_json({"unpinned": mark}) if as_json else click.echo(f"{mark} is pinned no more")


@click.command("pins")
@JSON
def list_pins(as_json: bool) -> None:
    """List what is pinned, by whom, when and why."""
    found = on_ledger(lambda ledger: ledger.shelf.pinned())
    if as_json:
        say_json([one.told() for one in found])
        return
    rows = ((one.image or one.mark, one.by or "", say_time(one.at), one.why) for one in found)
    say_table(("IMAGE", "BY", "PINNED", "REASON"), rows)


async def _require(image: ImageReference, access: Access) -> None:
    """See that the image is there: a slip of the pen would protect nothing, and nobody would know. ManifestUnknown.

    A registry that does not answer is no reason to leave an image without its pin.
    """
    async with access.open(RegistryReader, image.registry, patience=IMPATIENT) as reader:
        try:
            found = await reader.resolve(image)
        except RegistryError as error:
            click.echo(f"crabpot: nobody could see whether there is {image} ({error}); it is pinned all the same", err=True)
            return
    if found is None:
        raise ManifestUnknown(
            f"there is no {image}, so nothing was pinned; what a plan took away comes back by `crabpot retention undo`, and one that is yet"
            " to come is pinned with --absent"
        )
