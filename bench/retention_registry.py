"""A registry of ten thousand tags for the retention figures: Debian's docker-registry over files that are written directly, which takes seconds."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPOSITORIES, TAGS = 50, 200
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_NEWEST = datetime(2026, 2, 27, tzinfo=UTC)


@contextmanager
def registry_of_many() -> Iterator[tuple[str, list[str]]]:
    """Its address and its repositories. Of 200 tags 150 are images of their own, 40 are second tags, 10 are indexes of two platforms."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"bench/app{number}" for number in range(REPOSITORIES)]
        for name in names:
            _fill(Path(folder) / "docker/registry/v2", name)
        config = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": folder}, "delete": {"enabled": True}},
            "http": {"addr": "127.0.0.1:0", "secret": "bench"},
        }
        (Path(folder) / "config.yml").write_text(json.dumps(config))
        command = ["docker-registry", "serve", Path(folder) / "config.yml"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr
            address = next(match[1] for line in process.stderr if (match := re.search(r"listening on (\S+?:\d+)", line)))
            threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
            yield address, names
        finally:
            process.terminate()
            process.wait(10)


def _fill(root: Path, name: str) -> None:
    base = [_blob(root, name, b"base layer %d" % number) for number in range(3)]
    images = [_image(root, name, number, base) for number in range(150 + 2 * 10)]
    tagged = [image["digest"] for image in images[:150]]
    tagged += tagged[:40]
    for number in range(10):
        children = [{**image, "mediaType": OCI_MANIFEST} for image in images[150 + 2 * number :][:2]]
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).encode()
        tagged.append(_manifest(root, name, body)["digest"])
    for number, digest in enumerate(tagged):
        folder = root / "repositories" / name / "_manifests/tags" / _tag(number)
        _write(folder / "current/link", str(digest).encode())
        _write(folder / "index/sha256" / str(digest)[7:] / "link", str(digest).encode())


def _tag(number: int) -> str:
    if number % 10 == 0:
        return f"v1.{number // 50}.{number}"
    return f"{'main' if number % 2 else f'feature-{number % 7}'}-{hashlib.sha1(str(number).encode()).hexdigest()[:12]}"


def tag_names() -> list[str]:
    """The tags of each of the repositories."""
    return [_tag(number) for number in range(TAGS)]


def _image(root: Path, name: str, number: int, base: list[dict[str, object]]) -> dict[str, object]:
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "created": (_NEWEST - timedelta(days=number)).isoformat(), "of": f"{name} {number}"}
    ).encode()
    own = [_blob(root, name, f"{name} {number} {layer}".encode()) for layer in range(2)]
    layers = [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **layer} for layer in (*base, *own)]
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", **_blob(root, name, config)}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": layers}
    return _manifest(root, name, json.dumps(body).encode())


def _manifest(root: Path, name: str, raw: bytes) -> dict[str, object]:
    digest = _store(root, raw)
    _write(root / "repositories" / name / "_manifests/revisions/sha256" / digest / "link", f"sha256:{digest}".encode())
    return {"digest": f"sha256:{digest}", "size": len(raw)}


def _blob(root: Path, name: str, raw: bytes) -> dict[str, object]:
    digest = _store(root, raw)
    _write(root / "repositories" / name / "_layers/sha256" / digest / "link", f"sha256:{digest}".encode())
    return {"digest": f"sha256:{digest}", "size": len(raw)}


def _store(root: Path, raw: bytes) -> str:
    digest = hashlib.sha256(raw).hexdigest()
    _write(root / "blobs/sha256" / digest[:2] / digest / "data", raw)
    return digest


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
