"""Redis connections with limits: nothing here waits for ever on a half-open link."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.retry import Retry

SOCKET_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 5.0

_OPTIONS: dict[str, Any] = {
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "protocol": 2,  # RESP2: works on every server from 6.2 up, Valkey included
}


def connect(url: str, *, answer_limit_s: float = SOCKET_TIMEOUT_S, retry: Retry | None = None) -> redis.Redis:
    """A synchronous client; answers are bytes. Thread-safe. `retry`: in the place of the library's own."""
    options = _OPTIONS | {"socket_timeout": answer_limit_s}
    options["socket_connect_timeout"] = min(CONNECT_TIMEOUT_S, answer_limit_s)
    return redis.Redis.from_url(url, **options, **({} if retry is None else {"retry": retry}))


def connect_async(url: str) -> redis.asyncio.Redis:
    """An asyncio client; answers are bytes."""
    return redis.asyncio.Redis.from_url(url, **_OPTIONS)
