"""`crabpot registry`: looking into registries, and copying and removing images, by hand.

A removal looks at the whole repository first, and asks before it deletes. With `--dry-run` the same is done by a client that cannot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import click

from ledger.console import on_terminal, say_json, say_size, say_table
from ledger.errors import ImageInUse, ManifestUnknown, RegistryError
from ledger.references import ImageReference
from worker.abreast import each
from worker.adoption_command import adopt
from worker.command_line import HOST, IMAGE
from worker.pins_command import list_pins, pin, unpin
from worker.registry.client import RegistryClient
from worker.registry.copying import copy_image
from worker.registry.manifests import IMAGE_CONFIGS, Descriptor, Manifest
from worker.registry.reader import RegistryReader
from worker.registry.rehearsal import Changing, Rehearsal
from worker.registry_access import Access, accessing
from worker.removal import Removal, look, remove, require_unused
from worker.retention.protection import QUARANTINE
from worker.uses import known_uses

_AT_ONCE = 16


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@click.group()
def command() -> None:
    """Look into registries; copy, remove and pin images; learn a registry that was there before crabpot.

    Credentials are those of --project, else those that `docker login` left.
    """


@command.command("ls")
@click.argument("registry", type=HOST)
@accessing
def list_repositories(registry: str, access: Access, as_json: bool) -> None:
    """List a registry's repositories, where it lists them."""

    async def work() -> list[str]:
        async with access.open(RegistryReader, registry) as reader:
            return sorted([name async for name in reader.catalog(registry)])

    found = _run(work())
    say_json(found) if as_json else say_table(("REPOSITORY",), ([name] for name in found))


@command.command("tags")
@click.argument("repository", type=IMAGE)
@click.option("--digests", is_flag=True, help="Ask what each stands for: a request a tag.")
@click.option("--all", "everything", is_flag=True, help="Also those under which retention holds what can be undone.")
@accessing
def list_tags(repository: ImageReference, digests: bool, everything: bool, access: Access, as_json: bool) -> None:
    """List a repository's tags."""

    async def work() -> dict[str, str | None]:
        async with access.open(RegistryReader, repository.registry) as reader:
            found: dict[str, str | None] = dict.fromkeys(
                sorted([tag async for tag in reader.tags(repository.registry, repository.repository) if everything or _is_peoples(tag)])
            )

            async def one(tag: str) -> None:
                stands_for = await reader.resolve(repository.with_tag(tag))
                found[tag] = stands_for.digest if stands_for else None

            if digests:
                await each(list(found), one, _AT_ONCE)
            return found

    found = _run(work())
    if as_json:
        say_json([{"tag": tag, "digest": digest} if digests else {"tag": tag} for tag, digest in found.items()])
    elif digests:
        say_table(("TAG", "DIGEST"), ((tag, digest or "gone") for tag, digest in found.items()))
    else:
        say_table(("TAG",), ([tag] for tag in found))


@command.command()
@click.argument("image", type=IMAGE)
@accessing
def show(image: ImageReference, access: Access, as_json: bool) -> None:
    """Show an image: digest, size, platforms or layers, labels, and what refers to it."""

    async def work() -> dict[str, Any]:
        async with access.open(RegistryReader, image.registry) as reader:
            return await _describe(reader, image)

    found = _run(work())
    if as_json:
        say_json(found)
        return
    for name in ("image", "digest", "media_type", "size", "created"):
        if found[name] is not None:
            click.echo(f"{name.replace('_', ' ') + ':':<14}{say_size(found[name]) if name == 'size' else found[name]}")
    for name, title in (("platforms", "platform"), ("layers", "layer"), ("referrers", "referrer")):
        for part in found[name] or ():
            click.echo(f"{title + ':':<14}{part['digest']}  {part.get('platform') or part.get('artifact_type') or say_size(part['size'])}")
    for name, value in found["labels"].items():
        click.echo(f"{'label:':<14}{name}={value}")


@command.command("cp")
@click.argument("source", type=IMAGE)
@click.argument("target", type=IMAGE)
@accessing
def copy(source: ImageReference, target: ImageReference, access: Access, as_json: bool) -> None:
    """Copy an image, with all its platforms and the same digest. A target without a tag gets the source's."""
    if target.digest:
        raise click.UsageError("a target has a tag; its digest is the source's")
    to = target if target.tag or not source.tag else target.with_tag(source.tag)

    async def work() -> str:
        async with access.open(RegistryReader, source.registry) as reader, access.open(RegistryClient, to.registry) as client:
            return await copy_image(reader, source, client, to)

    digest = _run(work())
    say_json({"image": str(to), "digest": digest}) if as_json else click.echo(f"{to}@{digest}")


