"""What a survey is to look at: the repositories that policies name, and what refers to the images that a plan would delete.

The second is asked only about what goes: referrers change while their subject's digest does not, so nobody can remember them, and to ask about
every image would double a survey. What is found goes into a second survey as `also`, and the plan is made again. Where a registry has no API for
it, nobody is asked: the tags that say it then (`sha256-<hex>`) were listed with all others, and their indexes read with all that they hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ledger.references import ImageReference
from worker.abreast import each
from worker.registry.reader import RegistryReader
from worker.retention.decisions import Plan
from worker.retention.policy import Policies

_AT_ONCE = 16


async def find_repositories(reader: RegistryReader, registry: str, policies: Policies) -> tuple[str, ...]:
    """The repositories of a registry that policies name. RegistryError where a pattern needs a catalog and the registry has none to show."""
    plain = {ImageReference.parse(name) for name in policies.plain_names()}
    found = {image.repository for image in plain if image.registry == registry}
    if policies.has_patterns():
        found |= {path async for path in reader.catalog(registry) if policies.naming(f"{registry}/{path}")}
    return tuple(sorted(found))


async def referrers_of(reader: RegistryReader, made: Plan) -> Mapping[str, Collection[str]]:
    """By repository (with its registry) the digests that refer to what a plan would delete, so that they go with it. RegistryError."""
    found: dict[str, list[str]] = {}

    async def one(image: ImageReference) -> None:
        if reader.lists_referrers(image.registry) is False:
            return
        referrers = await reader.referrers(image)
        if referrers and reader.lists_referrers(image.registry):
            found.setdefault(image.name, []).extend(referrer.digest for referrer in referrers)

    images = (ImageReference.parse(f"{repository.name}@{digest}") for repository in made.repositories for digest in repository.deletions)
    await each(images, one, _AT_ONCE)
    return {name: sorted(set(digests)) for name, digests in found.items()}
