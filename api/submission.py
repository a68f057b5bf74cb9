"""Accepting jobs: parse, resolve the models, check, admit, record. A single job is a batch of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.auth import Caller
from api.database import run_sized
from api.fine_tune_submission import build_fine_tune, hold_files, without_missing_files
from api.model_lookup import Served
from api.new_job import new_job
from api.services import Services
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.inference_checks import check_inference, estimate_tokens
from ondol.contract.jobs import INFERENCE_OPTIONS, InputLimits, Inputs, ParsedJob, parse_job
from ondol.contract.kinds import JobKind
from ondol.sql.records import JobRecord, NewJob
from ondol.sql.unit_of_work import UnitOfWork

Outcome = NewJob | OndolError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a batch of bodies came from: who asked, and how many bytes they were."""

    caller: Caller
    num_bytes: int


async def prepare(services: Services, origin: Origin, bodies: Sequence[Any]) -> list[Outcome]:
    """One checked job or error a body, in order; nothing is stored. Raises only what concerns all of them."""
    limits = services.limits
    parsed = await run_sized(origin.num_bytes, lambda: [_parse(body, limits, origin.caller) for body in bodies])
    refs = {job.request.model for job in parsed if isinstance(job, ParsedJob) and job.request.model is not None}
    served = await services.models.resolve_all(refs, origin.caller.project_id)
    built = await run_sized(origin.num_bytes, lambda: [_build(job, served, origin.caller) for job in parsed])
    return await without_missing_files(services.database, built, origin.caller.project_id)


async def admit(services: Services, jobs: Sequence[NewJob]) -> None:
    """Return if all of the jobs may wait, else Overloaded."""
    if jobs:
        await services.admission.admit(len(jobs), sum(job.estimated_tokens for job in jobs))


def record_jobs(uow: UnitOfWork, services: Services, jobs: Sequence[NewJob]) -> list[JobRecord]:
    """Record the jobs in this transaction, in order, and ring after its commit."""
    hold_files(uow, jobs)
    added = {record.id: record for record in uow.jobs.add_all(jobs)}
    unknown = [job.id for job in jobs if job.id not in added]
    if unknown:  # an earlier try committed them without our knowing
        added |= {record.id: record for record in uow.jobs.get_many(unknown, jobs[0].project_id)}
    uow.after_commit(services.ringer.ring_soon)
    return [added[job.id] for job in jobs]


def as_inputs(value: Any) -> Inputs:
    """A checked `input` field as a list of texts, text pairs or token id lists."""
    if isinstance(value, str | dict):
        return [value]
    if isinstance(value[0], int):
        return [value]
    inputs: Inputs = value
    return inputs


def _parse(body: Any, limits: InputLimits, caller: Caller) -> ParsedJob | OndolError:
    try:
        parsed = parse_job(body, limits)
        if parsed.request.kind is JobKind.IMPORT:
            caller.require_admin("importing from a path of the server")
            if parsed.request.model is not None:
                raise InvalidPayload("an import is named by options.name", param="model")
    except OndolError as exc:
        return exc
    return parsed


def _build(job: ParsedJob | OndolError, served: dict[str, Served | OndolError], caller: Caller) -> Outcome:
    if isinstance(job, OndolError):
        return job
    if job.request.model is None:
        return new_job(job, None, caller)
    model = served[job.request.model]
    if isinstance(model, OndolError):
        return model
    try:
        return _build_for_model(job, model, caller)
    except OndolError as exc:
        return exc


def _build_for_model(job: ParsedJob, model: Served, caller: Caller) -> NewJob:
    kind = job.request.kind
    if kind is JobKind.FINE_TUNE:
        return build_fine_tune(job, model, caller)
    options = INFERENCE_OPTIONS[kind].model_construct(**job.options)
    inputs = as_inputs(job.request.input)
    check_inference(kind, options, inputs, model.spec)
    estimate = estimate_tokens(inputs, job.num_bytes, options, model.spec)
    return new_job(job, model, caller, estimated_tokens=estimate)
