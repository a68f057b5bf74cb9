"""From a checked job to the row that is recorded, with its shards where the inputs are too many for one message."""

from __future__ import annotations

from dataclasses import replace

from api.auth import Caller
from api.model_lookup import Served
from ondol.contract.cutting import cut
from ondol.contract.ids import new_job_id
from ondol.contract.inference_checks import TokenEstimate
from ondol.contract.jobs import Inputs, ParsedJob, dump_inputs
from ondol.contract.states import Priority
from ondol.sql.records import NewJob, NewShard

NO_INPUT = b"null"
"""Payload of a job whose inputs stand with its shards."""


def new_job(job: ParsedJob, served: Served | None, caller: Caller, *, estimated_tokens: int = 0) -> NewJob:
    """The job of the caller's project, for the version that is served, if it has one."""
    request = job.request
    default = Priority.NORMAL if request.input_file is None else Priority.BULK
    return NewJob(
        id=new_job_id(),
        project_id=caller.project_id,
        kind=request.kind,
        priority=request.priority or default,
        payload=dump_inputs(job.inputs) if job.inputs else job.payload,
        options=job.options,
        num_inputs=job.num_inputs,
        estimated_tokens=estimated_tokens,
        version_id=served.version.id if served else None,
        model_ref=served.version.ref if served else None,
        metadata=request.metadata,
        run_after=request.not_before,
        deadline_s=request.deadline_s,
        webhook=request.webhook,
        input_file_id=request.input_file,
    )


def new_inference(
    job: ParsedJob, served: Served, caller: Caller, estimate: TokenEstimate, *, max_tokens: int, num_tokens: int
) -> NewJob:
    """An inference of inputs that came with the request, `num_tokens` in all; over `max_tokens` it is cut into shards.

    One input alone, however long, is no shard.
    """
    if num_tokens <= max_tokens:
        return new_job(job, served, caller, estimated_tokens=num_tokens)
    shards = cut_inputs(job.inputs, job.sizes, estimate, max_tokens=max_tokens)
    if len(shards) == 1:
        return new_job(job, served, caller, estimated_tokens=num_tokens)
    without_inputs = replace(job, inputs=[], payload=NO_INPUT)
    return replace(new_job(without_inputs, served, caller, estimated_tokens=num_tokens), shards=shards)


def cut_inputs(inputs: Inputs, sizes: list[int], estimate: TokenEstimate, *, max_tokens: int) -> tuple[NewShard, ...]:
    """The inputs as shards; `sizes` are their bytes, of which token ids have four each."""
    is_ids = isinstance(inputs[0], list)
    tokens = (size // 4 if is_ids else estimate.of_text(size) for size in sizes)
    return tuple(
        NewShard(
            number=number,
            first_input=part.first_input,
            num_inputs=part.num_inputs,
            estimated_tokens=part.estimated_tokens,
            payload=dump_inputs(inputs[part.first_input : part.first_input + part.num_inputs]),
        )
        for number, part in enumerate(cut(tokens, max_tokens=max_tokens))
    )
