"""Simulated workers: processes that ring, claim and complete jobs in the database, without Redis and without models.

They use the product's own units of work in the product's order, one at a time each; what a worker would hear from Redis
they look up. `python -m bench.simulated --database URL` serves rounds (`bench.rounds`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from typing import Any

import sqlalchemy as sa

from bench.rounds import Figures, serve_rounds
from bench.stacks import stop_in_order
from ondol.contract.ids import new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, NewJob, RungMessage
from ondol.sql.ringing import WindowLimits
from ondol.sql.tables import messages
from ondol.sql.unit_of_work import UnitOfWork

LEASE_S = 600.0
RESULT = bytes(4 * 384)
SUMMARY = {"format": "vectors", "shape": [1, 384], "tokens": [6], "truncated": [], "errors": {}, "model": "simulated:1"}
TIMINGS = {"queue_wait_s": 0.01, "load_s": 0.0, "tokenize_s": 0.0001, "forward_s": 0.001, "store_s": 0.001}
LIMITS = WindowLimits()
FEW = WindowLimits(messages=1, message_jobs=1)
"""Of a rehearsal: what is rolled back leaves dead rows on PostgreSQL."""


class _RehearsedError(Exception):
    """Rolls a rehearsal back."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """One worker over a database: its name and session."""

    database: Database
    name: str
    session_id: str

    def run_one(self) -> str:
        """Take one new job all the way; its id."""
        job_id = add_jobs(self.database, 1)[0]
        while self.run_message():
            pass
        return job_id

    def run_message(self) -> int:
        """Ring if nothing is rung for this worker, then claim, complete and finish a message; how many jobs it had."""
        num = self.run_rung()
        return num if num or not self.ring() else self.run_rung()

    def run_rung(self) -> int:
        """Claim, complete and finish a message that was rung for this worker; how many jobs it had, 0 without one."""
        message_id = self.database.read(self._rung)
        if message_id is None:
            return 0
        claimed = self.database.write(
            lambda uow: uow.attempts.claim(message_id, session_id=self.session_id, worker=self.name)
        )
        self.database.write(lambda uow: self.record(uow, message_id, claimed))
        return len(claimed)

    def record(self, uow: UnitOfWork, message_id: str, claimed: list[ClaimedJob]) -> None:
        """Results of all jobs of a message, and its end, as a handler records them."""
        uow.attempts.complete([completion_of(job) for job in claimed], worker=self.name)
        uow.ringing.finish(message_id)

    def rehearse(self) -> None:
        """Ring, claim and complete once and roll back: a process that lives long has its statements built."""

        def run(uow: UnitOfWork) -> None:
            for message in uow.ringing.choose(FEW):
                if message.worker == self.name:
                    claimed = uow.attempts.claim(message.id, session_id=self.session_id, worker=self.name)
                    self.record(uow, message.id, claimed)
                    break
            raise _RehearsedError

        with contextlib.suppress(_RehearsedError):
            self.database.write(run)

    def ring(self) -> list[RungMessage]:
        """Fill the windows of all workers; what was rung."""
        return self.database.write(lambda uow: uow.ringing.choose(LIMITS))

    def _rung(self, uow: UnitOfWork) -> str | None:
        mine = sa.and_(messages.c.worker == self.name, messages.c.claimed_at.is_(None))
        found: Any = uow.conn.execute(sa.select(messages.c.id).where(mine).order_by(messages.c.id).limit(1)).scalar()
        return None if found is None else str(found)


class Round:
    """What the workers of one round share: how many jobs are left, and a bell for each, in place of Redis."""

    def __init__(self, context: ForkContext, num_workers: int, num_jobs: int) -> None:
        self._bells = {_name(number): context.Semaphore(0) for number in range(num_workers)}
        self._num_left = context.Value("q", num_jobs)

    def start(self, worker: Simulated) -> None:
        """The first ring, as the api's after a submission; the others follow from messages that were finished."""
        self._announce(worker.ring())

    def run(self, worker: Simulated) -> int:
        """Run the messages rung for this worker until no job of the round is left; how many jobs it had."""
        num = 0
        while True:
            self._bells[worker.name].acquire()
            with self._num_left.get_lock():
                if self._num_left.value <= 0:
                    return num
            found = worker.run_rung()
            num += found
            with self._num_left.get_lock():
                self._num_left.value -= found
                is_over = self._num_left.value <= 0
            if is_over:
                for bell in self._bells.values():
                    bell.release()
            else:
                self._announce(worker.ring())

    def _announce(self, rung: list[RungMessage]) -> None:
        for message in rung:
            self._bells[message.worker].release()


@contextlib.contextmanager
def simulated_worker(url: str, number: int = 0) -> Iterator[Simulated]:
    """A worker with a session of its own, which ends with the block."""
    name = _name(number)
    with contextlib.closing(Database(url)) as database:
        session_id = database.write(
            lambda uow: uow.sessions.open(
                worker=name, device="cpu:0", device_kind="simulated", host="bench", pid=os.getpid(), lease_s=LEASE_S
            )
        )
        database.write(lambda uow: uow.sessions.renew(session_id, lease_s=LEASE_S, is_ready=True, warm=()))
        try:
            yield Simulated(database, name, session_id)
        finally:
            database.write(lambda uow: uow.sessions.stop(session_id, reason="stopped"))


def add_jobs(database: Database, num: int) -> list[str]:
    """Queue so many one-text jobs in one transaction; their ids."""
    project_id = database.write(lambda uow: uow.keys.ensure_project())
    new = [
        NewJob(
            id=new_job_id(),
            project_id=project_id,
            kind=JobKind.EMBEDDING,
            priority=Priority.NORMAL,
            payload=b'["a warm floor"]',
            options={},
            num_inputs=1,
            estimated_tokens=6,
            version_id="simulated",
            model_ref="simulated:1",
        )
        for _ in range(num)
    ]
    database.write(lambda uow: uow.jobs.add_all(new))
    return [job.id for job in new]


def completion_of(job: ClaimedJob) -> Completion:
    """A result as an embedding of one text has it."""
    return Completion(
        job_id=job.id,
        attempt=job.attempt,
        summary=SUMMARY,
        sha256=hashlib.sha256(RESULT).hexdigest(),
        size_bytes=len(RESULT),
        tokens=6,
        timings=TIMINGS,
        data=RESULT,
    )


def _name(number: int) -> str:
    return f"simulated{number}@bench"


def _work(url: str, number: int, shared: Round, pipe: Connection) -> None:
    """One worker process: open a session, rehearse, then run until no job is left; it waits for the word between."""
    with simulated_worker(url, number) as worker:
        pipe.send(None)
        pipe.recv()
        worker.rehearse()
        pipe.send(None)
        pipe.recv()
        began, cpu_before = time.time(), time.process_time()
        if number == 0:
            shared.start(worker)
        num = shared.run(worker)
        pipe.send({"num": num, "began": began, "ended": time.time(), "cpu_s": time.process_time() - cpu_before})
        pipe.recv()  # sessions stay open until all are through: an ending one would hand out its window again


def _round(url: str, num_workers: int, num_jobs: int) -> Figures:
    context = multiprocessing.get_context("fork")  # this process has one thread, and children start at once
    shared = Round(context, num_workers, num_jobs)
    pipes, children = [], []
    for number in range(num_workers):
        ours, theirs = context.Pipe()
        child = context.Process(target=_work, args=(url, number, shared, theirs), daemon=True)
        child.start()
        pipes.append(ours)
        children.append(child)
    for _ in ("its session is open", "it has rehearsed"):
        for pipe in pipes:
            pipe.recv()
        _tell(pipes)
    answers = [pipe.recv() for pipe in pipes]
    _tell(pipes)
    for child in children:
        child.join()
    ended = max(answer["ended"] for answer in answers if answer["num"])
    return {
        "num": sum(answer["num"] for answer in answers),
        "wall_s": ended - min(answer["began"] for answer in answers),
        "cpu_s": sum(answer["cpu_s"] for answer in answers),
    }


def _tell(pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.send(None)


def main(argv: list[str]) -> int:
    """Serve rounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulated", description=__doc__)
    parser.add_argument("--database", required=True)
    parsed = parser.parse_args(argv)
    stop_in_order()
    serve_rounds(lambda request: _round(parsed.database, request["num_workers"], request["num_jobs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
