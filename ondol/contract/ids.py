"""Identifiers: a prefix that says what it is, then 26 characters that sort by time of creation."""

from __future__ import annotations

import os
import threading
import time
from typing import NewType

JobId = NewType("JobId", str)
SessionId = NewType("SessionId", str)
ProjectId = NewType("ProjectId", str)
MessageId = NewType("MessageId", str)
VersionId = NewType("VersionId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case: sorts like the number
_RANDOM_BITS = 80
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """A new id such as `job_01k9…`: 48 bits of milliseconds, 80 random bits (the layout of a ULID).

    Ids made by one process are strictly increasing, so that a batch keeps its order. Thread-safe.
    """
    global _last
    with _lock:
        value = (int(time.time() * 1000) << _RANDOM_BITS) | int.from_bytes(os.urandom(_RANDOM_BITS // 8))
        if value <= _last:
            value = _last + 1
        elif (value >> _RANDOM_BITS) == (_last >> _RANDOM_BITS):
            value = max(value, _last + 1)
        _last = value
    return f"{prefix}_{_encode(value)}"


def first_id(prefix: str, at: float) -> str:
    """What sorts before every id made at that time (seconds since the epoch) or later, and behind all earlier ones."""
    return f"{prefix}_{_encode(max(0, int(at * 1000)) << _RANDOM_BITS)}"


def new_job_id() -> JobId:
    """A new job id."""
    return JobId(new_id("job"))


def shard_id(job_id: str, number: int) -> str:
    """The id of a job's shard, `job_01k9….000012`: sorts behind its job and by number."""
    return f"{job_id}.{number:06d}"


def parent_of(job_id: str) -> str | None:
    """The job whose shard bears this id; None for ids of whole jobs."""
    parent, dot, _ = job_id.partition(".")
    return parent if dot else None


def _encode(value: int) -> str:
    digits = []
    for _ in range(26):
        digits.append(_ALPHABET[value & 31])
        value >>= 5
    return "".join(reversed(digits))
