"""`Ondol`: the blocking client. Thread-safe; close it, or use it in a `with` statement."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from ondol.client import embed_flow, fine_tune_flow
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
from ondol.client.sync_files import Files
from ondol.client.sync_jobs import Job, Jobs
from ondol.client.sync_labels import LabelCalls
from ondol.client.sync_models import Models
from ondol.client.vectors import Vectors
from ondol.client.webhooks import Webhooks
from ondol.contract.errors import OndolError

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 60.0


class Ondol(LabelCalls):
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
        self._open_parts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

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
    def embed(
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
    def embed(
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

    def embed(
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
        """Float32 vectors: [H] for a str, [N, H] for a list or an iterator, in its order; blocks until all are there.

        Up to 64 short texts go as a call, more as one durable job (`as_job` forces that), which Ctrl-C cancels. Over
        16 MiB they travel as a file that is written while it is sent, so that those of an iterator are never all in
        memory. Texts that are too long are cut unless `truncate="error"`. Inputs that fail raise ItemErrors with the
        partial result, or come back with `errors="return"`.
        """
        request = embed_request(texts, model, options, as_job=as_job, priority=priority)
        with reporting(f"embedding with {model}" if progress else None) as on_progress:
            outcome = self.run(embed_flow.embed(request, self.policy, on_progress))
        if errors == "return":
            return outcome
        if outcome.errors:
            raise ItemErrors(outcome.errors, partial=outcome.vectors)
        vector: Vectors = outcome.vectors[0] if isinstance(texts, str) else outcome.vectors
        return vector

    def fine_tune(
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
    ) -> Job:
        """The accepted fine-tune of `model` on labelled data, which publishes a version of the model `name`.

        Does not wait for its end; `job.wait(progress=True)` does, and `job.result()` has the new `model` and `metrics`.
        `data` and `validation` are local paths (.csv, .tsv, .jsonl, .json, .parquet), or ids of files. A path is
        uploaded, and its file kept for 30 days and as long as the job is unfinished. What is None is found in the data
        or left to the server; `validate_only` checks the files and trains nothing. `options`: any other option of a
        fine-tune, also hyperparameters by their own names (`weight_decay=0.1`) and columns (`tags_column="ner"`).
        RequestRefused names the option that is wrong.
        """
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
        return Job(self, self.run(fine_tune_flow.fine_tune(request, self.policy)))

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
            except httpx.RequestError as exc:
                stream.failed(translate(exc, self.base_url))
            if not stream.is_over:
                time.sleep(stream.pause_s)

    def _open_parts(self) -> None:
        self.jobs = Jobs(self)
        self.models = Models(self)
        self.files = Files(self)
        self.webhooks = Webhooks(self)

    def _read_stream(self, stream: EventStream) -> Iterator[JobEvent]:
        response = self._http.send(build_request(self._http, stream.request(), self._timeout_s), stream=True)
        try:
            if response.status_code >= 300:
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

    def _perform(self, effect: Effect) -> Answer | None:
        if isinstance(effect, Pause):
            time.sleep(effect.seconds)
            return None
        try:
            if effect.request.sink is not None:
                return self._save(effect.request, effect.request.sink)
            return to_answer(self._http.send(build_request(self._http, effect.request, self._timeout_s)))
        except httpx.RequestError as exc:
            raise translate(exc, self.base_url) from exc

    def _save(self, request: Request, sink: Sink) -> Answer:
        response = self._http.send(build_request(self._http, request, self._timeout_s), stream=True)
        try:
            if response.status_code >= 300:
                response.read()
                return to_answer(response)
            sink.begin()
            for piece in response.iter_bytes():
                sink.write(piece)
            return Answer(response.status_code, response.headers, b"")
        except httpx.RequestError as exc:
            raise broken_off(exc, self.base_url) from exc
        finally:
            response.close()
