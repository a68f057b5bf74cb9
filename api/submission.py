"""Accepting jobs: parse, resolve the models, check, admit, record. A single job is a batch of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.admission import Admission, Reservation
from api.auth import Caller
from api.database import AsyncDatabase
from api.fine_tune_submission import build_fine_tune, hold_training_files, without_missing_files
from api.input_files import Files, find_input_files, hold_input_files
from api.model_lookup import ModelLookup, Served
from api.new_job import new_inference, new_job
from api.threads import run_sized
from ondol.contract.errors import InvalidPayload, OndolError, Overloaded, PayloadTooLarge
from ondol.contract.inference_checks import check_inference, estimate_tokens, token_estimate
from ondol.contract.jobs import INFERENCE_OPTIONS, InputLimits, ParsedJob, parse_job
from ondol.contract.kinds import JobKind
from ondol.control.ringer import Ringer
from ondol.settings import ApiSettings, IntakeSettings
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


def input_limits(settings: ApiSettings | IntakeSettings) -> InputLimits:
    """How much one job may carry by the settings, whom it may have told, and over what it is cut into shards."""
    return InputLimits(
        settings.max_inputs, settings.max_text_kb * BYTES_A_KB, settings.webhook_networks, settings.message_tokens
    )


async def prepare(services: Acceptance, origin: Origin, bodies: Sequence[Any]) -> list[Outcome]:
    """One checked job or error a body, in order; nothing is stored. Raises only what concerns all of them."""
    limits = services.limits
    parsed = await run_sized(origin.num_bytes, lambda: [_parse(body, limits, origin.caller) for body in bodies])
    refs = {job.request.model for job in parsed if isinstance(job, ParsedJob) and job.request.model is not None}
    served = await services.models.resolve_all(refs, origin.caller.project_id)
    files = await find_input_files(services.database, parsed, origin.caller.project_id)
    build = _Building(origin.caller, limits, served, files)
    built = await run_sized(origin.num_bytes, lambda: [build.job(job) for job in parsed])
    outcomes = await without_missing_files(services.database, built, origin.caller.project_id)
    outcomes = await _without_refused(services.admission, outcomes)
    for outcome in outcomes:
        if isinstance(outcome, OndolError) and not outcome.retryable:  # an outage refuses nothing: it passes
            services.admission.counts.refused(outcome.code)
    return outcomes


async def admit(services: Acceptance, jobs: Sequence[NewJob]) -> Reservation:
    """The room in which all of the jobs, at least one and of one project, may wait; Overloaded, PayloadTooLarge."""
    try:
        return await services.admission.admit(
            jobs[0].project_id,
            len(jobs),
            sum(job.estimated_tokens for job in jobs),
            num_trainings=sum(job.kind is JobKind.FINE_TUNE for job in jobs),
        )
    except (Overloaded, PayloadTooLarge) as exc:
        services.admission.counts.refused(exc.code, len(jobs))
        raise


def record_jobs(uow: UnitOfWork, services: Acceptance, jobs: Sequence[NewJob], room: Reservation) -> list[JobRecord]:
    """Record the jobs in this transaction, in order, in the room they were admitted to, and ring after its commit."""
    hold_training_files(uow, jobs)
    hold_input_files(uow, jobs)
    added = {record.id: record for record in uow.jobs.add_all(jobs)}
    unknown = [job.id for job in jobs if job.id not in added]
    if unknown:  # an earlier try committed them without our knowing
        added |= {record.id: record for record in uow.jobs.get_many(unknown, jobs[0].project_id)}
    uow.after_commit(room.record)
    uow.after_commit(services.ringer.ring_soon)
    uow.after_commit(lambda: _count_accepted(services.admission, jobs))
    return [added[job.id] for job in jobs]


def _count_accepted(admission: Admission, jobs: Sequence[NewJob]) -> None:
    for (kind, priority), num in Counter((job.kind, job.priority) for job in jobs).items():
        admission.counts.accepted(kind, priority, num)


async def _without_refused(admission: Admission, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, jobs that must not wait replaced by the reason."""
    jobs = [outcome for outcome in outcomes if not isinstance(outcome, OndolError)]
    if not jobs:
        return list(outcomes)
    refusals = iter(await admission.refusals(jobs))
    return [outcome if isinstance(outcome, OndolError) else next(refusals) or outcome for outcome in outcomes]


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


@dataclass(frozen=True, slots=True)
class _Building:
    """What the jobs of one request are built from: the models and files that they name were looked up."""

    caller: Caller
    limits: InputLimits
    served: dict[str, Served | OndolError]
    files: Files

    def job(self, parsed: ParsedJob | OndolError) -> Outcome:
        if isinstance(parsed, OndolError):
            return parsed
        if parsed.request.model is None:
            return new_job(parsed, None, self.caller)
        model = self.served[parsed.request.model]
        if isinstance(model, OndolError):
            return model
        try:
            return self._for_model(parsed, model)
        except OndolError as exc:
            return exc

    def _for_model(self, job: ParsedJob, model: Served) -> NewJob:
        kind = job.request.kind
        if kind is JobKind.FINE_TUNE:
            return build_fine_tune(job, model, self.caller)
        options = INFERENCE_OPTIONS[kind].model_construct(**job.options)
        columns = job.request.input_columns
        has_pairs = columns is not None and columns.text_pair is not None
        check_inference(kind, options, job.inputs, model.spec, has_pairs=has_pairs)
        if job.request.input_file is not None:
            return self._of_file(job, model, job.request.input_file)
        num_tokens = estimate_tokens(job.inputs, sum(job.sizes), options, model.spec)
        estimate = token_estimate(options, model.spec)
        return new_inference(
            job, model, self.caller, estimate, max_tokens=self.limits.message_tokens, num_tokens=num_tokens
        )

    def _of_file(self, job: ParsedJob, model: Served, file_id: str) -> NewJob:
        """A job whose inputs nobody has counted yet: the size of its file says about how many tokens they will take."""
        file = self.files[file_id]
        if isinstance(file, OndolError):
            raise file
        num_tokens = max(1, int(file.size_bytes * model.spec.tokens_per_byte))
        return new_job(job, model, self.caller, estimated_tokens=num_tokens)
