"""Stored bytes on their way out: what was damaged in the store never arrives whole."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import IO

from api.threads import in_store
from ondol.contract.errors import ChecksumMismatch

PIECE_BYTES = 256 * 1024


async def verified_content(
    source: IO[bytes], stack: ExitStack, *, sha256: str, ref: str, file: str
) -> AsyncIterator[bytes]:
    """The content of `source` in pieces, the last one only when all of it has the digest (else ChecksumMismatch).

    `stack` holds what is open, and is closed in the end; `ref` and `file` name the content in the error.
    """
    digest = hashlib.sha256()
    opened = _Opened(source, stack)
    try:
        piece = await in_store(opened.read)
        while piece:
            digest.update(piece)
            following = await in_store(opened.read)
            if not following and digest.hexdigest() != sha256:
                raise ChecksumMismatch(ref=ref, file=file, expected=sha256, actual=digest.hexdigest())
            yield piece
            piece = following
    finally:
        opened.leave()


class _Opened:
    """An open file that is read on threads. Closing waits for a read that hangs, so then its own thread closes."""

    def __init__(self, source: IO[bytes], stack: ExitStack) -> None:
        self._source = source
        self._stack = stack
        self._lock = threading.Lock()
        self._is_read = False
        self._was_left = threading.Event()

    def read(self) -> bytes:
        """The next piece; nothing after `leave`."""
        with self._lock:
            if self._was_left.is_set():
                return b""
            self._is_read = True
        try:
            return self._source.read(PIECE_BYTES)
        finally:
            with self._lock:
                self._is_read = False
                was_left = self._was_left.is_set()
            if was_left:
                self._stack.close()

    def leave(self) -> None:
        """Nobody wants more: close, now or when the read that runs has ended."""
        with self._lock:
            is_read = self._is_read
            self._was_left.set()
        if not is_read:
            self._stack.close()
