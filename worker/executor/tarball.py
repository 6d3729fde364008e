"""The tar of an image under several names: Buildah writes one name, Kaniko all destinations'."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_MANIFEST = "manifest.json"


def name_images(source: Path, target: Path, names: Sequence[str]) -> None:
    """Write `source`, a docker-archive of one image, to `target` with all the names."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            content: IO[bytes] | None = old.extractfile(member) if member.isfile() else None
            if member.name == _MANIFEST and content:
                manifest = json.load(content)
                manifest[0]["RepoTags"] = list(names)
                text = json.dumps(manifest).encode()
                member.size, content = len(text), io.BytesIO(text)
            new.addfile(member, content)
