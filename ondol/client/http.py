"""What both clients share about HTTP: how requests are built, answers read and httpx's errors translated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypedDict

import httpx

from ondol.client.errors import AnswerTimedOut, ConnectionFailed
from ondol.client.flow import Answer, Request
from ondol.client.settings import Target
from ondol.contract.errors import InvalidPayload
from ondol.setting_values import is_loopback

CONNECT_TIMEOUT_S = 5.0
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Requests that wait never keep another one from the server.

More kept connections would cost more than they save: at each request httpx looks at all of them, for each of them.
"""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class ConnectOptions(TypedDict):
    """The keyword arguments that `httpx.Client` and `httpx.AsyncClient` are opened with."""

    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    limits: httpx.Limits
    trust_env: bool


def connect_options(target: Target, timeout_s: float) -> ConnectOptions:
    """How to open an httpx client for `target`; InvalidPayload if its address is none."""
    headers = {"user-agent": "ondol-python"}
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    return {
        "base_url": target.url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        "limits": LIMITS,
        # A proxy of the environment cannot reach this machine's loopback.
        "trust_env": not is_loopback(_host(target.url)),
    }


def build_request(http: httpx.Client | httpx.AsyncClient, request: Request, timeout_s: float) -> httpx.Request:
    """`request` as httpx sends it."""
    body: dict[str, Any] = {} if request.body is None else {"json": request.body}
    headers = dict(request.headers)
    if request.upload is not None:
        pieces = request.upload.pieces()
        body = {"content": pieces if isinstance(http, httpx.Client) else _on_threads(pieces)}
        headers |= request.upload.headers
    timeout = httpx.Timeout(timeout_s + request.patience_s, connect=CONNECT_TIMEOUT_S)
    return http.build_request(
        request.method,
        request.path,
        params=dict(request.params),
        headers=headers,
        timeout=timeout,
        **body,
    )


def to_answer(response: httpx.Response) -> Answer:
    """The whole answer; its body must have been read."""
    return Answer(response.status_code, response.headers, response.content)


def translate(error: httpx.RequestError, url: str) -> ConnectionFailed:
    """Our error for a failure to reach the server or to get its answer."""
    if isinstance(error, httpx.ReadTimeout):
        return AnswerTimedOut(f"{url} did not answer in time", url=url)
    if isinstance(error, httpx.DecodingError):
        return broken_off(error, url)
    reason = str(error) or type(error).__name__
    return ConnectionFailed(
        f"cannot reach {url} ({reason}); start a server with `ondol up` or set ONDOL_URL",
        url=url,
        was_sent=not isinstance(error, _NEVER_SENT),
    )


async def _on_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


def broken_off(error: httpx.RequestError, url: str) -> ConnectionFailed:
    """Our error for an answer that ended, or stood still, before it was whole."""
    kind = AnswerTimedOut if isinstance(error, httpx.ReadTimeout) else ConnectionFailed
    reason = str(error) or type(error).__name__
    return kind(f"the answer of {url} broke off ({reason}); the log of its api says why, if it still runs", url=url)


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise InvalidPayload(f"{url[:120]!r} is not an address: {exc}") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidPayload(f"{url[:120]!r} is not an address such as http://127.0.0.1:8400")
    return parsed.host
