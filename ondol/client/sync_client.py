"""`Ondol`: the blocking client. Thread-safe; close it, or use it in a `with` statement."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from ondol.client import embed_flow
from ondol.client.embed_flow import EmbedRequest, OnProgress, PartialVectors, check_texts, rectangular_options
from ondol.client.errors import ItemErrors
from ondol.client.event_stream import EventStream
from ondol.client.flow import Answer, Effect, Flow, Pause
from ondol.client.http import build_request, connect_options, to_answer, translate
from ondol.client.progress import ProgressReport
from ondol.client.records import JobEvent
from ondol.client.retry import RetryPolicy
from ondol.client.settings import find_target
from ondol.client.sync_jobs import Jobs, Models
from ondol.client.vectors import Vectors
from ondol.contract.errors import OndolError

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 60.0


class Ondol:
    """A connection to an Ondol server.

    The address is `base_url`, else ONDOL_URL, else that of an `ondol up` that runs from here, else
    http://127.0.0.1:8400; the key is `api_key`, else ONDOL_API_KEY. `timeout` is the seconds an answer may take.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        target = find_target(base_url, api_key)
        self.base_url = target.url
        self.policy = RetryPolicy(max_retries=max_retries)
        self._timeout_s = timeout
        self._http = httpx.Client(**connect_options(target, timeout), transport=transport)
        self.jobs = Jobs(self)
        self.models = Models(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        errors: Literal["raise"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> Vectors: ...

    @overload
    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        errors: Literal["return"],
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> PartialVectors: ...

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str,
        errors: Literal["raise", "return"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> Vectors | PartialVectors:
        """Float32 vectors: [H] for a str, [N, H] for a list, in its order; blocks until all are there.

        Up to 64 short texts go as a call, more as durable jobs (`as_job` forces that). Texts that are too long are cut
        unless `truncate="error"`. Inputs that fail raise ItemErrors with the partial result, or come back with
        `errors="return"`.
        """
        request = EmbedRequest(check_texts(texts), model, rectangular_options(options), as_job, priority)
        if progress:
            with ProgressReport(f"embedding with {model}") as report:
                outcome = self._embed(request, report.update)
        else:
            outcome = self._embed(request, None)
        if errors == "return":
            return outcome
        if outcome.errors:
            raise ItemErrors(outcome.errors, partial=outcome.vectors)
        vector: Vectors = outcome.vectors[0] if isinstance(texts, str) else outcome.vectors
        return vector

    def run(self, flow: Flow[T]) -> T:
        """What `flow` returns, performing what it asks for; blocks."""
        answer: Answer | None = None
        error: BaseException | None = None
        while True:
            try:
                effect = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            answer, error = None, None
            try:
                answer = self._perform(effect)
            except (OndolError, KeyboardInterrupt) as exc:
                error = exc

    def follow(self, stream: EventStream) -> Iterator[JobEvent]:
        """The events of a stream until its job ends, over as many connections as it takes; blocks between events."""
        while not stream.is_over:
            try:
                yield from self._read_stream(stream)
            except httpx.TransportError as exc:
                stream.failed(translate(exc, self.base_url))
            if not stream.is_over:
                time.sleep(stream.pause_s)

    def _read_stream(self, stream: EventStream) -> Iterator[JobEvent]:
        response = self._http.send(build_request(self._http, stream.request(), self._timeout_s), stream=True)
        try:
            if response.status_code >= 400:
                stream.refused(response.status_code, response.headers, response.read())
                return
            stream.answered(response.status_code)
            for line in response.iter_lines():
                event = stream.feed(line)
                if event is not None:
                    yield event
        finally:
            response.close()
        stream.closed()

    def _embed(self, request: EmbedRequest, on_progress: OnProgress | None) -> PartialVectors:
        return self.run(embed_flow.embed(request, self.policy, on_progress))

    def _perform(self, effect: Effect) -> Answer | None:
        if isinstance(effect, Pause):
            time.sleep(effect.seconds)
            return None
        try:
            return to_answer(self._http.send(build_request(self._http, effect.request, self._timeout_s)))
        except httpx.TransportError as exc:
            raise translate(exc, self.base_url) from exc
