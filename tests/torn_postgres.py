"""A link to PostgreSQL that breaks behind a commit: the server has committed, and the client never learns it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import sqlalchemy as sa

_COMMIT = b"COMMIT"


class TornPostgres:
    """A forwarding port in front of a server. `tear()`: the answer to the next commit is lost with its connection."""

    def __init__(self, url: str) -> None:
        self._upstream = sa.make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tear = threading.Event()
        self._cut = threading.Event()
        self._refuse = threading.Event()
        self._open: list[socket.socket] = []
        self.num_to_tear = self.num_torn = self.num_to_cut = 0
        threading.Thread(target=self._accept, name="torn-postgres", daemon=True).start()

    @property
    def url(self) -> str:
        """The same database through this link."""
        query = {"host": "127.0.0.1", "port": str(self._listener.getsockname()[1])}
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        through = self._upstream.set(host=None, port=None, query=query | plain)
        return through.render_as_string(hide_password=False)

    def tear(self, *, then_refuse: bool = False) -> None:
        """Lose the answer to the next commit; `then_refuse`: no new connection is let through after it."""
        self.num_to_tear += 1
        self._tear.set()
        if then_refuse:
            self._refuse.set()

    def cut(self) -> None:
        """Lose the next commit itself, which rolls its transaction back, and let no new connection through after it."""
        self.num_to_cut += 1
        self._cut.set()
        self._refuse.set()

    def let_in(self) -> None:
        """Let new connections through again."""
        self._refuse.clear()

    def close(self) -> None:
        """Close every connection."""
        self._listener.close()
        for sock in self._open:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuse.is_set() and not (self._tear.is_set() or self._cut.is_set()):
                client.close()
                continue
            server = self._connect()
            self._open += [client, server]
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                if self._tear.is_set() and _COMMIT in data:
                    self._tear.clear()
                    client.shutdown(socket.SHUT_RDWR)  # first: the server's answer must not get through
                    server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                    self.num_torn += 1
                    return
                if self._cut.is_set() and _COMMIT in data:
                    self._cut.clear()
                    client.shutdown(socket.SHUT_RDWR)
                    break
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _connect(self) -> socket.socket:
        host = str(self._upstream.query.get("host") or self._upstream.host or "127.0.0.1")
        port = int(str(self._upstream.query.get("port") or self._upstream.port or 5432))
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server


def _copy(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(65_536):
            client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def torn_postgres(url: str) -> Iterator[TornPostgres]:
    """A link that is closed at the end of the block."""
    torn = TornPostgres(url)
    try:
        yield torn
    finally:
        torn.close()
