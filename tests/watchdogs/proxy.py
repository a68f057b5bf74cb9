"""A TCP link that can be made half open: what stands on it stays, and nothing comes through any more."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class HalfOpenLink:
    """Forwards a loopback port to another. `swallow` concerns the connections of that moment, later ones flow."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self._flowing: list[threading.Event] = []
        self._sockets: list[socket.socket] = []
        self._refuses = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="half-open-link", daemon=True)
        self._thread.start()

    def __enter__(self) -> HalfOpenLink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._thread.join()
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    @property
    def port(self) -> int:
        """The loopback port to connect to."""
        return int(self._listener.getsockname()[1])

    def swallow(self) -> int:
        """From now on whatever is sent over the present connections is read and thrown away; how many there are."""
        with self._lock:
            mute, self._flowing = self._flowing, []
        for flows in mute:
            flows.clear()
        return len(mute)

    def swallow_all(self) -> None:
        """Swallow, and answer no new connection either."""
        self._refuses.set()
        self.swallow()

    def heal(self) -> None:
        """New connections flow again; those that were swallowed stay dead."""
        self._refuses.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            flows = threading.Event()
            if not self._refuses.is_set():
                flows.set()
            with self._lock:
                self._flowing.append(flows)
                self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_copy, args=(source, target, flows), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, flows: threading.Event) -> None:
    """Bytes from one to the other; of a swallowed connection the end is not told either."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            if flows.is_set():
                target.sendall(data)
    if flows.is_set():
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
