"""What of Kaniko's own a request may steer: the further flags that are allowed, and the variables that are not."""

from __future__ import annotations

import re

SECRET_LOOKING = re.compile(r"(?i)passw|secret|token|api_?key|private_?key|credential|(?<![a-z])(?:pwd|pat)(?![a-z])")
RESERVED_ENVIRONMENT = re.compile(
    r"(?i)(FF_)?KANIKO_.*|GIT_.*|S3_.*|AWS_.*|BUILDER_OUTPUT|DOCKER_(AUTH_)?CONFIG|GOOGLE_APPLICATION_CREDENTIALS|OTEL_.*"
    r"|SSL_CERT_(DIR|FILE)|HOME|USER|PATH|IFS|LD_.*"
)
"""Variables that steer Kaniko itself, or that crabpot sets: they are said by fields of the request, not by its environment."""
EXTRA_FLAGS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "cache-copy-layers": "true|false", "cache-run-layers": "true|false", "cleanup": "true|false", "compressed-caching": "true|false",
        "compression": "gzip|zstd", "compression-level": r"-?\d{1,2}", "git": r"(branch|single-branch|depth|recurse-submodules)=[\w./-]+(,(branch|single-branch|depth|recurse-submodules)=[\w./-]+)*",
        "ignore-path": r"/[^,]*", "image-download-retry": r"\d{1,2}", "image-fs-extract-retry": r"\d{1,2}", "image-format": "docker|oci",
        "log-timestamp": "true|false", "push-ignore-immutable-tag-errors": "true|false", "push-retry": r"\d{1,2}", "reproducible": "true|false",
        "single-snapshot": "true|false", "skip-push-permission-check": "true|false", "skip-unused-stages": "true|false",
        "snapshot-mode": "full|redo|time", "use-new-run": "true|false", "verbosity": "trace|debug|info|warn|error",
    }.items()
}  # fmt: skip
"""Further Kaniko flags that a request may set, and the values each takes. None of them names a host, a file to write or a credential."""
