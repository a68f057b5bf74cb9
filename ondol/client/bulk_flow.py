"""The way of inputs of any inference kind: one call for a few short ones, one durable job for any number.

What one request's body cannot carry is sent as a file, which the server cuts into shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ondol.client.errors import ConnectionFailed, JobFailed, NoSuchThing, OndolAPIError, StateConflict
from ondol.client.file_flows import delete_file, put_file
from ondol.client.file_transfer import InputsUpload
from ondol.client.flow import INTERRUPTIONS, Flow
from ondol.client.inputs import Inputs
from ondol.client.job_flows import OnProgress, OnUpdate, cancel_job, submit_job, wait_for_job
from ondol.client.records import JobFields, JobRequest
from ondol.client.retry import RetryPolicy
from ondol.contract.errors import InvalidPayload, OndolError

MAX_CALL_TEXTS = 64
MAX_CALL_BYTES = 64 * 1024
FILE_LIFE_S = 7 * 86_400
"""When the server forgets a file of inputs by itself, should nobody live to delete it."""
_TOO_LARGE = 413

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """What to run, of which kind, with which model and options; `as_job` forces the durable way.

    `call_options` are those that the kind's call knows; with others the inputs go as a job, which refuses them by name.
    `job_options` are added where they go as a job.
    """

    kind: str
    inputs: Inputs
    model: str
    call_options: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    as_job: bool = False
    priority: str | None = None
    job_options: Mapping[str, Any] = field(default_factory=dict)

    def is_call(self) -> bool:
        """Whether this is small enough, and asks for nothing but what a call can do."""
        return (
            not (self.as_job or self.priority)
            and self.inputs.is_whole
            and len(self.inputs.held) <= MAX_CALL_TEXTS
            and self.inputs.num_bytes <= MAX_CALL_BYTES
            and self.call_options.issuperset(self.options)
        )


@dataclass(frozen=True, slots=True)
class Ways(Generic[T]):
    """A kind's two ways to a T in input order: `call`, all or nothing, and `collect` from a job that succeeded."""

    call: Callable[[BulkRequest, RetryPolicy], Flow[T]]
    collect: Callable[[JobFields, RetryPolicy], Flow[T]]


def run_inputs(
    request: BulkRequest, ways: Ways[T], policy: RetryPolicy, on_progress: OnProgress | None = None
) -> Flow[T]:
    """What `ways` give for the inputs.

    A call is all or nothing: when it refuses one input, the inputs go as a job, which treats each alone. When anything
    goes wrong with a job, or somebody interrupts, it is cancelled and the file that was sent for it is deleted. If that
    fails, too, the error names the job in a note, and as `job_id` where it is about the server.
    """
    if request.is_call():
        try:
            return (yield from ways.call(request, policy))
        except OndolAPIError as error:
            if error.status != 400 or error.input_index is None or len(request.inputs.held) == 1:
                raise
    work = _Work(request)
    try:
        yield from work.submit(policy)
        outcome = yield from ways.collect((yield from work.wait(policy, on_progress)), policy)
    except (OndolError, *INTERRUPTIONS) as error:
        left = yield from work.take_back(replace(policy, max_retries=0))
        if left is not None:
            error.add_note(f"job {left} was not cancelled and goes on; client.jobs.get({left!r}) finds it")
            if isinstance(error, (ConnectionFailed, OndolAPIError)):
                error.job_id = left
        raise
    yield from work.forget_file(policy)
    return outcome


class _Work:
    """The job of a request, and what there is of it on the server."""

    def __init__(self, request: BulkRequest) -> None:
        self._request = request
        self._upload: InputsUpload | None = None
        self._file_id: str | None = None
        self._job: JobFields | None = None

    def submit(self, policy: RetryPolicy) -> Flow[None]:
        """Have the job accepted, with the inputs in its body if it can carry them, else as a file."""
        inputs = self._request.inputs
        if inputs.fits_body:
            try:
                self._job = yield from submit_job(self._job_request(input=list(inputs.held)), policy)
                return
            except OndolAPIError as error:
                if error.status != _TOO_LARGE or error.input_index is not None:
                    raise
        self._upload = InputsUpload(inputs, expires_after_s=FILE_LIFE_S)
        self._file_id = (yield from put_file(self._upload, policy)).id
        columns = {"text": "text", "text_pair": "text_pair"} if inputs.has_pairs else {"text": "text"}
        request = self._job_request(input_file=self._file_id, input_columns=columns)
        self._job = yield from submit_job(request, policy)

    def wait(self, policy: RetryPolicy, on_progress: OnProgress | None) -> Flow[JobFields]:
        """The job when it has succeeded, else JobFailed."""
        assert self._job is not None, "waiting comes after submitting"
        ended = yield from wait_for_job(self._job.id, policy, on_update=self._teller(on_progress))
        if ended.status != "succeeded":
            raise JobFailed(ended)
        return ended

    def take_back(self, policy: RetryPolicy) -> Flow[str | None]:
        """Cancel the job and delete its file, as far as they are there; the id of a job that may go on all the same."""
        left = None
        if self._job is not None:
            try:
                yield from cancel_job(self._job.id, policy)
            except (StateConflict, NoSuchThing):
                left = None  # it has ended
            except OndolError:  # the server is gone: the first error is the one to report
                left = self._job.id
        yield from self.forget_file(policy)
        return left

    def forget_file(self, policy: RetryPolicy) -> Flow[None]:
        """Delete the file of inputs; one that cannot be deleted now expires."""
        if self._file_id is not None:
            with suppress(OndolError):
                yield from delete_file(self._file_id, policy)

    def _job_request(self, **source: Any) -> JobRequest:
        asked = self._request
        options = {**asked.job_options, **asked.options}
        return JobRequest(asked.kind, model=asked.model, options=options, priority=asked.priority, **source)

    def _teller(self, on_progress: OnProgress | None) -> OnUpdate | None:
        if on_progress is None:
            return None
        num_inputs = len(self._request.inputs.held) if self._upload is None else self._upload.num_inputs

        def tell(job: JobFields) -> None:
            on_progress(job.progress.done if job.progress else 0, num_inputs)

        return tell


def inputs_given(inputs: Inputs, *, to: str) -> Inputs:
    """The inputs; InvalidPayload if there are none. `to`: what was to be done with them."""
    if not inputs.held:
        raise InvalidPayload(f"there is nothing to {to}: the list of inputs is empty", param="input")
    return inputs
