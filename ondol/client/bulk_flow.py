"""The way of inputs of any inference kind: one call for a few short ones, durable jobs for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ondol.client.errors import JobFailed, OndolAPIError
from ondol.client.flow import INTERRUPTIONS, Flow
from ondol.client.job_flows import OnProgress, OnUpdate, cancel_job, submit_job, wait_for_job
from ondol.client.records import JobFields, JobRequest
from ondol.client.retry import RetryPolicy
from ondol.contract.errors import OndolError

MAX_CALL_TEXTS = 64
MAX_CALL_BYTES = 64 * 1024
MAX_JOB_TEXTS = 4_000
MAX_WATCHED_JOB_TEXTS = 500
"""Where somebody watches: a job is done as a whole, so that smaller ones show more of how it goes."""
MAX_JOB_BYTES = 4 * 1024 * 1024

T = TypeVar("T")
Input = str | dict[str, str]
"""A text, or `{"text", "text_pair"}`."""


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """What to run, of which kind, with which model and options; `as_job` forces the durable way.

    `call_options` are those that the kind's call knows; with others the inputs go as jobs, which refuse them by name.
    """

    kind: str
    inputs: tuple[Input, ...]
    model: str
    call_options: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    as_job: bool = False
    priority: str | None = None

    def is_call(self) -> bool:
        """Whether this is small enough, and asks for nothing but what a call can do."""
        if (
            self.as_job
            or self.priority
            or len(self.inputs) > MAX_CALL_TEXTS
            or not self.call_options.issuperset(self.options)
        ):
            return False
        return sum(_size_bytes(item) for item in self.inputs) <= MAX_CALL_BYTES


@dataclass(frozen=True, slots=True)
class Ways(Generic[T]):
    """A kind's two ways to a T in input order: `call`, all or nothing, and `collect` from jobs that succeeded."""

    call: Callable[[BulkRequest, RetryPolicy], Flow[T]]
    collect: Callable[[Sequence[JobFields], RetryPolicy], Flow[T]]


def run_inputs(
    request: BulkRequest, ways: Ways[T], policy: RetryPolicy, on_progress: OnProgress | None = None
) -> Flow[T]:
    """What `ways` give for the inputs.

    A call is all or nothing: when it refuses one input, the inputs go as a job, which treats each alone.
    """
    if request.is_call():
        try:
            return (yield from ways.call(request, policy))
        except OndolAPIError as error:
            if error.status != 400 or error.input_index is None or len(request.inputs) == 1:
                raise
    return (yield from _run_as_jobs(request, ways, policy, on_progress))


def job_requests(request: BulkRequest, *, max_texts: int = MAX_JOB_TEXTS) -> list[JobRequest]:
    """The jobs that `request` becomes: at most `max_texts` inputs and about 4 MiB each, in order."""
    return [
        JobRequest(request.kind, list(part), request.model, request.options, request.priority)
        for part in _cut(request.inputs, max_texts)
    ]


def _run_as_jobs(request: BulkRequest, ways: Ways[T], policy: RetryPolicy, on_progress: OnProgress | None) -> Flow[T]:
    jobs: list[JobFields] = []
    try:
        for part in job_requests(request, max_texts=MAX_WATCHED_JOB_TEXTS if on_progress else MAX_JOB_TEXTS):
            jobs.append((yield from submit_job(part, policy)))
        counter = _Counter(jobs, len(request.inputs), on_progress) if on_progress else None
        yield from _wait_for_all(jobs, policy, counter)
        return (yield from ways.collect(jobs, policy))
    except (OndolError, *INTERRUPTIONS):
        yield from _cancel_all(jobs, replace(policy, max_retries=0))
        raise


def _wait_for_all(jobs: Sequence[JobFields], policy: RetryPolicy, on_update: OnUpdate | None) -> Flow[None]:
    for job in jobs:
        ended = yield from wait_for_job(job.id, policy, on_update=on_update)
        if ended.status != "succeeded":
            raise JobFailed(ended)


def _cancel_all(jobs: Sequence[JobFields], policy: RetryPolicy) -> Flow[None]:
    for job in jobs:
        try:
            yield from cancel_job(job.id, policy)
        except OndolError:  # it has ended, or the server is gone: the first error is the one to report
            continue


class _Counter:
    """Sums the progress of several jobs for one listener."""

    def __init__(self, jobs: Sequence[JobFields], num_inputs: int, listener: OnProgress) -> None:
        self._done = {job.id: 0 for job in jobs}
        self._num_inputs = num_inputs
        self._listener = listener

    def __call__(self, job: JobFields) -> None:
        if job.progress:
            self._done[job.id] = job.progress.done
        self._listener(sum(self._done.values()), self._num_inputs)


def _cut(inputs: Sequence[Input], max_texts: int) -> Iterator[tuple[Input, ...]]:
    part: list[Input] = []
    part_bytes = 0
    for item in inputs:
        item_bytes = _size_bytes(item)
        if part and (len(part) == max_texts or part_bytes + item_bytes > MAX_JOB_BYTES):
            yield tuple(part)
            part, part_bytes = [], 0
        part.append(item)
        part_bytes += item_bytes
    yield tuple(part)


def _size_bytes(item: Input) -> int:
    texts = item.values() if isinstance(item, dict) else (item,)
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
