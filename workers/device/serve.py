"""The loop of a device process: one thread reads ahead, the caller's thread touches the device, one thread sends.

Imports no torch, so that any program can bring an engine of its own and speak the protocol.
"""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

import structlog

from ondol.contract.errors import DeviceLost, OndolError
from ondol.contract.frames import Buffer, FrameError, Header, receive_frame, send_frame
from workers.device.engine import Engine, LoadRequest, ProbeRequest, RunRequest
from workers.device.wire import (
    Request,
    failed_header,
    loaded_header,
    parse_request,
    probed_header,
    ran_header,
    vectors_body,
)

MAX_AHEAD = 2
"""Requests read, and replies not yet sent, besides the one on the device."""
_FLUSH_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Incoming:
    id: object
    request: Request | OndolError


_Inbox = queue.Queue[_Incoming | Exception | None]
_Outbox = queue.Queue[tuple[Header, Buffer] | None]


def serve(sock: socket.socket, engine: Engine, ready: Header) -> None:
    """Send `ready`, then answer requests in their order until the peer closes the socket.

    Blocks; the engine is called on the calling thread only. Raises what ends the process: DeviceLost from the engine,
    FrameError for a torn frame, and any other exception after the request at fault was answered with `failed`.
    """
    inbox: _Inbox = queue.Queue(MAX_AHEAD)
    outbox: _Outbox = queue.Queue(MAX_AHEAD)
    threading.Thread(target=_read, args=(sock, inbox), name="device-reader", daemon=True).start()
    writer = threading.Thread(target=_write, args=(sock, outbox), name="device-writer", daemon=True)
    writer.start()
    outbox.put(({"op": "ready", **ready}, b""))
    try:
        while (item := inbox.get()) is not None:
            if isinstance(item, Exception):
                raise item
            _answer(engine, item, outbox)
    finally:
        outbox.put(None)
        # Bounded: a peer that neither reads nor closes must not keep a lost device's process alive.
        writer.join(_FLUSH_S)
        with suppress(OSError):  # the peer may have closed first
            sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, which would otherwise keep the connection open


def _answer(engine: Engine, item: _Incoming, outbox: _Outbox) -> None:
    """Put the one answer to `item` into the outbox."""
    try:
        if isinstance(item.request, OndolError):
            raise item.request
        header, body = _execute(engine, item.request)
    except DeviceLost:
        raise
    except OndolError as exc:
        header, body = failed_header(exc), b""
    except Exception as exc:
        failure = OndolError(f"the device process failed: {type(exc).__name__}: {exc}")
        outbox.put((failed_header(failure) | {"id": item.id}, b""))
        raise
    outbox.put((header | {"id": item.id}, body))


def _execute(engine: Engine, request: Request) -> tuple[Header, Buffer]:
    if isinstance(request, RunRequest):
        result = engine.run(request)
        return ran_header(result), vectors_body(result)
    if isinstance(request, LoadRequest):
        return loaded_header(engine.load(request)), b""
    if isinstance(request, ProbeRequest):
        return probed_header(engine.probe(request)), b""
    engine.unload(request)
    return {"op": "unloaded", "key": request.key}, b""


def _read(sock: socket.socket, inbox: _Inbox) -> None:
    """Read requests until the peer closes; what ends the reading goes to the inbox."""
    try:
        while (frame := receive_frame(sock)) is not None:
            header, body = frame
            inbox.put(_parse(header, body))
    except ConnectionError as exc:
        # The peer closed with answers unread: an end like any other.
        log.info("device.peer_gone", error=str(exc))
    except (OSError, FrameError) as exc:
        inbox.put(exc)
        return
    inbox.put(None)


def _parse(header: Header, body: memoryview) -> _Incoming:
    try:
        return _Incoming(header.get("id"), parse_request(header, body))
    except OndolError as exc:
        return _Incoming(header.get("id"), exc)


def _write(sock: socket.socket, outbox: _Outbox) -> None:
    """Send replies; once the peer is gone the rest is dropped, so that the device thread never waits."""
    is_open = True
    while (item := outbox.get()) is not None:
        header, body = item
        try:
            if is_open:
                send_frame(sock, header, (body,))
        except OSError as exc:
            log.info("device.peer_gone", error=str(exc))
            is_open = False
