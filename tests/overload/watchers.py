"""Clients of an api on bare sockets: they watch events, send half a body, and go away in ways that no library does."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

import httpx
import psutil

LIMIT_S = 60
DATABASE_FILE = "ondol.db"
_TCP_REPAIR = 19


def asks(port: int, head: str, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection on which this head was sent; `receive_bytes`: of its buffer for what comes."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(LIMIT_S)
    made.connect(("127.0.0.1", port))
    made.sendall(head.replace("\n", "\r\n").encode())
    return made


def head_of(method: str, path: str, *, secret: str | None = None, **headers: str) -> str:
    """The head of a request, with a key if one is given."""
    if secret is not None:
        headers["authorization"] = f"Bearer {secret}"
    more = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\nhost: 127.0.0.1\n{more}\n"


@contextlib.contextmanager
def watching(port: int, job_id: str, num: int, *, secret: str | None = None) -> Iterator[list[socket.socket]]:
    """So many clients that have been sent the job's first event; those that are still there are closed in the end."""
    head = head_of("GET", f"/v1/jobs/{job_id}/events", secret=secret, accept="text/event-stream")
    watchers: list[socket.socket] = []
    try:
        for _ in range(num):
            watchers.append(asks(port, head))
        for watcher in watchers:
            _read_first_event(watcher)
        yield watchers
    finally:
        for watcher in watchers:
            watcher.close()


def _read_first_event(connection: socket.socket) -> None:
    """The head, the pause and the event come one after the other: until the last nothing is quiet."""
    received = connection.recv(4096)
    while b"data: " not in received:
        assert received.split(b" ", 2)[1] == b"200", received
        more = connection.recv(4096)
        assert more, "closed before the first event"
        received += more


def status_of(connection: socket.socket) -> int:
    """The status of the answer that begins to come."""
    return int(connection.recv(4096).split(b" ", 2)[1])


def vanish(connections: list[socket.socket]) -> None:
    """Be gone without a word to the other side, as a machine that lost its power. PermissionError if not root."""
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        connection.close()


def num_streams(port: int) -> int:
    """Event streams that the api says are open."""
    return _gauge(port, "ondol_event_streams")


def num_body_bytes(port: int) -> int:
    """Bytes of bodies that the api says it holds."""
    return _gauge(port, "ondol_request_body_bytes")


def held_by(pid: int) -> dict[str, int]:
    """What the process holds of the system: open files but those of the database's pool, connections, threads."""
    process = psutil.Process(pid)
    of_database = sum(DATABASE_FILE in file.path for file in process.open_files())
    return {
        "files": process.num_fds() - of_database,
        "connections": len(process.net_connections()),
        "threads": process.num_threads(),
    }


def _gauge(port: int, name: str) -> int:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))
