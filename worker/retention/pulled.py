"""When tags were pulled: asked of registries that tell it, before a survey reads there, and put to what it found.

Before, because a registry takes the reading of a manifest for a pull. Only repositories are asked about whose policy has a rule for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime

from ledger.errors import RegistryError
from ledger.references import ImageReference
from worker.abreast import each
from worker.registry.pulls import Pulls
from worker.registry.reader import RegistryReader
from worker.retention.inventory import Inventory, Repository

_AT_ONCE = 4


async def ask_pulls(reader: RegistryReader, registry: str, repositories: Collection[str], now: datetime) -> Mapping[str, Pulls]:
    """What a registry tells of the pulls of repositories (paths), by their names with it. Trouble only says why nothing is told."""
    found: dict[str, Pulls] = {}
    if not repositories:
        return found
    images = [ImageReference(registry, path) for path in repositories]
    try:
        product = await reader.collector(registry)
    except RegistryError as error:
        return dict.fromkeys((image.name for image in images), Pulls(untold=str(error)))

    async def one(image: ImageReference) -> None:
        try:
            found[image.name] = await reader.pulls(product, image, now)
        except RegistryError as error:
            found[image.name] = Pulls(untold=str(error))

    await each(images, one, _AT_ONCE)
    return found


def with_pulls(inventory: Inventory, pulls: Mapping[str, Pulls]) -> Inventory:
    """An inventory that knows of pulls too. Pure. A tag that stands for something else by now was not asked about."""

    def one(repository: Repository) -> Repository:
        told = pulls.get(repository.name)
        if told is None:
            return repository
        tags = tuple(replace(tag, pulled=told.of(tag.name, tag.digest)) for tag in repository.tags)
        return replace(repository, tags=tags, untold=told.untold)

    return replace(inventory, repositories=tuple(map(one, inventory.repositories))) if pulls else inventory
