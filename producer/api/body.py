"""Reading a request's body up to a cap: what is larger is refused before it is in memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request


async def read_capped(request: Request, limit: int) -> bytes:
    """The body. HTTPException 413 where it is, or says that it is, larger than `limit` bytes."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise HTTPException(413, f"the body may have {limit} bytes at most, not {length}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"the body may have {limit} bytes at most")
    return bytes(body)
