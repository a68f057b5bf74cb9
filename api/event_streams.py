"""Open event streams: how many one process, and one project in it, may hold, and an answer to those beyond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from starlette.responses import AsyncContentStream, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from ondol.contract.errors import NotReady, OndolError, Overloaded

RETRY_AFTER_S = 5.0
"""Nobody knows when a watcher goes; `?wait=` and the JSON list answer meanwhile."""
MEDIA_TYPE = "text/event-stream"
_HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStreams:
    """Counts the streams that this process has open. One event loop."""

    def __init__(self, *, most: int, most_of_project: int) -> None:
        self._most = most
        self._most_of_project = most_of_project
        self._open: Counter[str] = Counter()
        self._num = 0

    @property
    def num_open(self) -> int:
        """How many are open. Any thread."""
        return self._num

    def take(self, project_id: str) -> None:
        """One more, to be given back; Overloaded if the project has its share, NotReady if this process is full."""
        if self._open[project_id] >= self._most_of_project:
            raise Overloaded(
                f"{self._most_of_project} event streams of this project are open here, and no more may be: close some, "
                "use ?wait= or the JSON list, or raise ONDOL_PROJECT_MAX_EVENT_STREAMS",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._num >= self._most:
            raise NotReady(
                f"{self._most} event streams are open here, and no more may be: use ?wait= or the JSON list, or raise "
                "ONDOL_MAX_EVENT_STREAMS",
                retry_after_s=RETRY_AFTER_S,
            )
        self._open[project_id] += 1
        self._num += 1

    def give_back(self, project_id: str) -> None:
        """One is closed."""
        self._num -= 1
        self._open[project_id] -= 1
        if not self._open[project_id]:
            del self._open[project_id]


class EventStreamResponse(StreamingResponse):
    """Server-sent events that are counted from before their first byte until they end, however they end."""

    def __init__(self, content: AsyncContentStream, streams: EventStreams, project_id: str) -> None:
        super().__init__(content, headers=_HEADERS, media_type=MEDIA_TYPE)
        self._streams = streams
        self._project_id = project_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the stream, or with why there is none."""
        try:
            self._streams.take(self._project_id)
        except OndolError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.give_back(self._project_id)
