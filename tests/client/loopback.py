"""A real HTTP server on loopback that answers as a test says: for what is between a client and a real server."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Told:
    """What it is answered with."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] | None = None


Respond = Callable[[Asked], Told | None]
"""The answer; None: the connection is closed without one. May block."""


def told_json(status: int, body: object) -> Told:
    """An answer as Ondol's api writes it."""
    return Told(status, json.dumps(body).encode(), {"content-type": "application/json"})


class Loopback:
    """The server of a `with listening(…)`."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.asked: list[Asked] = []
        self.num_connections = 0
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def seen(self) -> list[str]:
        """Method and path of each request, in order."""
        return [f"{each.method} {each.path}" for each in self.asked]

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def listening(respond: Respond) -> Iterator[Loopback]:
    """A server that listens until the end of the block."""
    server = Loopback(respond)
    try:
        yield server
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256

    def __init__(self, owner: Loopback) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count the connection; all come by one thread."""
        self.owner.num_connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a client that has what it wants does not wait."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body)
        self.server.owner.asked.append(asked)
        told = self.server.owner.respond(asked)
        if told is None:
            self.close_connection = True
            return
        self.send_response(told.status)
        for name, value in (told.headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(told.body)))
        self.end_headers()
        self.wfile.write(told.body)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
