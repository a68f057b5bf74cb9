"""A TCP link that can be cut, stalled, or torn behind a commit, between the processes and Redis or PostgreSQL."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

_COMMIT = b"COMMIT"
_RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""struct linger: on, no time: closing sends RST."""


class Link:
    """Forwards a loopback port to a server; `connect` opens a connection to that server."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._flows = threading.Event()
        self._flows.set()
        self._tear = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.num_torn = 0
        threading.Thread(target=self._accept, name="chaos-link", daemon=True).start()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.resume()
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(timeout=5)

    @property
    def port(self) -> int:
        """The loopback port to connect to."""
        return int(self._listener.getsockname()[1])

    def reset(self) -> int:
        """Cut all connections with a reset; how many."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        return len(pairs)

    def stall(self) -> None:
        """Hold back all bytes, in both directions, of old and new connections."""
        self._flows.clear()

    def resume(self) -> None:
        """Let the bytes go on."""
        self._flows.set()

    def tear(self) -> None:
        """Lose the answer to the next commit, and its connection with it; the server gets the commit."""
        self._tear.set()

    def forget_tear(self) -> None:
        """Tear nothing that has not been torn yet."""
        self._tear.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        pair = (client, server)
        with self._lock:
            self._pairs.append(pair)
        back = threading.Thread(target=self._copy, args=(server, client, False), daemon=True)
        back.start()
        self._copy(client, server, True)
        back.join()
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        for sock in pair:
            sock.close()

    def _copy(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._flows.wait()
                if is_request and self._tear.is_set() and _COMMIT in data:
                    self._tear.clear()
                    source.shutdown(socket.SHUT_RDWR)  # first: the answer must not get through
                    target.sendall(data)
                    self.num_torn += 1
                    break
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
