"""What runs a plant's pods: each starts, its executor works, and it ends. The executor pushes an image to the registry, as Kaniko does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from ledger.references import ImageReference
from tests.faults.kubernetes_api import Json
from tests.faults.pod_server import PodServer
from tests.integration.registry_server import RegistryServer, digest_of

LOG = ("builds", "pushes")
"""What each container prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a container ends."""

    exit_code: int = 0
    message: str | None = None
    reason: str | None = None


Executor = Callable[[Json], Awaitable[End | None]]
"""What a pod's container does; None: it never ends by itself."""


class Kubelet:
    """Runs every pod of a pod server with one executor, which a test may exchange."""

    def __init__(self, pods: PodServer, registry: RegistryServer) -> None:
        self._pods, self._registry = pods, registry
        self.executor: Executor = self.push
        self._pushes: dict[str, asyncio.Future[bytes]] = {}

    async def run(self) -> None:
        """For ever; those that are there already too."""
        store = self._pods.store
        async with asyncio.TaskGroup() as group, aclosing(store.changes(store.version)) as changes:
            known = {pod["metadata"]["uid"]: pod for pod in store.alive()}
            for pod in known.values():
                group.create_task(self._run(pod))
            async for change in changes:
                if change.kind == "ADDED" and change.pod["metadata"]["uid"] not in known:
                    group.create_task(self._run(change.pod))

    async def _run(self, pod: Json) -> None:
        name, uid, node = pod["metadata"]["name"], pod["metadata"]["uid"], self._pods.node
        if not self._lives(uid):
            return
        if not pod["status"].get("containerStatuses"):
            node.run(name)
            node.say(name, *LOG)
        end = await self.executor(pod)
        if end and self._lives(uid):
            node.end(name, end.exit_code, end.message, end.reason)

    def _lives(self, uid: str) -> bool:
        return any(pod["metadata"]["uid"] == uid for pod in self._pods.store.alive())

    async def push(self, pod: Json) -> End:
        """The first destination, with the labels that it was told to set."""
        given = [argument.replace("$$", "$") for argument in pod["spec"]["containers"][0]["args"]]
        images = [ImageReference.parse(argument.partition("=")[2]) for argument in given if argument.startswith("--destination=")]
        labels = dict(argument.split("=", 2)[1:] for argument in given if argument.startswith("--label="))
        return End(message=await self.push_image(images[0], labels, pod["metadata"]["labels"]["crabpot.dev/build"]))

    async def push_image(self, image: ImageReference, labels: dict[str, str], content: str) -> str:
        """An image in the registry; its digest. A push that goes on already is waited for: the registry takes no two of the same at once."""
        name = f"{image} {labels} {content}"
        if name not in self._pushes:
            put = partial(self._registry.push_image, image.repository, image.reference, layers=(content.encode(),), labels=labels)
            self._pushes[name] = asyncio.ensure_future(asyncio.to_thread(put))
            self._pushes[name].add_done_callback(lambda _: self._pushes.pop(name))
        return digest_of(await asyncio.shield(self._pushes[name]))

    async def has_pushed_all(self) -> None:
        """Until no executor pushes any more: its thread goes on when its pod has ended."""
        await asyncio.gather(*self._pushes.values())
