"""Small servers on this machine that builds speak to: files over TLS, and a proxy that writes down who was asked for."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


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
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{address}:{server.server_port}"
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
