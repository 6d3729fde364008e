"""Speaking REST: to the server at CRABPOT_URL, or to the same application, run here on a private Unix socket."""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from ledger.build import State
from ledger.errors import (
    Conflict,
    CrabpotError,
    LedgerUnavailable,
    NotFound,
    PolicyDenied,
    Problem,
    QueueFull,
    RequestInvalid,
    ServerUnavailable,
    SettingsInvalid,
)
from ledger.settings import Settings, settings

_START_SECONDS = 10.0
_BACK = 90.0
"""Seconds for a server that answered before to answer again."""
_PULSE = 60.0
"""Seconds of silence after which a followed build's server is taken for gone; it says the record again every quarter of this."""


class Client:
    """The REST API as calls; its problems as crabpot's errors."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submit(self, request: dict[str, Any], key: str | None, timeout: float = 0.0) -> dict[str, Any]:
        """Queue a build; goes on trying for `timeout` seconds while the server or Redis is away, or the queue is full. One build, however often."""
        end = time.monotonic() + timeout
        headers = {"Idempotency-Key": key or str(uuid4())} if key or timeout else {}
        while True:
            try:
                return self._json("POST", "/v1/builds", "id", json=request, headers=headers)
            except (ServerUnavailable, LedgerUnavailable, QueueFull):
                pause = random.uniform(0.3, 2.0)
                if time.monotonic() + pause > end:
                    raise
                time.sleep(pause)

    def page(self, **query: str | int | None) -> dict[str, Any]:
        return self._json("GET", "/v1/builds", "builds", params={key: value for key, value in query.items() if value is not None})

    def show(self, build: str) -> dict[str, Any]:
        return self._json("GET", _path(build), "id")

    def cancel(self, build: str) -> dict[str, Any]:
        return self._json("POST", f"{_path(build)}/cancel", "id")

    def retry(self, build: str) -> dict[str, Any]:
        return self._json("POST", f"{_path(build)}/retry", "id")

    def promote(self, request: dict[str, Any], key: str | None) -> dict[str, Any]:
        return self._json("POST", "/v1/promotions", "id", json=request, headers={"Idempotency-Key": key} if key else {})

    def promotion(self, promotion: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/promotions/{quote(promotion, safe='')}", "id")

    def limits(self) -> dict[str, Any]:
        return self._json("GET", "/v1/limits", "limits")

    def set_limit(self, scope: str, limit: int) -> dict[str, Any]:
        return self._json("PUT", f"/v1/limits/{quote(scope)}", "limits", json={"limit": limit})

    def reset_limit(self, scope: str) -> dict[str, Any]:
        return self._json("DELETE", f"/v1/limits/{quote(scope)}", "limits")

    def pause(self, scope: str) -> dict[str, Any]:
        return self._json("PUT", f"/v1/pauses/{quote(scope)}", "limits")

    def resume(self, scope: str) -> dict[str, Any]:
        return self._json("DELETE", f"/v1/pauses/{quote(scope)}", "limits")

    def changes(self, build: str, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """The record now and after every change, until it has ended or `timeout` seconds are over.

        An answer may end before the build (its server is restarted, a proxy cuts it): it is asked for again, until `_BACK` seconds have
        passed without any.
        """
        start = heard = time.monotonic()
        first = True
        while True:
            left = None if timeout is None else max(0.0, start + timeout - time.monotonic())
            query = {"follow": "1"} if left is None else {"follow": "1", "timeout": str(left)}
            try:
                with self._stream(_path(build), query, _PULSE) as answer:
                    for line in answer.iter_lines():
                        record = self._told(line, "state")
                        first, heard = False, time.monotonic()
                        yield record
                        if State(record["state"]).final:
                            return
                if timeout is not None and time.monotonic() >= start + timeout:
                    return
            except (ServerUnavailable, LedgerUnavailable):
                if first or time.monotonic() > heard + _BACK:
                    raise
            time.sleep(random.uniform(0.3, 1.0))

    def logs(self, build: str, **query: str | int | None) -> Iterator[str]:
        """The log's text as it comes."""
        given = {key: str(value) for key, value in query.items() if value is not None}
        with self._stream(f"{_path(build)}/logs", given, None) as answer:
            yield from answer.iter_text()

    def _json(self, method: str, path: str, key: str, **more: Any) -> dict[str, Any]:
        with _translated(self._http):
            answer = self._http.request(method, path, **more)
            _check(answer)
            return self._told(answer.text, key)

    def _told(self, text: str, key: str) -> dict[str, Any]:
        """The JSON object of an answer, which has this key if the server is one of ours."""
        try:
            told = json.loads(text)
        except ValueError:
            told = None
        if not isinstance(told, dict) or key not in told:
            where = str(self._http.base_url)
            raise SettingsInvalid([Problem("CRABPOT_URL", where, "must be a crabpot server's address; this one answers something else")])
        return told

    @contextmanager
    def _stream(self, path: str, query: dict[str, str], silence: float | None) -> Iterator[httpx.Response]:
        with _translated(self._http), self._http.stream("GET", path, params=query, timeout=httpx.Timeout(30.0, read=silence)) as answer:
            if not answer.is_success:
                answer.read()
            _check(answer)
            yield answer


