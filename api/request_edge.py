"""The outermost layer of a request: its id on every answer, and an answer to every failure."""

from __future__ import annotations

import re
import time

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from api.request_body import let_go
from ondol.contract.errors import OndolError
from ondol.contract.ids import new_id
from ondol.logs import log_context
from ondol.metrics.roles import ApiMetrics

_NO_ANSWER = 499
"""Counted where the client hung up before an answer began."""
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

log = structlog.get_logger(__name__)


class RequestEdge:
    """ASGI middleware: `x-request-id` (the client's, if it sent one), 500 in OpenAI's shape, no payload logged.

    The id is bound to every line that is logged on the request's behalf.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        begun_at = time.monotonic()
        status = _NO_ANSWER

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            with log_context(request_id=request_id.decode()):
                try:
                    await self._app(scope, receive, send_with_id)
                except ClientDisconnect:
                    log.debug("request.client_left", path=scope["path"])
                except Exception:  # the process's edge: the client gets an answer, the log gets the trace
                    log.exception("request.failed", method=scope["method"], path=scope["path"])
                    if status != _NO_ANSWER:
                        raise
                    error = OndolError(f"something went wrong here; the log has it under {request_id.decode()}")
                    await error_response(error)(scope, receive, send_with_id)
        finally:
            let_go(scope)
            self._metrics.request_ended(
                route=getattr(scope.get("route"), "path_format", None),
                method=scope["method"],
                status=status,
                took_s=time.monotonic() - begun_at,
            )


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            return bytes(value)
    return new_id("req").encode()
