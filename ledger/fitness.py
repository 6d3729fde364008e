"""Whether a Redis may hold the ledger: its version and the settings that would lose builds."""

from __future__ import annotations

from dataclasses import dataclass

from ledger.connection import Connection
from ledger.errors import LedgerError, LedgerUnfit

MINIMUM = (7, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: whether it is well, what was found, and how to mend it."""

    name: str
    well: bool
    found: str
    mend: str = ""


async def examine(connection: Connection) -> list[Finding]:
    """Look at Redis's version, persistence and eviction. LedgerUnavailable where it does not answer."""
    info = await connection.command("INFO")
    told = info if isinstance(info, dict) else _parsed(info)
    version = str(told.get("redis_version", "0.0"))
    known = tuple(int(part) for part in version.split(".")[:2])
    policy = str(told.get("maxmemory_policy", "unknown"))
    aof = str(told.get("aof_enabled", "0")) == "1"
    findings = [
        Finding("redis version", known >= MINIMUM, version, "install Redis 7.0 or newer: the ledger's Lua needs its script flags"),
        Finding(
            "redis eviction",
            policy == "noeviction",
            f"maxmemory-policy {policy}",
            "set `maxmemory-policy noeviction`: an evicted key is a lost build",
        ),
        Finding(
            "redis persistence",
            aof,
            f"appendonly {'yes' if aof else 'no'}",
            "set `appendonly yes`: without it a restart of Redis loses every build",
        ),
    ]
    if aof:
        findings.append(Finding("redis fsync", True, await _fsync(connection)))
    return findings


async def require_fit(connection: Connection) -> None:
    """LedgerUnfit, saying each setting to mend, where this Redis would lose builds."""
    faults = [finding for finding in await examine(connection) if not finding.well]
    if faults:
        said = "; ".join(f"{fault.name}: {fault.found}: {fault.mend}" for fault in faults)
        raise LedgerUnfit(f"Redis is not fit to hold the ledger: {said} (CRABPOT_ALLOW_UNSAFE_REDIS=true starts all the same, for trials)")


async def _fsync(connection: Connection) -> str:
    try:
        answer = await connection.command("CONFIG", "GET", "appendfsync")
    except LedgerError:
        return "appendfsync not readable here; everysec may cost two seconds of writes, always costs none"
    value = next(iter(answer.values())) if isinstance(answer, dict) else answer[1]
    told = {
        "everysec": "a power cut, or a kill while the disk is busy, may cost the last two seconds; `appendfsync always` costs none",
        "always": "neither a kill nor a power cut costs anything",
        "no": "a power cut may cost much",
    }
    return f"appendfsync {value.decode()}: {told.get(value.decode(), '')}"


def _parsed(info: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
