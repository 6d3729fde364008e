"""A base image with this machine's Go, for a cluster that reaches no registry but its own: busybox, and what one program needs of Go.

What the program's packages do not need of the standard library stays out, so the layer is a quarter of Go's size. It is made the same each
time, and sent only where the registry does not have it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.harness_cluster import missing
from tests.e2e.harness_images import ACCEPT

_TOOLS = ("asm", "compile", "link")
_OCI = "application/vnd.oci.image"


def push_golang(registry: str, program: Path) -> str:
    """Push an image that can build the program (a folder with go.mod); its reference."""
    if shutil.which("go") is None:
        missing("go is not on the PATH, and a base image is to be made of it")
    root = Path(_go("env", "GOROOT").strip())
    version = (root / "VERSION").read_text().split()[0].removeprefix("go")
    layer = _layer(root, _files(root, program))
    with httpx.Client(base_url=f"http://{registry}/v2/", trust_env=False, timeout=60) as http:
        return f"{registry}/{_push(http, 'e2e/golang', version, layer)}"


def _go(*arguments: str, folder: Path | None = None) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    done = subprocess.run(["go", *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _files(root: Path, program: Path) -> list[Path]:
    """What of Go's folder builds the program."""
    folders = [Path(line) for line in _go("list", "-deps", "-f", "{{if .Standard}}{{.Dir}}{{end}}", "./...", folder=program).split()]
    tools = root / "pkg/tool" / f"{_go('env', 'GOOS').strip()}_{_go('env', 'GOARCH').strip()}"
    found = [root / name for name in ("VERSION", "go.env", "bin/go", "src/go.mod", "src/vendor/modules.txt")]
    found += [tools / name for name in _TOOLS]
    for folder in (*folders, root / "pkg/include", root / "src/runtime/cgo"):  # headers: its assembler includes them
        found += [path for path in folder.iterdir() if path.is_file() and not path.name.endswith("_test.go")]
    return sorted(set(found))


def _layer(root: Path, files: list[Path]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path in files:
            member = tarfile.TarInfo(f"usr/local/go/{path.relative_to(root)}")
            member.size, member.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                archive.addfile(member, file)
    return raw.getvalue()


def _push(http: httpx.Client, repository: str, tag: str, layer: bytes) -> str:
    """Busybox with one more layer."""
    base, source = "base/busybox", {"Accept": ACCEPT}
    manifest: dict[str, Any] = http.get(f"{base}/manifests/1", headers=source).raise_for_status().json()
    if "manifests" in manifest:
        manifest = http.get(f"{base}/manifests/{manifest['manifests'][0]['digest']}", headers=source).raise_for_status().json()
    config: dict[str, Any] = http.get(f"{base}/blobs/{manifest['config']['digest']}").raise_for_status().json()
    config["rootfs"]["diff_ids"].append(_digest(layer))
    config["config"] = {"Env": ["PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOTOOLCHAIN=local", "GOPROXY=off"]}
    config.pop("history", None)
    layers = [
        {"mediaType": f"{_OCI}.layer.v1.tar+gzip", "digest": one["digest"], "size": one["size"]}
        for one in manifest["layers"]
        if _blob(http, repository, http.get(f"{base}/blobs/{one['digest']}").raise_for_status().content)
    ]
    packed = gzip.compress(layer, compresslevel=1, mtime=0)
    layers.append({"mediaType": f"{_OCI}.layer.v1.tar+gzip", **_blob(http, repository, packed)})
    described = {"mediaType": f"{_OCI}.config.v1+json", **_blob(http, repository, json.dumps(config).encode())}
    body = {"schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json", "config": described, "layers": layers}
    http.put(f"{repository}/manifests/{tag}", json=body, headers={"Content-Type": body["mediaType"]}).raise_for_status()
    return f"{repository}:{tag}"


def _blob(http: httpx.Client, repository: str, raw: bytes) -> dict[str, Any]:
    """Store a blob that is not there yet; its descriptor without a type."""
    digest = _digest(raw)
    if http.head(f"{repository}/blobs/{digest}").status_code != 200:
        begun = http.post(f"{repository}/blobs/uploads/").raise_for_status()
        url = begun.url.join(begun.headers["location"]).copy_add_param("digest", digest)
        http.put(url, content=raw, headers={"Content-Type": "application/octet-stream"}).raise_for_status()
    return {"digest": digest, "size": len(raw)}


def _digest(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()
