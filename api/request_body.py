"""Reading a request's body: bounded while it arrives, strict JSON, every refusal named."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request

from api.database import run_sized
from ondol.contract.errors import InvalidPayload, PayloadTooLarge

MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A parsed body and its size."""

    value: Any
    raw: bytes

    def digest(self, route: str) -> str:
        """What makes two requests the same for an Idempotency-Key: the route and the very bytes."""
        return hashlib.sha256(route.encode() + b"\n" + self.raw).hexdigest()


async def read_json(request: Request, *, max_bytes: int) -> JsonBody:
    """The body as JSON: no NaN, no infinity, valid UTF-8. InvalidPayload or PayloadTooLarge."""
    _check_content_type(request.headers.get("content-type"))
    raw = await _read(request, max_bytes)
    if not raw:
        raise InvalidPayload("the body is empty; send a JSON object")
    try:
        value = await run_sized(len(raw), lambda: orjson.loads(raw))
    except orjson.JSONDecodeError as exc:
        raise InvalidPayload(f"the body is not JSON: {exc}", code="invalid_json") from exc
    return JsonBody(value, raw)


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key, if one came; InvalidPayload if it is no key."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise InvalidPayload(
            f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} printable characters", param="Idempotency-Key"
        )
    return key


def _check_content_type(given: str | None) -> None:
    if given is None:
        return
    media_type = given.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise InvalidPayload(f"send application/json, not {media_type[:80]!r}", param="Content-Type")


async def _read(request: Request, max_bytes: int) -> bytes:
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over {max_bytes} bytes; send fewer inputs at a time")
