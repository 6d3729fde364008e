"""The front door as processes see it: the real application on a free port, and a forge that signs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

from ledger.settings import Settings
from ledger.store import Ledger
from producer.api import create_app
from tests.conftest import free_port

SECRET = "the webhook's secret"


@asynccontextmanager
async def served(ledger: Ledger, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application over HTTP."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(ledger, settings), port=port, log_config=None, lifespan="off", access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client
    server.should_exit = True
    await task


def signed(payload: Any, *, secret: str = SECRET, delivery: str = "d1", event: str = "push") -> dict[str, Any]:
    """A delivery as GitHub sends it: the arguments of a POST."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": f"sha256={signature}",
    }
    return {"content": body, "headers": headers}


def push(commit: str, *, ref: str = "refs/heads/main", name: str = "team/demo", **more: Any) -> dict[str, Any]:
    return {
        "ref": ref,
        "after": commit,
        "deleted": False,
        "repository": {"full_name": name, "clone_url": "https://evil.example.com/x.git"},
        **more,
    }
