"""Small servers on this machine that builds speak to: files over TLS, object storage, and a proxy that writes down who was asked for."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@contextmanager
def relay(host: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to another's, as a load balancer that hands TLS through."""

    class Both(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, port)) as server:
                back = threading.Thread(target=carry, args=(server, self.request))
                back.start()
                carry(self.request, server)
                back.join()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Both) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()


@contextmanager
def files_over_tls(address: str, certificate: Path, key: Path, files: dict[str, bytes]) -> Iterator[str]:
    """A web server with a certificate that nobody knows: path -> content. Its `host:port`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with _served(server) as port:
        yield f"{address}:{port}"


ACCESS_KEY = "e2e-access-key"
"""Whose signature the object storage wants to see on S3's requests; it does not verify it."""


@contextmanager
def object_storage(address: str, objects: dict[str, bytes]) -> Iterator[str]:
    """As much of S3 and of Google's XML API as a client needs to read: `/bucket/key` -> content. Its `host:port`.

    S3's requests must be signed with a key.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path not in objects:
                self._answer(404, b"")
            elif "x-id" in urlsplit(self.path).query and f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
                self._answer(403, b"")
            else:
                self._answer_part(objects[path])

        def _answer_part(self, content: bytes) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted is None:
                self._answer(200, content)
                return
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            self._answer(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "ETag": '"e2e"', **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _served(ThreadingHTTPServer((address, 0), Handler)) as port:
        yield f"{address}:{port}"


@dataclass(frozen=True)
class Gate:
    """Where the RUN of a Dockerfile waits until it is opened: what a test does before falls into the build, however slow the machine is."""

    wait: str
    """The shell's command for it."""
    _objects: dict[str, bytes]

    def open(self) -> None:
        self._objects["/open"] = b"open"


@contextmanager
def gate(address: str) -> Iterator[Gate]:
    """A gate at this machine's address, as pods reach it."""
    objects: dict[str, bytes] = {}
    with object_storage(address, objects) as host:
        yield Gate(f"until wget -q -O /dev/null http://{host}/open; do sleep 0.2; done", objects)


@contextmanager
def _served(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
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
