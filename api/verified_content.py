"""Stored bytes on their way out: what was damaged in the store never arrives whole."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import IO

from ondol.contract.errors import ChecksumMismatch

PIECE_BYTES = 256 * 1024


async def verified_content(
    source: IO[bytes], stack: ExitStack, *, sha256: str, ref: str, file: str
) -> AsyncIterator[bytes]:
    """The content of `source` in pieces, the last one only when all of it has the digest (else ChecksumMismatch).

    `stack` holds what is open, and is closed in the end; `ref` and `file` name the content in the error.
    """
    digest = hashlib.sha256()
    try:
        piece = await asyncio.to_thread(source.read, PIECE_BYTES)
        while piece:
            digest.update(piece)
            following = await asyncio.to_thread(source.read, PIECE_BYTES)
            if not following and digest.hexdigest() != sha256:
                raise ChecksumMismatch(ref=ref, file=file, expected=sha256, actual=digest.hexdigest())
            yield piece
            piece = following
    finally:
        stack.close()
