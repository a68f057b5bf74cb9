"""The outermost layer of a request: its id on every answer, and an answer to every failure."""

from __future__ import annotations

import re

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from ondol.contract.errors import OndolError
from ondol.contract.ids import new_id

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

log = structlog.get_logger(__name__)


class RequestEdge:
    """ASGI middleware: `x-request-id` (the client's, if it sent one), 500 in OpenAI's shape, no payload logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.debug("request.client_left", request_id=request_id.decode(), path=scope["path"])
        except Exception:  # the process's edge: the client gets an answer, the log gets the trace
            log.exception("request.failed", request_id=request_id.decode(), method=scope["method"], path=scope["path"])
            if has_begun:
                raise
            error = OndolError(f"something went wrong here; the log has it under {request_id.decode()}")
            await error_response(error)(scope, receive, send_with_id)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            return bytes(value)
    return new_id("req").encode()
