"""A Redis for a benchmark: AOF on with everysec, as shipped."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry


@contextmanager
def redis_with_aof() -> Iterator[str]:
    """Start it, point CRABPOT_REDIS_URL at it, and stop it at the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [
                "redis-server",
                "--port",
                str(port),
                "--dir",
                folder,
                "--appendonly",
                "yes",
                "--appendfsync",
                "everysec",
                "--maxmemory-policy",
                "noeviction",
                "--save",
                "",
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            redis.Redis(port=port, retry=Retry(ConstantBackoff(0.02), 500)).ping()
            url = f"redis://127.0.0.1:{port}/0"
            os.environ["CRABPOT_REDIS_URL"] = url
            yield url
        finally:
            server.terminate()
            server.wait(10)
