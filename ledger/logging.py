"""structlog, set up once per process: JSON lines, or colours on a developer's terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from ledger.redaction import clean
from ledger.settings import Settings


def _redact(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """The last line of defence: no secret-looking value leaves by a log line."""
    return {key: clean(value) if isinstance(value, str) else value for key, value in event.items()}


def set_up(settings: Settings) -> None:
    """Log to standard error from now on; the standard library's loggers too."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    console = settings.log_format == "console"
    render: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else structlog.processors.JSONRenderer()
    level = logging.getLevelName(settings.log_level.upper())
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for noisy in ("httpx", "httpcore", "kubernetes_asyncio", "watchfiles", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
