"""Answers to producers: each end of a job that came as a Celery task is stored once under the task's id.

What is still to be told stands in SQL as notices, so an answer survives this process, Redis and SQL being away. Hints
only make it quick.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from api.intake.failures import exception_of, exception_of_record
from api.intake.results import ProducerResults
from api.result_parts import ResultPart, read_parts_here, whole_part
from api.result_writers import ResultFacts, make_writer, write_pieces
from api.stored_items import JSON
from api.stored_results import STORED, plain_result, stored_bytes
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from ondol.broker.wake import WAKE_CHANNEL, HintListener
from ondol.contract.errors import BrokerUnavailable, DatabaseUnavailable, ModelStoreError, OndolError
from ondol.contract.states import JobState
from ondol.metrics.jobs import NoticeMetrics
from ondol.sql.database import Database
from ondol.sql.notices import Channel, DueNotice
from ondol.sql.records import JobRecord, ResultRecord
from ondol.sql.unit_of_work import UnitOfWork

POLL_S = 2.0
CLAIM_S = 30.0
MAX_NOTICES = 50
MAX_PAUSE_S = 30.0

log = structlog.get_logger(__name__)

Close = Callable[[UnitOfWork], bool]


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Largest result that is stored whole, and where people find larger ones."""

    max_bytes: int
    api_url: str
    """Address of the api, or nothing: then a reference is a path of it."""


class Answerer:
    """A thread that delivers what is due. Several intakes may run one each: a notice is claimed by one at a time."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: ResultBlobs,
        inputs: InputBlobs,
        results: ProducerResults,
        redis_url: str,
        limits: AnswerLimits,
        metrics: NoticeMetrics,
    ) -> None:
        self._metrics = metrics
        self._database = database
        self._blobs = blobs
        self._inputs = inputs
        self._results = results
        self._limits = limits
        self._wanted = threading.Event()
        self._stopping = False
        self._hints = HintListener(redis_url, WAKE_CHANNEL, lambda _ids: self._wanted.set())
        self._thread = threading.Thread(target=self._loop, name="answerer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._hints.start()
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Deliver nothing new; returns at once."""
        self._stopping = True
        self._wanted.set()
        self._hints.begin_to_stop()

    def stop(self) -> None:
        """Stop after the present round."""
        self.begin_to_stop()
        self._thread.join(timeout=10)
        self._hints.stop()

    def _loop(self) -> None:
        while not self._stopping:
            try:
                pause_s = self._round()
            except DatabaseUnavailable as exc:
                log.warning("answers.wait", reason=exc.message)
                pause_s = POLL_S
            except Exception as exc:  # noqa: BLE001 - the thread's edge: what was claimed comes due again
                log.error("answers.failed", error=type(exc).__name__, at=where(exc))
                pause_s = POLL_S
            self._wanted.wait(pause_s)
            self._wanted.clear()

    def _round(self) -> float:
        """Deliver what is due; seconds until something may be due again."""
        due_in = self._database.read(lambda uow: uow.notices.next_due_in(Channel.CELERY))
        if due_in is None or due_in > 0:
            return POLL_S if due_in is None else min(POLL_S, due_in)
        claimed = self._database.write(lambda uow: uow.notices.claim(Channel.CELERY, for_s=CLAIM_S, limit=MAX_NOTICES))
        until = time.monotonic() + CLAIM_S / 2
        closing = [self._deliver(notice, until) for notice in claimed]
        closed = self._database.write(lambda uow: [close(uow) for _, close in closing])
        for (outcome, _), is_mine in zip(closing, closed, strict=True):
            if outcome != "handed_back":
                self._metrics.tried(Channel.CELERY, outcome if is_mine else "overtaken")
        return 0.0

    def _deliver(self, notice: DueNotice, until: float) -> tuple[str, Close]:
        """Try one notice; what came of it, and how it is to be closed. One that fails holds up no other."""
        if self._stopping or time.monotonic() > until:  # a Redis that answers slowly, or not at all
            return "handed_back", lambda uow: uow.notices.hand_back(notice, for_s=0.0)
        try:
            answer = self._answer(notice)
        except DatabaseUnavailable:
            raise
        except (BrokerUnavailable, ModelStoreError) as exc:
            return self._put_off(notice, exc.code)
        except Exception as exc:  # noqa: BLE001 - the notice's edge: a fault of ours in one is not its neighbours'
            log.error("answer.failed", job_id=notice.job_id, error=type(exc).__name__, at=where(exc))
            return self._put_off(notice, "internal_error")
        log.info("answer.stored", job_id=notice.job_id, task_id=notice.task_id, answer=answer)
        return "accepted", lambda uow: uow.notices.accept(notice, answer)

    @staticmethod
    def _put_off(notice: DueNotice, reason: str) -> tuple[str, Close]:
        pause_s = min(MAX_PAUSE_S, 2.0 ** min(notice.num_tries, 5))
        log.warning("answer.put_off", job_id=notice.job_id, task_id=notice.task_id, code=reason, pause_s=pause_s)
        return "put_off", lambda uow: uow.notices.put_off(notice, reason, for_s=pause_s)

    def _answer(self, notice: DueNotice) -> str:
        assert notice.task_id is not None
        job, record = self._database.read(lambda uow: _look(uow, notice))
        if job is None or job.state is not notice.state:
            return "superseded"  # deleted, or tried again: its next end is another notice
        if notice.state is JobState.CANCELLED:
            self._results.revoke(notice.task_id)
            return "revoked"
        if notice.state is JobState.FAILED or record is None:
            self._results.fail(notice.task_id, exception_of_record(job.error))
            return "failure"
        try:
            result = self._result(job, record)
        except OndolError as exc:
            if exc.retryable:
                raise
            self._results.fail(notice.task_id, exception_of(exc))
            return "failure"
        self._results.succeed(notice.task_id, result)
        return "success"

    def _result(self, job: JobRecord, record: ResultRecord) -> Any:
        """The result as `GET /v1/jobs/{id}/result` gives it, or a reference to that if it is too large."""
        whole = self._whole(job, record) if record.size_bytes <= self._limits.max_bytes else None
        if whole is not None and len(whole) <= self._limits.max_bytes:
            return orjson.loads(whole)
        url = f"{self._limits.api_url}/v1/jobs/{job.id}/result"
        return {"object": "job.result_reference", "job": job.id, "result_url": url}

    def _whole(self, job: JobRecord, record: ResultRecord) -> bytes:
        if job.kind not in STORED:
            return orjson.dumps(plain_result(job.kind, record))
        parts: Iterable[ResultPart]
        if job.is_sharded:
            parts = read_parts_here(self._database, self._blobs, self._inputs, job)
        else:
            parts = [whole_part(STORED[job.kind].read(record.summary, stored_bytes(self._blobs, record)))]
        writer = make_writer(JSON, ResultFacts(job.kind, job.num_inputs, job.model_ref, record.summary, None))
        return b"".join(write_pieces(writer, parts))


def where(error: BaseException) -> Sequence[str]:
    """The places in the code that an error went through, without its message, which may hold texts."""
    found, frame = [], error.__traceback__
    while frame is not None:
        found.append(f"{frame.tb_frame.f_code.co_qualname}:{frame.tb_lineno}")
        frame = frame.tb_next
    return found


def _look(uow: UnitOfWork, notice: DueNotice) -> tuple[JobRecord | None, ResultRecord | None]:
    found = uow.jobs.get_many([notice.job_id], notice.project_id)
    record = uow.results.get(notice.job_id) if notice.state is JobState.SUCCEEDED else None
    return (found[0] if found else None), record
