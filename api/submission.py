"""Accepting jobs: parse, resolve the models, check, admit, record. A single job is a batch of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.admission import Admission
from api.auth import Caller
from api.database import AsyncDatabase, run_sized
from api.fine_tune_submission import build_fine_tune, hold_files, without_missing_files
from api.model_lookup import ModelLookup, Served
from api.new_job import new_job
from ondol.contract.errors import InvalidPayload, OndolError, Overloaded
from ondol.contract.inference_checks import check_inference, estimate_tokens
from ondol.contract.jobs import INFERENCE_OPTIONS, InputLimits, Inputs, ParsedJob, parse_job
from ondol.contract.kinds import JobKind
from ondol.control.ringer import Ringer
from ondol.settings import AdmissionSettings
from ondol.sql.records import JobRecord, NewJob
from ondol.sql.unit_of_work import UnitOfWork

Outcome = NewJob | OndolError
BYTES_A_KB = 1024


class Acceptance(Protocol):
    """What accepting works with: the services of the api, and those of the intake."""

    @property
    def database(self) -> AsyncDatabase:
        """The database."""

    @property
    def models(self) -> ModelLookup:
        """What model references mean."""

    @property
    def admission(self) -> Admission:
        """How much may wait."""

    @property
    def ringer(self) -> Ringer:
        """Rings what was accepted."""

    @property
    def limits(self) -> InputLimits:
        """How much one job may carry."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a batch of bodies came from: who asked, and how many bytes they were."""

    caller: Caller
    num_bytes: int


def input_limits(settings: AdmissionSettings) -> InputLimits:
    """How much one job may carry by the settings, and whom it may have told."""
    return InputLimits(settings.max_inputs, settings.max_text_kb * BYTES_A_KB, settings.webhook_networks)


async def prepare(services: Acceptance, origin: Origin, bodies: Sequence[Any]) -> list[Outcome]:
    """One checked job or error a body, in order; nothing is stored. Raises only what concerns all of them."""
    limits = services.limits
    parsed = await run_sized(origin.num_bytes, lambda: [_parse(body, limits, origin.caller) for body in bodies])
    refs = {job.request.model for job in parsed if isinstance(job, ParsedJob) and job.request.model is not None}
    served = await services.models.resolve_all(refs, origin.caller.project_id)
    built = await run_sized(origin.num_bytes, lambda: [_build(job, served, origin.caller) for job in parsed])
    outcomes = await without_missing_files(services.database, built, origin.caller.project_id)
    for outcome in outcomes:
        if isinstance(outcome, OndolError) and not outcome.retryable:  # an outage refuses nothing: it passes
            services.admission.counts.refused(outcome.code)
    return outcomes


async def admit(services: Acceptance, jobs: Sequence[NewJob]) -> None:
    """Return if all of the jobs may wait, else Overloaded."""
    if jobs:
        try:
            await services.admission.admit(len(jobs), sum(job.estimated_tokens for job in jobs))
        except Overloaded as exc:
            services.admission.counts.refused(exc.code, len(jobs))
            raise


def record_jobs(uow: UnitOfWork, services: Acceptance, jobs: Sequence[NewJob]) -> list[JobRecord]:
    """Record the jobs in this transaction, in order, and ring after its commit."""
    hold_files(uow, jobs)
    added = {record.id: record for record in uow.jobs.add_all(jobs)}
    unknown = [job.id for job in jobs if job.id not in added]
    if unknown:  # an earlier try committed them without our knowing
        added |= {record.id: record for record in uow.jobs.get_many(unknown, jobs[0].project_id)}
    uow.after_commit(services.ringer.ring_soon)
    uow.after_commit(lambda: _count_accepted(services.admission, jobs))
    return [added[job.id] for job in jobs]


def as_inputs(value: Any) -> Inputs:
    """A checked `input` field as a list of texts, text pairs or token id lists."""
    if isinstance(value, str | dict):
        return [value]
    if isinstance(value[0], int):
        return [value]
    inputs: Inputs = value
    return inputs


def _count_accepted(admission: Admission, jobs: Sequence[NewJob]) -> None:
    for (kind, priority), num in Counter((job.kind, job.priority) for job in jobs).items():
        admission.counts.accepted(kind, priority, num)


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
