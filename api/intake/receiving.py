"""From a producer's message to a recorded job: once a task id, however often the message comes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import structlog

from api.admission import Admission, Reservation
from api.auth import Caller
from api.database import AsyncDatabase
from api.intake.results import ProducerResults
from api.model_lookup import ModelLookup
from api.submission import Origin, admit, input_limits, prepare, record_jobs
from ondol.broker.wake import WakeBus
from ondol.contract.errors import (
    BrokerUnavailable,
    Conflict,
    DeadlineExceeded,
    HandedBack,
    IllegalTransition,
    InvalidPayload,
    OndolError,
    Overloaded,
    TaskRevoked,
)
from ondol.contract.jobs import InputLimits
from ondol.contract.kinds import JobKind
from ondol.control.ringer import Ringer
from ondol.settings import IntakeSettings
from ondol.sql.records import NewJob
from ondol.sql.unit_of_work import UnitOfWork

RETRY_S = 1.0
MAX_RETRY_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProducerMessage:
    """What a producer sent: the fields of `POST /v1/jobs` except the kind, which is the task's name."""

    task_id: str
    kind: JobKind
    fields: dict[str, Any]
    not_before: float | None
    """The task's ETA, in seconds since the epoch."""
    ignores_result: bool
    num_bytes: int


@dataclass(frozen=True, slots=True)
class IntakeServices:
    """The parts of one intake. `revoked` holds the task ids that this node was told to forget."""

    settings: IntakeSettings
    database: AsyncDatabase
    models: ModelLookup
    admission: Admission
    ringer: Ringer
    wake: WakeBus
    results: ProducerResults
    revoked: Container[str]
    stopping: asyncio.Event

    @property
    def limits(self) -> InputLimits:
        """How much one job may carry: as over HTTP."""
        return input_limits(self.settings)


class Receiver:
    """Records jobs of the producers' project. Coroutines of one event loop."""

    def __init__(self, services: IntakeServices) -> None:
        self._services = services
        self._caller: Caller | None = None

    async def record(self, message: ProducerMessage) -> str:
        """The id of the message's job, recorded now or before.

        What will pass (an outage, a full queue) is waited out; HandedBack if the node is told to stop meanwhile.
        TaskRevoked, DeadlineExceeded as soon as it is sure, or what is wrong with the message. The deadline begins
        with this call.
        """
        begun_at = time.monotonic()
        while True:
            try:
                job_id = await self._record_once(message, begun_at)
            except OndolError as exc:
                if not exc.retryable:
                    raise
                await self._wait_out(exc, message.task_id)
                continue
            await self._say_recorded(message, job_id)
            return job_id

    async def cancel(self, task_id: str) -> bool:
        """Cancel the task's job unless it has ended; False if there is no such job. Outages are waited out."""
        while True:
            try:
                project_id = (await self._resolve_caller()).project_id
                return await self._services.database.write(functools.partial(self._cancel, task_id, project_id))
            except OndolError as exc:
                if not exc.retryable:
                    raise
                await self._wait_out(exc, task_id)

    async def _record_once(self, message: ProducerMessage, begun_at: float) -> str:
        services, caller = self._services, await self._resolve_caller()
        known = await services.database.read(lambda uow: _find(uow, message.task_id, caller.project_id))
        if known is not None:
            return known
        if await asyncio.to_thread(services.results.is_revoked, message.task_id):
            raise TaskRevoked("the task was revoked")
        if "kind" in message.fields:
            raise InvalidPayload("the kind is the task's name", param="kind")
        body = {"kind": message.kind, **message.fields}
        [outcome] = await prepare(services, Origin(caller, message.num_bytes), [body])
        if isinstance(outcome, Overloaded) and outcome.param == "deadline_s":
            # Nobody can be told to come back later, and who waits here with the message keeps others' from being taken.
            raise DeadlineExceeded(outcome.message, param=outcome.param)
        if isinstance(outcome, OndolError):
            raise outcome
        job = _of_producer(outcome, message, waited_s=time.monotonic() - begun_at)
        try:
            with await admit(services, [job]) as room:
                return await services.database.write(lambda uow: self._add(uow, job, room))
        except Conflict:
            known = await services.database.read(lambda uow: _find(uow, message.task_id, caller.project_id))
            if known is None:
                raise
            return known  # another intake was faster with the same message

    def _add(self, uow: UnitOfWork, job: NewJob, room: Reservation) -> str:
        assert job.task_id is not None
        known = _find(uow, job.task_id, job.project_id)
        if known is not None:
            return known
        [record] = record_jobs(uow, self._services, [job], room)
        uow.after_commit(lambda: log.info("intake.recorded", job_id=record.id, task_id=job.task_id, kind=job.kind))
        return record.id

    async def _say_recorded(self, message: ProducerMessage, job_id: str) -> None:
        if message.task_id in self._services.revoked:  # whoever revoked it found no job to cancel a moment ago
            await self.cancel(message.task_id)
        if not message.ignores_result:
            with contextlib.suppress(BrokerUnavailable):  # a courtesy; the answer itself is a notice in SQL
                await asyncio.to_thread(self._services.results.say_recorded, message.task_id, job_id)

    def _cancel(self, task_id: str, project_id: str, uow: UnitOfWork) -> bool:
        job_id = _find(uow, task_id, project_id)
        if job_id is None:
            return False
        try:
            uow.jobs.cancel(job_id, project_id)
        except IllegalTransition:
            log.debug("intake.revoked_too_late", job_id=job_id, task_id=task_id)
            return True
        uow.after_commit(lambda: self._services.wake.strike([job_id]))
        uow.after_commit(lambda: self._services.wake.wake([job_id]))
        return True

    async def _resolve_caller(self) -> Caller:
        if self._caller is None:
            name = self._services.settings.producer_project
            project_id = await self._services.database.write(lambda uow: uow.keys.ensure_project(name))
            self._caller = Caller(project_id, name, is_admin=False)
        return self._caller

    async def _wait_out(self, error: OndolError, task_id: str) -> None:
        pause_s = min(MAX_RETRY_S, max(RETRY_S, getattr(error, "retry_after_s", RETRY_S)))
        log.warning("intake.waits", task_id=task_id, code=error.code, pause_s=pause_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._services.stopping.wait(), pause_s)
        if self._services.stopping.is_set():
            raise HandedBack("the intake is stopping; the message goes back to its queue") from None


def _find(uow: UnitOfWork, task_id: str, project_id: str) -> str | None:
    job = uow.jobs.by_task(task_id, project_id)
    return None if job is None else job.id


def _of_producer(job: NewJob, message: ProducerMessage, *, waited_s: float) -> NewJob:
    """The message's job, with what is left of its deadline; DeadlineExceeded where nothing is."""
    left_s = None if job.deadline_s is None else job.deadline_s - waited_s
    if left_s is not None and left_s <= 0:
        raise DeadlineExceeded(
            f"the deadline of {job.deadline_s:g} s passed before there was room for the job", param="deadline_s"
        )
    times = [time for time in (job.run_after, message.not_before) if time is not None]
    return replace(
        job,
        task_id=message.task_id,
        ignores_result=message.ignores_result,
        deadline_s=left_s,
        run_after=max(times) if times else None,
    )
