"""The processes of a session, read from /proc, so that nothing of a launch outlives its end.

A session's id is its first process's and is not given to another while any member lives, even where the first is dead.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_ROUNDS = 20
"""A member may fork while the others are killed; each round leaves fewer."""


def members(session: int) -> list[int]:
    """The process ids of a session; those that ended and only wait to be reaped are left out."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _session(entry) == session]


def kill_others(session: int) -> None:
    """SIGKILL to every member but this process."""
    for _ in range(_ROUNDS):
        others = [pid for pid in members(session) if pid != os.getpid()]
        if not others:
            return
        for pid in others:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def kill_marked(session: int, mark: str) -> None:
    """SIGKILL to every member, if one of them carries the mark (NAME=value) in its environment: by it we know that the session is ours."""
    found = members(session)
    if session not in found and any(mark.encode() in _environment(pid) for pid in found):
        kill_others(session)


def _session(process: Path) -> int | None:
    try:
        # The program's name stands in parentheses and may itself hold spaces and parentheses.
        state, _, _, session = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(session)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []
