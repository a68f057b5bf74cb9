"""A trainer node as SQL knows one, which trains nothing: the test says what it reports, and when."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from ondol.broker.wake import WakeBus
from ondol.sql.database import Database
from ondol.sql.records import ClaimedTraining, Completion
from ondol.sql.ringing import WindowLimits
from ondol.sql.sessions import TRAIN
from ondol.sql.tables import messages
from ondol.sql.unit_of_work import UnitOfWork
from tests.waiting import wait_until

LEASE_S = 3600.0
REPORT = {
    "task": "text-classification",
    "labels": ["calm", "glad"],
    "num_train": 18,
    "num_validation": 2,
    "metric": "f1_macro",
    "max_steps": 4,
}


class TrainerPeer:
    """One ready trainer node. All writes are fenced as a real one's; the moves are committed, then waiters woken."""

    def __init__(self, database: Database, redis_url: str, name: str) -> None:
        self.name = name
        self._database = database
        self._wake = WakeBus(redis_url)
        self.session_id = database.write(self._open)

    def close(self) -> None:
        """End the session."""
        self._database.write(lambda uow: uow.sessions.end(self.session_id, reason="test"))
        self._wake.close()

    def claim(self) -> ClaimedTraining:
        """Claim what is rung for this node and not cancelled meanwhile; waits for it."""
        job = wait_until(self._claim_next, within_s=20, what="a fine-tune for the trainer")
        assert job is not None
        return job

    def check(self, *warnings: str) -> None:
        """Find the files of the next job good."""
        job = self.claim()
        for warning in warnings:
            self.say(job, message=warning, level="warn")
        self.say(job, message="the files are good", report=REPORT)
        resolved = {"report": REPORT, "max_steps": REPORT["max_steps"]}
        assert self._database.write(lambda uow: uow.training.validated(job.id, job.attempt, resolved, worker=self.name))

    def refuse(self, message: str) -> None:
        """Find the files of the next job wrong."""
        job = self.claim()
        error = {"code": "invalid_payload", "message": message, "param": None}
        assert self._database.write(lambda uow: uow.training.refuse(job.id, job.attempt, error, worker=self.name))
        self._wake.wake([job.id])

    def begin(self) -> ClaimedTraining:
        """Claim the next job that was checked, and begin to train it."""
        job = self.claim()
        assert not job.is_check
        self.say(job, message="training begins, to step 4", max_steps=4, resumed_from=None)
        return job

    def say(self, job: ClaimedTraining, **data: Any) -> None:
        """A `message` event."""
        self._append(job, "message", data)

    def measure(self, job: ClaimedTraining, step: int, **data: Any) -> None:
        """A `metrics` event and the progress that goes with it."""
        self._append(job, "metrics", {"phase": "train", "step": step, "epoch": step / 2, **data})
        self._database.write(lambda uow: uow.training.set_progress(job.id, job.attempt, num_steps=step, max_steps=4))

    def evaluate(self, job: ClaimedTraining, step: int, **metrics: float) -> None:
        """An evaluation with its checkpoint."""
        self._append(job, "metrics", {"phase": "evaluation", "step": step, "epoch": step / 2, "metrics": metrics})
        assert self._database.write(
            lambda uow: uow.checkpoints.add(
                job.id,
                job.attempt,
                step=step,
                manifest_digest="0" * 64,
                size_bytes=2_500_000,
                metrics=metrics,
                is_best=True,
            )
        )
        committed = {"step": step, "size_bytes": 2_500_000, "metrics": metrics, "is_best": True}
        self.say(job, message=f"the checkpoint of step {step} is committed", checkpoint=committed)

    def pause(self, job: ClaimedTraining) -> None:
        """Do what was asked for: stand on a checkpoint."""
        assert self._database.write(lambda uow: uow.training.pause(job.id, job.attempt, worker=self.name))
        self._wake.wake([job.id])

    def finish(self, job: ClaimedTraining, *, alias: dict[str, Any] | None = None) -> None:
        """Complete the job with a version that was published."""
        result = {
            "object": "fine_tune.result",
            "model": "mood:3",
            "task": "text-classification",
            "metrics": {"f1_macro": 0.75, "loss": 0.5},
            "best_step": 2,
            "steps": 4,
            "alias": alias,
            "checkpoints": [],
            "files": [],
            "labels": REPORT["labels"],
        }
        summary = {"kind": "fine-tune", "result": result, "num_tokens": 0}
        size_bytes = len(json.dumps(result))
        done = Completion(job.id, job.attempt, summary, "0" * 64, size_bytes, tokens=0, timings={})
        assert self._database.write(lambda uow: uow.attempts.complete([done], worker=self.name))
        self._wake.wake([job.id])

    def _append(self, job: ClaimedTraining, type: str, data: dict[str, Any]) -> None:
        seq = self._database.write(lambda uow: uow.events.append(job.id, attempt=job.attempt, type=type, data=data))
        assert seq is not None
        self._wake.wake([job.id])

    def _open(self, uow: UnitOfWork) -> str:
        session_id = uow.sessions.open(
            worker=self.name,
            device="cpu:0",
            device_kind="cpu",
            host="test",
            pid=1,
            lease_s=LEASE_S,
            role=TRAIN,
        )
        assert uow.sessions.renew(session_id, lease_s=LEASE_S, is_ready=True, warm=[])
        return session_id

    def _claim_next(self) -> ClaimedTraining | None:
        self._database.write(lambda uow: uow.ringing.choose(WindowLimits()))
        return self._database.write(self._claim)

    def _claim(self, uow: UnitOfWork) -> ClaimedTraining | None:
        query = sa.select(messages.c.id).where(messages.c.worker == self.name, messages.c.claimed_at.is_(None))
        message_id = uow.conn.execute(query.order_by(messages.c.id).limit(1)).scalar()
        if message_id is None:
            return None
        found = uow.training.claim(message_id, session_id=self.session_id, worker=self.name)
        uow.ringing.finish(message_id)
        return found
