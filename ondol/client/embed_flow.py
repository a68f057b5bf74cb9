"""The flow behind `embed`: a call for a few short texts, durable jobs for more. N inputs, H hidden."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ondol.client.errors import ItemError, JobFailed, OndolAPIError
from ondol.client.flow import Flow, Request, exchange_json
from ondol.client.job_flows import OnUpdate, cancel_job, get_vectors, submit_job, wait_for_job
from ondol.client.records import JobFields, JobRequest
from ondol.client.retry import RetryPolicy
from ondol.client.vectors import Vectors, join_vectors, vectors_from_call
from ondol.contract.errors import InvalidPayload, OndolError

MAX_CALL_TEXTS = 64
MAX_CALL_BYTES = 64 * 1024
MAX_JOB_TEXTS = 4_000
MAX_JOB_BYTES = 4 * 1024 * 1024

# The route of calls ignores fields that it does not know; a job refuses them by name, so others go that way.
_CALL_OPTIONS = frozenset(
    {
        "dimensions",
        "dtype",
        "input_type",
        "layer",
        "long_text",
        "max_length",
        "normalize",
        "pooling",
        "prompt",
        "prompt_name",
        "truncate",
    }
)

OnProgress = Callable[[int, int], None]
"""Told (texts done, texts in all)."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What to embed, with which model and options; `as_job` forces the durable way."""

    texts: tuple[str, ...]
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    as_job: bool = False
    priority: str | None = None

    def is_call(self) -> bool:
        """Whether this is small enough, and asks for nothing but what a call can do."""
        if (
            self.as_job
            or self.priority
            or len(self.texts) > MAX_CALL_TEXTS
            or not _CALL_OPTIONS.issuperset(self.options)
        ):
            return False
        return sum(_size_bytes(text) for text in self.texts) <= MAX_CALL_BYTES


@dataclass(frozen=True, slots=True)
class PartialVectors:
    """Float32 [N, H], NaN in the rows of the inputs that failed, and why they failed."""

    vectors: Vectors
    errors: Mapping[int, ItemError]


def check_texts(texts: str | Sequence[str]) -> tuple[str, ...]:
    """The texts as a tuple; InvalidPayload names the one that is none."""
    checked = (texts,) if isinstance(texts, str) else tuple(texts)
    if not checked:
        raise InvalidPayload("there is nothing to embed: the list of texts is empty", param="input")
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InvalidPayload(f"a text is expected, not {type(text).__name__}", param=f"input[{index}]")
    return checked


def rectangular_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given (None means: not given); InvalidPayload for one whose vectors are no [N, H]."""
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("pooling") == "none":
        raise InvalidPayload(
            "pooling 'none' gives one vector a token, which is no [N, H] array; use client.jobs.create and its result",
            param="options.pooling",
        )
    return given


def embed(request: EmbedRequest, policy: RetryPolicy, on_progress: OnProgress | None = None) -> Flow[PartialVectors]:
    """Vectors in input order.

    A call is all or nothing: when it refuses one input, the texts go as a job, which treats each input alone.
    """
    if request.is_call():
        try:
            return (yield from _call(request, policy))
        except OndolAPIError as error:
            if error.status != 400 or error.input_index is None or len(request.texts) == 1:
                raise
    return (yield from _run_as_jobs(request, policy, on_progress))


def job_requests(request: EmbedRequest) -> list[JobRequest]:
    """The jobs that `request` becomes: at most 4,000 texts and about 4 MiB each, in order."""
    return [
        JobRequest("embedding", list(part), request.model, request.options, request.priority)
        for part in _cut(request.texts)
    ]


def _call(request: EmbedRequest, policy: RetryPolicy) -> Flow[PartialVectors]:
    body: dict[str, Any] = {
        "truncate": "right",  # the route's own default refuses long texts; the SDK promises to cut them
        **request.options,
        "input": list(request.texts),
        "model": request.model,
        "encoding_format": "base64",
    }
    if request.priority is not None:
        body["priority"] = request.priority
    send = Request("POST", "/v1/embeddings", body=body, headers={"idempotency-key": str(uuid.uuid4())})
    answer = yield from exchange_json(send, policy)
    return PartialVectors(vectors_from_call(answer, num_inputs=len(request.texts)), {})


def _run_as_jobs(request: EmbedRequest, policy: RetryPolicy, on_progress: OnProgress | None) -> Flow[PartialVectors]:
    jobs: list[JobFields] = []
    try:
        for part in job_requests(request):
            jobs.append((yield from submit_job(part, policy)))
        yield from _wait_for_all(jobs, policy, _Counter(jobs, len(request.texts), on_progress) if on_progress else None)
        return (yield from _collect(jobs, policy))
    except (OndolError, KeyboardInterrupt):
        yield from _cancel_all(jobs, policy)
        raise


def _wait_for_all(jobs: Sequence[JobFields], policy: RetryPolicy, on_update: OnUpdate | None) -> Flow[None]:
    for job in jobs:
        ended = yield from wait_for_job(job.id, policy, on_update=on_update)
        if ended.status != "succeeded":
            raise JobFailed(ended)


def _collect(jobs: Sequence[JobFields], policy: RetryPolicy) -> Flow[PartialVectors]:
    parts: list[Vectors] = []
    errors: dict[int, ItemError] = {}
    start = 0
    for job in jobs:
        vectors, failed = yield from get_vectors(job.id, policy)
        errors |= {start + index: error for index, error in failed.items()}
        start += len(vectors)
        parts.append(vectors)
    return PartialVectors(join_vectors(parts), errors)


def _cancel_all(jobs: Sequence[JobFields], policy: RetryPolicy) -> Flow[None]:
    for job in jobs:
        try:
            yield from cancel_job(job.id, policy)
        except OndolError:  # it has ended, or the server is gone: the first error is the one to report
            continue


class _Counter:
    """Sums the progress of several jobs for one listener."""

    def __init__(self, jobs: Sequence[JobFields], num_texts: int, listener: OnProgress) -> None:
        self._done = {job.id: 0 for job in jobs}
        self._num_texts = num_texts
        self._listener = listener

    def __call__(self, job: JobFields) -> None:
        if job.progress:
            self._done[job.id] = job.progress.done
        self._listener(sum(self._done.values()), self._num_texts)


def _cut(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    part: list[str] = []
    part_bytes = 0
    for text in texts:
        text_bytes = _size_bytes(text)
        if part and (len(part) == MAX_JOB_TEXTS or part_bytes + text_bytes > MAX_JOB_BYTES):
            yield tuple(part)
            part, part_bytes = [], 0
        part.append(text)
        part_bytes += text_bytes
    yield tuple(part)


def _size_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
