"""Signs by which a registry's product is known, where it matters: by its own ways beside the protocol, and by what it says to browsers."""

from __future__ import annotations

from worker.registry.auth import Authorizer
from worker.registry.scopes import Scope
from worker.registry.wire import Wire

HARBOR, ZOT = "Harbor", "zot"


async def product_of(wire: Wire, authorizer: Authorizer, registry: str) -> str | None:
    """`Harbor` or `zot`; None: it shows no sign of being either. RegistryError."""
    ping = await wire.send("GET", f"{wire.base(registry)}/api/v2.0/ping", headers={})
    if ping.status == 200 and ping.body.strip(b'" \n') == b"Pong":
        return HARBOR
    # zot's management extension is open to all, so that clients learn how to log in.
    management = await wire.send("GET", f"{wire.base(registry)}/v2/_zot/ext/mgmt", headers={})
    if management.status == 200 and b'"distSpecVersion"' in management.body:
        return ZOT
    # Without the extension its answers still allow browsers a header of its own.
    listed = await authorizer.send("GET", registry, "/v2/_catalog?n=1", Scope("catalog", ("*",), kind="registry"))
    return ZOT if "x-zot-" in listed.headers.get("access-control-allow-headers", "").lower() else None
