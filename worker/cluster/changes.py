"""What changes in the launches' folders, told as it happens: one watch on files and one descriptor a runner, for all who listen.

Files tell of all but a runner that was killed: a dead process writes nothing. Its process descriptor tells of that.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from watchfiles._rust_notify import RustNotify  # documented; unlike `awatch` it tells when the watch stands

from worker.cluster.folder import CLAIM, LaunchFolder

_STEP, _LONGEST = 20, 60
"""Milliseconds: changes this close are told together, and none is kept for longer than the second."""


class Subscription:
    """What one listener has not yet been told."""

    def __init__(self, wants: Callable[[str, str], bool]) -> None:
        self._wants, self._names, self._event = wants, set[str](), asyncio.Event()

    def take(self, changes: Iterable[tuple[str, str]]) -> None:
        """(launch, file) that changed; the file is empty for the folder itself."""
        names = {name for name, file in changes if self._wants(name, file)}
        if names:
            self._names |= names
            self._event.set()

    async def next(self) -> set[str]:
        """The launches that changed since the last call; waits for one."""
        await self._event.wait()
        self._event.clear()
        names, self._names = self._names, set()
        return names


class Changes:
    """The changes of a folder of launches, for the listeners of one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._subscriptions: set[Subscription] = set()
        self._runners: dict[str, tuple[str, int]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def subscribe(self, wants: Callable[[str, str], bool]) -> Iterator[Subscription]:
        """Listen; what changes from now on is told. `wants`: whether a (launch, file) matters. OSError where it cannot be watched."""
        self._start()
        subscription = Subscription(wants)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def await_runner(self, folder: LaunchFolder) -> None:
        """Tell of a running launch when its runner's process ends, however it ends."""
        name, uid = folder.spec.name, folder.spec.uid
        if self._runners.get(name, ("", 0))[0] == uid:
            return
        process = folder.runner_process()
        if process is None:
            if not folder.runner_lives():
                self._publish([(name, CLAIM)])
            return
        self._forget(name)
        self._runners[name] = uid, process
        asyncio.get_running_loop().add_reader(process, self._runner_ended, name)

    async def close(self) -> None:
        for name in list(self._runners):
            self._forget(name)
        self._stop.set()
        if self._thread:
            await asyncio.to_thread(self._thread.join)

    def _start(self) -> None:
        if self._thread is None:
            notify = RustNotify([str(self._folder)], False, False, 0, True, False)
            self._thread = threading.Thread(target=self._follow, args=(notify, asyncio.get_running_loop()), name="launches", daemon=True)
            self._thread.start()

    def _follow(self, notify: RustNotify, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            found = notify.watch(_LONGEST, _STEP, 0, self._stop)
            if isinstance(found, str):
                return
            parts = [Path(path).relative_to(self._folder).parts for _, path in found]
            changes = [(part[0], part[1] if len(part) > 1 else "") for part in parts if part]
            try:
                loop.call_soon_threadsafe(self._publish, changes)
            except RuntimeError:  # the loop is closed
                return

    def _publish(self, changes: list[tuple[str, str]]) -> None:
        for subscription in self._subscriptions:
            subscription.take(changes)

    def _runner_ended(self, name: str) -> None:
        self._forget(name)
        self._publish([(name, CLAIM)])

    def _forget(self, name: str) -> None:
        if name in self._runners:
            _, process = self._runners.pop(name)
            asyncio.get_running_loop().remove_reader(process)
            os.close(process)
