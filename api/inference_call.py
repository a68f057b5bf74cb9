"""A call of any inference kind: sent to a worker while the client waits. The routes differ in their shapes only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from api.auth import Caller
from api.calls import send_call
from api.errors import error_from_record
from api.model_lookup import Served
from api.services import Services
from api.usage_meter import Usage
from api.vectors import Array
from ondol.broker.calls import CallReply, CallRequest
from ondol.contract.errors import InvalidPayload, OndolError, PayloadTooLarge
from ondol.contract.ids import new_job_id
from ondol.contract.inference_checks import estimate_tokens
from ondol.contract.jobs import InferenceOptions, Inputs, dump_inputs
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from ondol.sql.records import NewJob

T = TypeVar("T")
MAX_CALL_INPUTS = 2048
MAX_TAGGED_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class Inferred:
    """What came back for a call: float32 [N, H] (or one array an input), or `outputs`, one an input; see `CallReply`.

    Errors by index, seconds by stage; `job_id` where the call was recorded as a job.
    """

    vectors: Array | Sequence[Array]
    num_tokens: int
    errors: Mapping[int, Mapping[str, Any]]
    timings: Mapping[str, float]
    about: dict[str, Any] = field(default_factory=dict)
    outputs: list[Any] | None = None
    job_id: str | None = None

    def raise_item_error(self, param: str) -> None:
        """A call is all or nothing: raise the first item's error as the request's, at `param[index]`."""
        if self.errors:
            index = min(self.errors)
            raise error_from_record(self.errors[index], param=f"{param}[{index}]")

    def headers(self, total_s: float) -> dict[str, str]:
        """Where the time went, in milliseconds, and the job's id."""
        headers = {
            "x-queue-time": _milliseconds(self.timings.get("queue_wait_s", 0.0)),
            "x-tokenization-time": _milliseconds(self.timings.get("tokenize_s", 0.0)),
            "x-inference-time": _milliseconds(self.timings.get("forward_s", 0.0)),
            "x-total-time": _milliseconds(total_s),
        }
        return headers if self.job_id is None else headers | {"x-ondol-job-id": self.job_id}


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """One checked call with all that was found out about it."""

    services: Services
    caller: Caller
    served: Served
    kind: JobKind
    options: InferenceOptions
    inputs: Inputs
    num_bytes: int
    """UTF-8 bytes of text, for the token estimate."""
    priority: Priority = Priority.INTERACTIVE

    async def run(self) -> Inferred:
        """Send the call to a worker and count what it used.

        PayloadTooLarge for more text than a call may tag, Overloaded where as many calls wait as may.
        """
        if self.kind is JobKind.TOKEN_CLASSIFICATION:  # its answer is JSON, an object an entity
            estimate = estimate_tokens(self.inputs, self.num_bytes, self.options, self.served.spec)
            if estimate > MAX_TAGGED_TOKENS:
                message = f"about {estimate} tokens; a call tags at most {MAX_TAGGED_TOKENS}, a job takes more"
                raise PayloadTooLarge(message, param="inputs")
        request = CallRequest(
            version_id=self.served.version.id,
            model_ref=self.served.version.ref,
            kind=self.kind,
            options=self.options.model_dump(mode="json"),
            inputs=self.inputs,
            deadline_at=time.time() + self.services.settings.call_timeout_s,
            priority=self.priority,
        )
        reply = await self._send(request)
        num_tokens = sum(reply.tokens)
        usage = Usage(num_calls=1, num_inputs=len(self.inputs), num_tokens=num_tokens)
        self.services.usage.add(self.caller.project_id, self.served.version.ref, usage)
        return Inferred(reply.vectors, num_tokens, reply.errors, reply.timings, reply.about, reply.outputs)

    async def _send(self, request: CallRequest) -> CallReply:
        begun_at, outcome, num_tokens = time.monotonic(), "left", 0
        try:
            with self.services.calls.hold(self.caller.project_id):
                reply = await send_call(self.services.workers, self.services.sender, self.served.version, request)
            outcome, num_tokens = "ok", sum(reply.tokens)
        except OndolError as exc:
            outcome = exc.code
            raise
        finally:
            took_s = time.monotonic() - begun_at
            self.services.metrics.call_ended(self.kind, outcome, took_s=took_s, num_tokens=num_tokens)
        return reply

    def as_job(self) -> NewJob:
        """The call as a job to record; PayloadTooLarge for more than one message of it, as a job is cut then."""
        estimate = estimate_tokens(self.inputs, self.num_bytes, self.options, self.served.spec)
        most = self.services.limits.message_tokens
        if estimate > most:
            message = f"about {estimate} tokens; with store a call takes at most {most}: submit a job (POST /v1/jobs)"
            raise PayloadTooLarge(message, param="input")
        return NewJob(
            id=new_job_id(),
            project_id=self.caller.project_id,
            kind=self.kind,
            priority=self.priority,
            payload=dump_inputs(self.inputs),
            options=self.options.model_dump(mode="json"),
            num_inputs=len(self.inputs),
            estimated_tokens=estimate,
            version_id=self.served.version.id,
            model_ref=self.served.version.ref,
            deadline_s=self.services.settings.call_timeout_s,
        )


def check_num_inputs(value: Any, *, param: str) -> None:
    """Return unless `value` is a list of more inputs than a call takes (InvalidPayload); a list of token ids is one."""
    if isinstance(value, list) and len(value) > MAX_CALL_INPUTS and not isinstance(value[0], int):
        raise InvalidPayload(
            f"{len(value)} inputs; a call takes at most {MAX_CALL_INPUTS}, a job takes more", param=param
        )


async def unless_client_leaves(request: Request, made: Coroutine[Any, Any, T]) -> T:
    """What `made` gives; when the client hangs up first, `made` is cancelled, which strikes the call out."""
    work = asyncio.create_task(made)
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"
