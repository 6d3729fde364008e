"""The registries that the client is tested against: Debian's docker-registry 2.8, distribution 3, and zot where there is one.

Distribution 3 is the binary `registry`, zot is `zot`: on PATH, or where the cluster keeps its own (`~/.cache/cluster/bin`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.registry_server import RegistryServer, run_registry, serving

_CLUSTER = Path("~/.cache/cluster/bin").expanduser()


@dataclass(frozen=True)
class Kind:
    """One registry's program, and what it can do."""

    program: str
    untags: bool
    pages_tags: bool
    referrers: bool
    untags_broken: bool = False
    """Also a tag whose manifest is gone."""
    forgets_untagged: bool = False
    """A manifest whose last tag is put on another one is gone."""

    @property
    def binary(self) -> str | None:
        return shutil.which(self.program) or shutil.which(self.program, path=_CLUSTER)

    @contextlib.contextmanager
    def run(self, folder: Path, *, extensions: Mapping[str, Any] | None = None) -> Iterator[RegistryServer]:
        """Extensions are zot's."""
        if self.binary is None:
            pytest.skip(f"there is no {self.program} on PATH or in {_CLUSTER}")
        if self.program != "zot":
            with run_registry(folder, program=self.binary) as server:
                yield server
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "distSpecVersion": "1.1.1",
            "storage": {"rootDirectory": str(folder / "data"), "gc": False, "dedupe": True},
            "http": {"address": "127.0.0.1", "port": "0", "compat": ["docker2s2"]},
            "log": {"level": "info"},
            **({"extensions": extensions} if extensions else {}),
        }
        (folder / "config.json").write_text(json.dumps(config))
        with serving([self.binary, "serve", folder / "config.json"], r'kernel chosen port","port":(\d+)') as (port, process):
            yield RegistryServer(f"127.0.0.1:{port}", process, data=folder / "data")


KINDS = {
    "distribution-2.8": Kind("docker-registry", untags=False, pages_tags=False, referrers=False),
    "distribution-3": Kind("registry", untags=True, untags_broken=True, pages_tags=True, referrers=False),
    "zot": Kind("zot", untags=True, pages_tags=True, referrers=True, forgets_untagged=True),
}