@command.command("rm")
@click.argument("images", type=IMAGE, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--dry-run", is_flag=True, help="Do all but delete, with a client that cannot.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked.")
@accessing
def remove_images(images: tuple[ImageReference, ...], dry_run: bool, yes: bool, access: Access, as_json: bool) -> None:
    """Remove images of one repository for good, with their digests.

    A digest goes with all its tags, so each of them must be named. What is part of an index goes only with that; what is used or pinned stays.
    """
    if len({image.name for image in images}) > 1:
        raise click.UsageError("name images of one repository at a time")
    used = known_uses()

    async def work() -> list[dict[str, Any]]:
        async with access.open(RegistryReader, images[0].registry) as reader:
            removal = await look(reader, images, used)
        if not (yes or dry_run):
            _ask(removal)
        async with _changing(access, images[0].registry, rehearse=dry_run) as client:
            await remove(client, removal)
        for orphan in removal.orphans:
            click.echo(f"the signature's tag {orphan} stays", err=True)
        went: list[dict[str, Any]] = [{"digest": digest, "tags": list(tags)} for digest, tags in removal.digests]
        return went + [{"digest": None, "tags": [tag]} for tag in removal.broken]

    removed = _run(work())
    if as_json:
        say_json({"repository": images[0].name, "removed": removed, "dry_run": dry_run})
    else:
        word = "would be removed" if dry_run else "removed"
        say_table(("DIGEST", "TAGS", ""), ((one["digest"] or "its manifest was gone", ", ".join(one["tags"]), word) for one in removed))


@command.command()
@click.argument("image", type=IMAGE)
@accessing
def untag(image: ImageReference, access: Access, as_json: bool) -> None:
    """Take a tag away and leave its image, where the registry can do that. What is used or pinned stays."""
    if image.tag is None or image.digest:
        raise click.UsageError("name a tag, as registry.example.com/team/app:1")
    require_unused(image, known_uses())

    async def work() -> bool | None:
        """Whether its image stays; None: there was no such tag."""
        async with access.open(RegistryClient, image.registry) as client:
            stays = await client.resolve(image) is not None
            if stays and [tag async for tag in client.tags(image.registry, image.repository) if _is_peoples(tag)] == [image.tag]:
                raise ImageInUse(f"{image} is the last tag of its repository; `rm` removes the image")
            return stays if await client.untag(image) else None

    stays = _run(work())
    if stays is None:
        raise ManifestUnknown(f"there is no {image}")
    say_json({"untagged": str(image)}) if as_json else click.echo(f"{image} is gone; its image {'stays' if stays else 'was gone already'}")


for _also in (pin, unpin, list_pins, adopt):
    command.add_command(_also)


def _is_peoples(tag: str) -> bool:
    """Not one of retention's own, which hold what a plan let go until that can no longer be undone."""
    return not tag.startswith(QUARANTINE)


def _changing(access: Access, registry: str, *, rehearse: bool) -> AbstractAsyncContextManager[Changing]:
    return access.open(Rehearsal, registry) if rehearse else access.open(RegistryClient, registry)


def _ask(removal: Removal) -> None:
    if not on_terminal():
        raise click.UsageError("this deletes for good; say --yes")
    for digest, tags in removal.digests:
        click.echo(f"{removal.repository.with_digest(digest)}  {', '.join(tags)}")
    for tag in removal.broken:
        click.echo(f"{removal.repository.with_tag(tag)}  its manifest is gone")
    click.confirm("Delete these for good?", abort=True)


async def _describe(reader: RegistryReader, image: ImageReference) -> dict[str, Any]:
    manifest = await reader.manifest(image)
    config = await _config(reader, image, manifest)
    referrers: tuple[Descriptor, ...] | None = None
    try:
        referrers = await reader.referrers(image.with_digest(manifest.digest))
    except RegistryError as error:
        click.echo(f"what refers to it is not known: {error}", err=True)
    return {
        "image": str(image),
        "digest": manifest.digest,
        "media_type": manifest.media_type,
        "size": await reader.image_size(image.with_digest(manifest.digest)) if manifest.is_index or manifest.config else None,
        "created": manifest.created or config.get("created"),
        "platforms": [{"digest": child.digest, "platform": child.platform, "size": child.size} for child in manifest.children],
        "layers": [{"digest": layer.digest, "size": layer.size} for layer in manifest.layers],
        "labels": (config.get("config") or {}).get("Labels") or {},
        "referrers": [{"digest": one.digest, "artifact_type": one.artifact_type, "size": one.size} for one in referrers]
        if referrers is not None
        else None,
    }


async def _config(reader: RegistryReader, image: ImageReference, manifest: Manifest) -> dict[str, Any]:
    """The config of an image, empty for what has none of an image's."""
    if manifest.config is None or manifest.config.media_type not in IMAGE_CONFIGS:
        return {}
    return await reader.config_blob(image, manifest.config)
