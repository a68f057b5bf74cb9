"""A receiver of webhooks: a real HTTP server on a fixed port that can be stopped and started again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ondol.control.host import free_port

OK = 204


@dataclass(frozen=True, slots=True)
class Received:
    """One POST and the status that it was answered with."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def id(self) -> str:
        """What says that two deliveries are one."""
        return self.headers["webhook-id"]


Respond = Callable[[str], tuple[int, Mapping[str, str]]]
"""Status and headers for a path; may block."""


class Receiver:
    """Answers every POST by `respond` (by default 204) and remembers it, over restarts."""

    def __init__(self, respond: Respond | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[Received] = []
        self._respond: Respond = respond or (lambda _path: (OK, {}))
        self._server: _Server | None = None
        self._thread = threading.Thread()

    def start(self) -> None:
        """Listen."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the port: who connects is refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def accepted(self) -> list[Received]:
        """What was answered with success."""
        return [each for each in self.received if 200 <= each.status < 300]

    def ids_at(self, path: str) -> list[str]:
        """The webhook-ids of what came to a path, in order."""
        return [each.id for each in self.received if each.path == path]

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        """The answer; on the server's threads."""
        status, more = self._respond(path)
        self.received.append(Received(path, headers, body, status))
        return status, more


@contextlib.contextmanager
def receiving(respond: Respond | None = None) -> Iterator[Receiver]:
    """A receiver that listens until the end of the block."""
    receiver = Receiver(respond)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(("127.0.0.1", receiver.port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a sender that was killed does not wait for its answer."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, more = self.server.receiver.take(self.path, headers, body)
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
