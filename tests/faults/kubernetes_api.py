"""What every Kubernetes of the tests shares: what a kind of request is called, how the API says no, and the file that leads to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]
KINDS = ("create", "read", "list", "watch", "log", "release", "delete", "events", "secret", "review")
"""The requests that crabpot makes. Troubles (`troubles.py`) and injection points (`points.py`) are named by them."""
_VERBS = {"POST": "create", "GET": "read", "PATCH": "release", "DELETE": "delete"}


def kind_of(method: str, path: str, *, watch: bool) -> str:
    """What a request is called, by its method and path."""
    if path.endswith("/log"):
        return "log"
    if path.endswith("/events"):
        return "events"
    if "/secrets/" in path:
        return "secret"
    if "selfsubjectaccessreviews" in path:
        return "review"
    if method == "GET" and path.endswith("/pods"):
        return "watch" if watch else "list"
    return _VERBS.get(method, method.lower())


def status(code: int, reason: str = "", message: str = "") -> Json:
    """A Status, as Kubernetes says no."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}


def write_kubeconfig(path: Path, server: str) -> Path:
    """A kubeconfig for a server without TLS, for this process and others."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server}}],
        "users": [{"name": "x", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(json.dumps(config))
    return path
