"""Frames: a JSON header and raw bytes, the one wire form between worker and device process and in the call lists.

Layout, little endian: u32 length of the header, u64 length of the body, header (UTF-8 JSON object), body. Never pickle.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from typing import Any

_PREFIX = struct.Struct("<IQ")
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_BODY_BYTES = 4 * 1024 * 1024 * 1024

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

Header = dict[str, Any]
Buffer = bytes | bytearray | memoryview


class FrameError(ValueError):
    """The bytes are not a frame."""


def pack_frame(header: Header, bodies: Iterable[Buffer] = (), *, long_list: str | None = None) -> bytes:
    """One frame as bytes; `bodies` are joined in order.

    `long_list`: a field of the header, not its only one, that holds a list. It is written item by item, so that on a
    thread the process's other threads go on meanwhile, which a single item of many megabytes keeps from doing so.
    """
    body = b"".join(bodies)
    if long_list is None:
        head = _dump(header)
    else:
        items = b",".join(_dump(item) for item in header[long_list])
        others = _dump({name: value for name, value in header.items() if name != long_list})
        head = b"".join((others[:-1], b",", _dump(long_list), b":[", items, b"]}"))
    return _PREFIX.pack(len(head), len(body)) + head + body


def unpack_frame(data: Buffer) -> tuple[Header, memoryview]:
    """Header and body of one whole frame; FrameError when the bytes are anything else."""
    view = memoryview(data)
    if len(view) < _PREFIX.size:
        raise FrameError(f"a frame has at least {_PREFIX.size} bytes, this has {len(view)}")
    head_bytes, body_bytes = _PREFIX.unpack_from(view)
    end = _PREFIX.size + head_bytes
    if end + body_bytes != len(view):
        raise FrameError(f"the frame states {end + body_bytes} bytes and has {len(view)}")
    return _parse_header(bytes(view[_PREFIX.size : end])), view[end:]


def send_frame(sock: socket.socket, header: Header, bodies: Iterable[Buffer] = ()) -> None:
    """Send one frame; blocks. One thread at a time may send on a socket."""
    sock.sendall(pack_frame(header, bodies))


def receive_frame(sock: socket.socket) -> tuple[Header, memoryview] | None:
    """The next frame, or None when the peer closed between frames; blocks. FrameError on a torn frame."""
    prefix = _receive_exactly(sock, _PREFIX.size, at_start=True)
    if prefix is None:
        return None
    head_bytes, body_bytes = _PREFIX.unpack(prefix)
    if head_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(f"a frame of {head_bytes} + {body_bytes} bytes is over the limit")
    head = _receive_exactly(sock, head_bytes)
    body = _receive_exactly(sock, body_bytes)
    assert head is not None and body is not None
    return _parse_header(bytes(head)), memoryview(body)


def _dump(value: Any) -> bytes:
    # A lone surrogate in a text of somebody else's is no reason to die: `loads` takes it, too.
    return _encode(value).encode(errors="surrogatepass")


def _parse_header(data: bytes) -> Header:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise FrameError(f"the header is not JSON: {exc}") from exc
    if not isinstance(header, dict):
        raise FrameError("the header is not a JSON object")
    return header


def _receive_exactly(sock: socket.socket, num_bytes: int, *, at_start: bool = False) -> bytearray | None:
    data = bytearray(num_bytes)
    view, got = memoryview(data), 0
    while got < num_bytes:
        num_read = sock.recv_into(view[got:])
        if num_read == 0:
            if at_start and got == 0:
                return None
            raise FrameError(f"the peer closed after {got} of {num_bytes} bytes")
        got += num_read
    return data
