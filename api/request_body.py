"""Reading a request's body: bounded while it arrives, alone and with all others; strict JSON, every refusal named."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Scope

from api.threads import run_sized
from api.upload import RequestBody
from ondol.contract.errors import InvalidPayload, NotReady, PayloadTooLarge

MAX_KEY_CHARS = 255
RETRY_AFTER_S = 1.0
"""Bodies are held for as long as their requests last, which most often is less."""
_HELD = "ondol.held_body"


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A parsed body and its size."""

    value: Any
    raw: bytes

    def digest(self, route: str) -> str:
        """What makes two requests the same for an Idempotency-Key: the route and the very bytes."""
        return hashlib.sha256(route.encode() + b"\n" + self.raw).hexdigest()


class Bodies:
    """The bytes of the bodies that this process holds, all requests together. One event loop.

    `max_bytes`: of one body; `max_all_bytes`: of all, but one body alone is always let in.
    """

    def __init__(self, *, max_bytes: int, max_all_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._max_all_bytes = max_all_bytes
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """How many are held. Any thread."""
        return self._num_bytes

    def hold(self, scope: Scope, num_bytes: int) -> None:
        """So much more is held for this request, until `let_go`; NotReady if it is too much with what others hold."""
        mine = scope.get(_HELD, (self, 0))[1]
        if self._num_bytes > mine and self._num_bytes + num_bytes > self._max_all_bytes:
            raise NotReady(
                f"the bodies of other requests fill the {self._max_all_bytes} bytes that there are for all of them "
                "(ONDOL_MAX_BODIES_MB); come back, or send files by /v1/files",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_bytes += num_bytes
        scope[_HELD] = self, mine + num_bytes

    def give_back(self, num_bytes: int) -> None:
        """So much is held no more."""
        self._num_bytes -= num_bytes


def let_go(scope: Scope) -> None:
    """The request has ended: nothing of its body is held any more."""
    bodies, num_bytes = scope.pop(_HELD, (None, 0))
    if bodies is not None:
        bodies.give_back(num_bytes)


async def read_json(request: Request, bodies: Bodies) -> JsonBody:
    """The body as JSON: no NaN, no infinity, valid UTF-8. InvalidPayload, PayloadTooLarge or NotReady."""
    _check_content_type(request.headers.get("content-type"))
    raw = await _read(request, bodies)
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


async def _read(request: Request, bodies: Bodies) -> bytes:
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > bodies.max_bytes:
        raise _too_large(bodies.max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in RequestBody(request).pieces():
        size += len(chunk)
        if size > bodies.max_bytes:
            raise _too_large(bodies.max_bytes)
        bodies.hold(request.scope, len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over {max_bytes} bytes; send fewer inputs at a time")
