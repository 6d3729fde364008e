"""May the image be pushed where it is to go? Asked before the build, as Kaniko does, so that a long build is not for nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ledger.errors import CrabpotError, RateLimited, RegistryConfused, RegistryDenied, SettingsInvalid
from ledger.references import ImageReference
from worker.executor.errors import PermissionDenied, SetupError
from worker.executor.flags import Options
from worker.executor.places import Places
from worker.registry.client import RegistryClient
from worker.registry.credentials import DockerConfig


def check_permissions(options: Options, places: Places, authfile: Path) -> None:
    """PermissionDenied for the first destination that refuses, or does not answer.

    Left to the push itself: registries whose certificate is not to be checked, and answers that leave it open.
    """
    asyncio.run(_check(options, places, authfile))


async def _check(options: Options, places: Places, authfile: Path) -> None:
    try:
        images, credentials = [ImageReference.parse(text) for text in options.destinations], DockerConfig.read(authfile)
    except (ValueError, SettingsInvalid) as error:
        raise SetupError(str(error)) from None
    asked = {(image.registry, image.repository): image for image in images if image.registry not in options.unverified}
    insecure = frozenset(registry for registry, _ in asked) if options.insecure_push else options.insecure - options.unverified
    certificates = {host: str(places.find(path)) for host, path in options.certificates.items() if host not in insecure}
    client = RegistryClient(credentials, insecure=insecure, certificates=certificates)
    try:
        for image in asked.values():
            await _ask(client, image)
    finally:
        await client.aclose()


async def _ask(client: RegistryClient, image: ImageReference) -> None:
    try:
        await client.can_push(image.registry, image.repository)
    except RegistryConfused as error:
        print(f"cannot tell whether {image.name} may be pushed: {error}", flush=True)
    except CrabpotError as error:
        code = "DENIED" if isinstance(error, RegistryDenied) else "TOOMANYREQUESTS" if isinstance(error, RateLimited) else "UNAVAILABLE"
        raise PermissionDenied(f'checking push permission for "{image}": {code}: {error}') from None
