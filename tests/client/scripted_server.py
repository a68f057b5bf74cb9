"""A transport that answers from a script and records what was asked, for what no real server shows on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpx

from ondol import Ondol

Reply = httpx.Response | BaseException | Callable[[httpx.Request], httpx.Response]


class ScriptedServer(httpx.MockTransport):
    """Gives one reply of the script a request, in order; a request beyond the script is an error of the test."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(self._answer)
        self.requests: list[httpx.Request] = []
        self._replies = list(replies)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert self._replies, f"not in the script: {request.method} {request.url}"
        reply = self._replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply if isinstance(reply, httpx.Response) else reply(request)


def client_of(server: ScriptedServer) -> Ondol:
    """A client that talks to the script."""
    return Ondol("http://ondol.test", transport=server)


def job_json(job_id: str = "job_1", status: str = "queued", **more: Any) -> dict[str, Any]:
    """A job as the server writes it."""
    times = {"created_at": 1790000000.0, "started_at": None, "finished_at": None}
    return {"object": "job", "id": job_id, "kind": "embedding", "status": status, "model": "m:1", **times, **more}


def error_json(code: str, message: str = "no", param: str | None = None) -> dict[str, Any]:
    """An error body as the server writes it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