def _path(build: str) -> str:
    return f"/v1/builds/{quote(build, safe='') or '%20'}"


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the server that the settings name, or of one run here for the length of the block."""
    given = settings()
    if given.url:
        headers = {"Authorization": f"Bearer {given.api_token}"} if given.api_token else {}
        with httpx.Client(base_url=given.url, headers=headers, timeout=30.0) as http:
            yield Client(http)
        return
    with (
        _served_here(given) as socket,
        httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://crabpot", timeout=30.0) as http,
    ):
        yield Client(http)


@contextmanager
def _served_here(given: Settings) -> Iterator[Path]:
    """The application on a Unix socket in a folder that only this user may enter."""
    import structlog
    import uvicorn

    from ledger.store import Ledger
    from producer.api import create_app

    # What the command prints is its answer; the server within tells of trouble only, and elsewhere.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    with tempfile.TemporaryDirectory(prefix="crabpot-") as folder:
        socket = Path(folder) / "api"
        app = create_app(Ledger.open(given), given, anyone=True)
        config = uvicorn.Config(app, uds=str(socket), log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, name="api", daemon=True)
        thread.start()
        try:
            _await_start(server, thread)
            yield socket
        finally:
            server.should_exit = True
            thread.join(5)


def _await_start(server: Any, thread: threading.Thread) -> None:
    waited = 0.0
    while not server.started:
        thread.join(0.005)
        waited += 0.005
        if not thread.is_alive() or waited > _START_SECONDS:
            raise ServerUnavailable("the API could not be started on a private socket; set CRABPOT_URL to a server instead")


@contextmanager
def _translated(http: httpx.Client) -> Iterator[None]:
    where = str(http.base_url).rstrip("/")
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise SettingsInvalid([Problem("CRABPOT_URL", where, f"must be an http or https URL ({error})")]) from None
    except httpx.HTTPError as error:
        raise ServerUnavailable(f"{where} does not answer ({error}); check CRABPOT_URL and that `crabpot serve` runs") from None


def _check(answer: httpx.Response) -> None:
    """The server's problem as the error that it was there."""
    if answer.is_success:
        return
    if answer.is_redirect:
        there = f"must be the server's own address; this one sends elsewhere, to {answer.headers.get('location', 'nowhere')}"
        raise SettingsInvalid([Problem("CRABPOT_URL", str(answer.request.url), there)])
    try:
        told = answer.json()
        detail = str(told["detail"])
    except (ValueError, KeyError, TypeError):
        told, detail = {}, f"the server answered {answer.status_code} without saying why; is CRABPOT_URL a crabpot server?"
    problems = [Problem(item["path"], item["given"], item["allowed"]) for item in told.get("problems", [])]
    match answer.status_code:
        case 400 | 413:
            raise RequestInvalid(problems or detail)
        case 403 if problems:
            raise PolicyDenied(problems)
        case 401 | 403:
            raise SettingsInvalid(detail)
        case 404:
            raise NotFound(detail)
        case 409:
            raise Conflict(detail)
        case 429:
            raise QueueFull(detail)
        case 502 | 503 | 504:
            raise LedgerUnavailable(detail)
    raise CrabpotError(detail)
