"""Registries as the tests look into them: an image's digest, configuration and files, read over plain HTTP without crabpot's client."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

MEDIA_TYPES = ("oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2", "docker.distribution.manifest.v2")
ACCEPT = ", ".join(f"application/vnd.{kind}+json" for kind in MEDIA_TYPES)


@dataclass
class Image:
    """One image in a registry, as an image reference or digest names it."""

    reference: str
    """`host:port/repository:tag` or `…@digest`."""
    auth: tuple[str, str] | None = None

    @property
    def _place(self) -> tuple[str, str, str]:
        host, _, rest = self.reference.partition("/")
        repository, at, digest = rest.partition("@")
        if at:
            return host, repository, digest
        repository, _, tag = rest.rpartition(":")
        return host, repository, tag

    def _get(self, path: str) -> httpx.Response:
        host, repository, _ = self._place
        url = f"http://{host}/v2/{repository}/{path}"
        return httpx.get(url, headers={"Accept": ACCEPT}, auth=self.auth, trust_env=False, timeout=20)

    @property
    def exists(self) -> bool:
        answer = self._get(f"manifests/{self._place[2]}")
        assert answer.status_code in (200, 404), answer.text
        return answer.status_code == 200

    @cached_property
    def _manifest(self) -> tuple[dict[str, Any], str]:
        answer = self._get(f"manifests/{self._place[2]}")
        assert answer.status_code == 200, f"{self.reference}: {answer.status_code} {answer.text}"
        return answer.json(), "sha256:" + hashlib.sha256(answer.content).hexdigest()

    @property
    def digest(self) -> str:
        return self._manifest[1]

    @property
    def size(self) -> int:
        manifest = self._manifest[0]
        return int(manifest["config"]["size"] + sum(layer["size"] for layer in manifest["layers"]))

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self._get(f"blobs/{self._manifest[0]['config']['digest']}").raise_for_status().json())

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.config["config"].get("Labels") or {})

    @property
    def history(self) -> str:
        return "\n".join(str(entry) for entry in self.config.get("history", ()))

    def blob_texts(self) -> list[bytes]:
        """The configuration and every layer, unpacked: wherever a secret could hide."""
        return [str(self.config).encode(), *self._layers]

    @cached_property
    def _layers(self) -> list[bytes]:
        raws = [self._get(f"blobs/{layer['digest']}").raise_for_status().content for layer in self._manifest[0]["layers"]]
        return [gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw for raw in raws]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Regular files by their absolute path, the layers laid over each other."""
        found: dict[str, bytes] = {}
        for layer in self._layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
                for member in archive:
                    path = "/" + member.name.lstrip("./")
                    folder, _, name = path.rpartition("/")
                    if name.startswith(".wh."):
                        found.pop(f"{folder}/{name.removeprefix('.wh.')}", None)
                    elif member.isfile():
                        content = archive.extractfile(member)
                        assert content
                        found[path] = content.read()
        return found

    def text(self, path: str) -> str:
        return self.files[path].decode()
