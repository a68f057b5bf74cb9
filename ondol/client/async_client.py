"""`AsyncOndol`: the same client for asyncio; see `Ondol` for what the arguments mean."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from ondol.client import embed_flow, fine_tune_flow
from ondol.client.async_files import AsyncFiles
from ondol.client.async_jobs import AsyncJob, AsyncJobs
from ondol.client.async_labels import AsyncLabelCalls
from ondol.client.async_models import AsyncModels
from ondol.client.embed_flow import PartialVectors, embed_request
from ondol.client.errors import ItemErrors
from ondol.client.event_stream import EventStream
from ondol.client.fine_tune_flow import Envelope, Source, fine_tune_request
from ondol.client.flow import Answer, Effect, Flow, Pause, Request, Sink
from ondol.client.http import broken_off, build_request, connect_options, to_answer, translate
from ondol.client.progress import reporting
from ondol.client.records import JobEvent
from ondol.client.retry import RetryPolicy
from ondol.client.settings import find_target
from ondol.client.sync_client import DEFAULT_TIMEOUT_S
from ondol.client.vectors import Vectors
from ondol.client.webhooks import AsyncWebhooks
from ondol.contract.errors import OndolError

T = TypeVar("T")


class AsyncOndol(AsyncLabelCalls):
    """A connection to an Ondol server for one event loop; close it, or use it in an `async with` statement."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        target = find_target(base_url, api_key)
        self.base_url = target.url
        self.policy = RetryPolicy(max_retries=max_retries)
        self._timeout_s = timeout
        self._http = httpx.AsyncClient(**connect_options(target, timeout), transport=transport)
        self._open_parts()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """This client with another `timeout` (seconds an answer may take) or number of retries, for some calls.

        As in `client.with_options(timeout=5).embed(…)`. It shares the connections: closing either closes both.
        """
        other = copy.copy(self)
        if timeout is not None:
            other._timeout_s = timeout
        if max_retries is not None:
            other.policy = replace(self.policy, max_retries=max_retries)
        other._open_parts()
        return other

    @overload
    async def embed(
        self,
        texts: str | Iterable[str],
        *,
        model: str,
        errors: Literal["raise"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> Vectors: ...

    @overload
    async def embed(
        self,
        texts: str | Iterable[str],
        *,
        model: str,
        errors: Literal["return"],
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> PartialVectors: ...

    async def embed(
        self,
        texts: str | Iterable[str],
        *,
        model: str,
        errors: Literal["raise", "return"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> Vectors | PartialVectors:
        """Float32 vectors: [H] for a str, [N, H] for a list, in its order; see `Ondol.embed`."""
        request = embed_request(texts, model, options, as_job=as_job, priority=priority)
        with reporting(f"embedding with {model}" if progress else None) as on_progress:
            outcome = await self.run(embed_flow.embed(request, self.policy, on_progress))
        if errors == "return":
            return outcome
        if outcome.errors:
            raise ItemErrors(outcome.errors, partial=outcome.vectors)
        vector: Vectors = outcome.vectors[0] if isinstance(texts, str) else outcome.vectors
        return vector

    async def fine_tune(
        self,
        data: Source,
        *,
        model: str,
        name: str,
        alias: str | None = None,
        validation: Source | None = None,
        task: str | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        epochs: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        seed: int | None = None,
        max_length: int | None = None,
        head: str | None = None,
        backbone: str | None = None,
        freeze_word_embeddings: bool | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        validate_only: bool | None = None,
        priority: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        webhook: str | None = None,
        **options: Any,
    ) -> AsyncJob:
        """The accepted fine-tune of `model` on labelled data; see `Ondol.fine_tune`."""
        given = {
            "alias": alias,
            "task": task,
            "text_column": text_column,
            "label_column": label_column,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "max_length": max_length,
            "head": head,
            "backbone": backbone,
            "freeze_word_embeddings": freeze_word_embeddings,
            "hyperparameters": hyperparameters,
            "validate_only": validate_only,
            **options,
        }
        envelope = Envelope(priority=priority, metadata=metadata, webhook=webhook)
        request = fine_tune_request(data, validation, model=model, name=name, options=given, envelope=envelope)
        return AsyncJob(self, await self.run(fine_tune_flow.fine_tune(request, self.policy)))

    async def run(self, flow: Flow[T]) -> T:
        """What `flow` returns, performing what it asks for."""
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
                answer = await self._perform(effect)
            except (OndolError, asyncio.CancelledError) as exc:
                error = exc

    async def follow(self, stream: EventStream) -> AsyncIterator[JobEvent]:
        """The events of a stream until its job ends, over as many connections as it takes."""
        while not stream.is_over:
            try:
                async for event in self._read_stream(stream):
                    yield event
            except httpx.RequestError as exc:
                stream.failed(translate(exc, self.base_url))
            if not stream.is_over:
                await asyncio.sleep(stream.pause_s)

    def _open_parts(self) -> None:
        self.jobs = AsyncJobs(self)
        self.models = AsyncModels(self)
        self.files = AsyncFiles(self)
        self.webhooks = AsyncWebhooks(self)

    async def _read_stream(self, stream: EventStream) -> AsyncIterator[JobEvent]:
        response = await self._http.send(build_request(self._http, stream.request(), self._timeout_s), stream=True)
        try:
            if response.status_code >= 300:
                stream.refused(response.status_code, response.headers, await response.aread())
                return
            stream.answered(response.status_code)
            async for line in response.aiter_lines():
                event = stream.feed(line)
                if event is not None:
                    yield event
        finally:
            await response.aclose()
        stream.closed()

    async def _perform(self, effect: Effect) -> Answer | None:
        if isinstance(effect, Pause):
            await asyncio.sleep(effect.seconds)
            return None
        try:
            if effect.request.sink is not None:
                return await self._save(effect.request, effect.request.sink)
            return to_answer(await self._http.send(build_request(self._http, effect.request, self._timeout_s)))
        except httpx.RequestError as exc:
            raise translate(exc, self.base_url) from exc

    async def _save(self, request: Request, sink: Sink) -> Answer:
        response = await self._http.send(build_request(self._http, request, self._timeout_s), stream=True)
        try:
            if response.status_code >= 300:
                await response.aread()
                return to_answer(response)
            await asyncio.to_thread(sink.begin)
            async for piece in response.aiter_bytes():
                await asyncio.to_thread(sink.write, piece)
            return Answer(response.status_code, response.headers, b"")
        except httpx.RequestError as exc:
            raise broken_off(exc, self.base_url) from exc
        finally:
            await response.aclose()
