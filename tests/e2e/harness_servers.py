"""Small servers on this machine that builds speak to: object storage with one bucket, and a proxy that writes down who was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def object_storage(address: str, objects: dict[str, bytes]) -> Iterator[str]:
    """What speaks enough of S3 to be read from: `bucket/key` -> content. Its endpoint. Requests must be signed, by whomever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = objects.get(urlsplit(self.path).path.lstrip("/"))
            signed = "Signature=" in self.headers.get("Authorization", "")
            if content is None or not signed:
                self._answer(404 if signed else 403, b"<Error><Code>NoSuchKey</Code></Error>" if signed else b"")
                return
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            first, _, last = wanted.partition("-")
            begin, end = int(first or 0), min(int(last or len(content) - 1), len(content) - 1)
            part = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"} if wanted else {}
            tag = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"}
            self._answer(206 if wanted else 200, content[begin : end + 1], **part, **tag)

        do_HEAD = do_GET

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@dataclass
class Proxy:
    """A proxy for plain HTTP."""

    url: str
    asked_for: list[str] = field(default_factory=list)
    """`host:port` of each connection that came through."""


@contextmanager
def proxy(address: str) -> Iterator[Proxy]:
    """It reads where the first request of a connection wants to go, and passes on whatever comes, as it comes."""
    listener = socket.create_server((address, 0))
    served = Proxy(f"http://{address}:{listener.getsockname()[1]}")

    def serve(client: socket.socket) -> None:
        with client:
            head = client.recv(65536)
            if not head:  # opened ahead of need, and never used
                return
            target = urlsplit(head.split(b" ", 2)[1].decode())
            assert target.hostname
            served.asked_for.append(target.netloc)
            with socket.create_connection((target.hostname, target.port or 80)) as server:
                server.sendall(head)
                back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
                back.start()
                _pass_on(client, server)
                back.join(10)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
