"""Every setting, read from the environment once, at a process's entry point. Each is CRABPOT_ and its name in capitals."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ledger.errors import Problem, SettingsInvalid
from ledger.fields import Cpu, Duration, Image, Memory, Name
from ledger.quantities import parse_duration


def _redis_url(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://, as redis://127.0.0.1:6379/0")
    return url


class Settings(BaseSettings):
    """The process's settings, grouped by topic."""

    model_config = SettingsConfigDict(env_prefix="CRABPOT_", frozen=True, use_attribute_docstrings=True, extra="ignore")

    # The ledger
    redis_url: Annotated[str, AfterValidator(_redis_url)] = "redis://127.0.0.1:6379/0"
    """Redis 7 or newer, with AOF and maxmemory-policy noeviction; the ledger and Celery's queues live in it."""
    prefix: str = "crabpot"
    """Begins every key, so that several crabpots can share one Redis."""
    broker_url: str | None = None
    """Celery's broker, if it is to be another Redis than the ledger's."""
    keep_finished: Duration = "30d"
    """How long the record and log of a finished build are kept."""
    log_bytes_per_build: Memory = "4Mi"
    """Compressed log kept of one attempt; the oldest lines go first."""
    log_bytes_total: Memory = "512Mi"
    """Compressed log kept of all builds together; the oldest builds' logs go first."""
    event_stream_length: Annotated[int, Field(ge=1000)] = 100_000
    """Events kept in the stream."""
    allow_unsafe_redis: bool = False
    """Start although Redis may evict keys or has no AOF: for tests and trials only."""

    # Projects and limits
    projects: Path | None = None
    """The projects file (YAML); `crabpot serve` and `crabpot watch` store what it says in the ledger when they start."""

    # Where builds run
    cluster: Literal["kubernetes", "local"] = "kubernetes"
    kubeconfig: Path | None = None
    """Unset: the service account's token inside a cluster, else kubectl's own default."""
    context: str | None = None
    """The kubeconfig's context, if not its current one."""
    namespace: Name = "crabpot-builds"
    """Where the pods of projects run that name no namespace of their own."""
    state: Path = Path(tempfile.gettempdir()) / "crabpot"
    """local: the folder of launches and image storage."""
    executor: str = "python -m worker.executor"
    """local: the program that takes Kaniko's flags (split as a shell would)."""
    executor_image: Image = "ghcr.io/osscontainertools/kaniko:v1.28.3"
    """The image that builds: the maintained fork of Kaniko, pinned."""
    cpu: Cpu | None = None
    """A build's CPU where neither request nor project says."""
    memory: Memory | None = "2Gi"
    """A build's memory where neither request nor project says."""
    start_timeout: Duration = "15s"
    """How long a `starting` build may be without a pod before its start is repeated."""
    node_lost_timeout: Duration = "10m"
    """How long a pod on an unreachable node is waited for before the attempt is given up."""

    alive_file: Path | None = None
    """worker, watch: touched while the process does its work; `python -m worker.alive FILE` is the probe that looks at it."""

    # The front door
    bind: str = "127.0.0.1:8080"
    """Where `crabpot serve` listens, as host:port."""
    api_token: str | None = Field(default=None, repr=False)
    """The bearer token of the REST API; needed off loopback, and by the CLI with CRABPOT_URL."""
    url: str | None = None
    """CLI: the server to speak to; unset, the CLI runs the same application itself against CRABPOT_REDIS_URL."""
    public_url: str = "http://127.0.0.1:8080"
    """Where people reach this crabpot; the source of its events."""
    webhook_body_limit: Memory = "25Mi"

    # Logging
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def broker(self) -> str:
        return self.broker_url or self.redis_url

    @property
    def keep_finished_seconds(self) -> float:
        return parse_duration(self.keep_finished)

    @classmethod
    def load(cls) -> Self:
        """From the environment; SettingsInvalid names the variables that are wrong."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsInvalid(
                [
                    Problem(
                        f"CRABPOT_{'_'.join(str(part) for part in detail['loc']).upper()}",
                        "a value not shown here" if "TOKEN" in str(detail["loc"]).upper() else repr(detail["input"]),
                        detail["msg"].removeprefix("Value error, "),
                    )
                    for detail in error.errors(include_url=False, include_context=False)
                ]
            ) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """This process's settings, read once."""
    return Settings.load()
