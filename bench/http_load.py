"""A plain HTTP/1.1 client for load: keep-alive connections on asyncio streams, which cost little beside a server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any


class RequestRefused(Exception):
    """The server answered with something else than success."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: seconds it took, and its body."""

    seconds: float
    body: bytes


class Connection:
    """One keep-alive connection to a loopback server; one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes) -> Answered:
        """POST JSON. RequestRefused with the answer if it is not a 2xx."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        return await self._exchange(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def get(self, path: str) -> Answered:
        """GET. RequestRefused with the answer if it is not a 2xx."""
        return await self._exchange(f"GET {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode())

    async def close(self) -> None:
        """Close it."""
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()

    async def _exchange(self, request: bytes) -> Answered:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=2**24)
        assert self._reader is not None
        started = time.perf_counter()
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        body = await self._read_body(self._reader, head)
        seconds = time.perf_counter() - started
        status = int(head.split(b" ", 2)[1])
        if not 200 <= status < 300:
            raise RequestRefused(f"{status}: {body[:300].decode(errors='replace')}")
        return Answered(seconds, body)

    @staticmethod
    async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return await reader.readexactly(int(line.split(b":")[1]))
        body = b""
        if b"transfer-encoding: chunked" in head:
            while num := int(await reader.readline(), 16):
                body += await reader.readexactly(num)
                await reader.readexactly(2)
            await reader.readexactly(2)
        return body


async def run_all(
    host: str,
    port: int,
    *,
    concurrency: int,
    work: Iterator[Any],
    send: Callable[[Connection, Any], Awaitable[Answered]],
) -> list[Answered]:
    """Answers of all of `work`, in the order of their ends, with so many connections busy at a time."""
    answers: list[Answered] = []

    async def loop() -> None:
        connection = Connection(host, port)
        try:
            for item in work:  # one iterator for all: whoever is free takes the next
                answers.append(await send(connection, item))
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(loop())
    return answers


def as_json(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
