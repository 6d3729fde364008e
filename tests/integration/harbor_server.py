"""What crabpot asks of Harbor, by a server of ours: its token service, its own API, and the protocol answered by a real registry behind it.

Harbor itself is nine processes and a database. What is imitated is what its swagger.yaml and its sources say.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx

from tests.integration.registry_server import PASSWORD, USER, RegistryServer, Reply, Request, ScriptedServer

NEVER = "0001-01-01T00:00:00.000Z"
BASIC = httpx.BasicAuth(USER, PASSWORD)._auth_header
JSON = {"Content-Type": "application/json; charset=utf-8"}


def artifact(digest: str, pulled: str, tags: Mapping[str, str] | None) -> dict[str, Any]:
    """An artifact as Harbor lists it: when it was pulled, and each of its tags; tags None: it has none."""
    told = None if tags is None else [{"id": 1, "name": name, "pull_time": at, "push_time": NEVER} for name, at in tags.items()]
    return {"id": 1, "type": "IMAGE", "digest": digest, "pull_time": pulled, "push_time": NEVER, "tags": told}


class Harbor(ScriptedServer):
    """It asks for a token on /v2/, and for a user and password on its own API; `open` asks for nothing."""

    def __init__(self, *, behind: RegistryServer | None = None, guarded: bool = True, realm: str | None = None) -> None:
        super().__init__(self._answer)
        self._behind, self._guarded, self._realm = behind, guarded, realm
        self.artifacts: dict[str, list[dict[str, Any]]] = {}
        """By repository."""
        self.instead: Callable[[Request], Reply | None] | None = None
        """What its API answers instead."""

    def asked_its_api(self) -> list[Request]:
        return [request for request in self.requests if "/artifacts" in request.path]

    def _answer(self, request: Request) -> Reply | None:
        if request.path == "/api/v2.0/ping":
            return Reply(200, JSON, b"Pong")
        if request.path == "/service/token":
            return Reply(200, JSON, b'{"token": "a-token", "expires_in": 1800}')
        if request.path.startswith("/v2/"):
            return self._registry(request)
        if self.instead is not None:
            return self.instead(request)
        if self._guarded and request.headers.get("authorization") != BASIC:
            return Reply(401, JSON, b'{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized: unauthorized"}]}')
        return self._list(request)

    def _registry(self, request: Request) -> Reply | None:
        if self._guarded and request.headers.get("authorization") != "Bearer a-token":
            realm = self._realm or f"http://{self.host}/service/token"
            return Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="harbor-registry"'})
        if self._behind is None:
            return Reply() if request.path == "/v2/" else Reply(404)
        with httpx.Client(base_url=f"http://{self._behind.host}", trust_env=False) as http:
            query = {name: values[0] for name, values in request.query.items()}
            answer = http.request(request.method, request.path, params=query, headers={"Accept": request.headers.get("accept", "*/*")})
        own = ("connection", "transfer-encoding", "content-length")
        kept = {name: value for name, value in answer.headers.items() if name not in own}
        if request.method == "HEAD":
            kept |= {"Content-Length": answer.headers.get("content-length", "0")}
        return Reply(answer.status_code, kept, answer.content)

    def _list(self, request: Request) -> Reply:
        for repository, artifacts in self.artifacts.items():
            project, _, name = repository.partition("/")
            path = f"/api/v2.0/projects/{project}/repositories/{quote(quote(name, safe=''), safe='')}/artifacts"
            if request.path == path and request.query["with_tag"] == ["true"]:
                page, size = int(request.query["page"][0]), int(request.query["page_size"][0])
                links = [f'<{path}?page={page - 1}&page_size={size}>; rel="prev"'] if page > 1 else []
                links += [f'<{path}?page={page + 1}&page_size={size}>; rel="next"'] if page * size < len(artifacts) else []
                head = {"Link": " , ".join(links), "X-Total-Count": str(len(artifacts))}
                return Reply(200, JSON | head, json.dumps(artifacts[(page - 1) * size : page * size]).encode())
        return Reply(404, JSON, b'{"errors":[{"code":"NOT_FOUND","message":"repository not found"}]}')


@asynccontextmanager
async def harbor(**named: Any) -> AsyncIterator[Harbor]:
    server = Harbor(**named)
    async with server.running():
        yield server
