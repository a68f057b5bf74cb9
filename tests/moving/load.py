"""Clients that submit one job after the other, and try again as the SDK does; and what became of their jobs."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import sqlalchemy as sa

from ondol.sql.database import Database
from ondol.sql.tables import attempts, jobs, results

PAUSE_S = 0.02


class Load:
    """A client on a thread of its own; `accepted` are the ids of jobs for which it got a 2xx."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.accepted: list[str] = []
        self.num_refused = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def start(self) -> None:
        """Begin to submit."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the job that is being submitted, accepted or not."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stopping.is_set():
                self._submit(client, f"text {len(self.accepted)}", str(uuid.uuid4()))

    def _submit(self, client: httpx.Client, text: str, key: str) -> None:
        body = {"kind": "embedding", "model": "tiny", "input": text}
        while not self._stopping.is_set():
            with contextlib.suppress(httpx.TransportError):
                answer = client.post(f"{self.url}/v1/jobs", json=body, headers={"Idempotency-Key": key})
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["id"])
                    self._stopping.wait(PAUSE_S)
                    return
                assert answer.status_code == 503, answer.text
            self.num_refused += 1
            self._stopping.wait(PAUSE_S * 5)


@contextlib.contextmanager
def loaded(url: str) -> Iterator[Load]:
    """A load that is stopped at the end of the block."""
    load = Load(url)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def num_unfinished(database: Database, ids: list[str]) -> int:
    """How many of the jobs have not succeeded, or are not there."""
    return len(set(ids)) - _count(database, jobs, jobs.c.state == "succeeded", jobs.c.id.in_(ids))


def check_each_has_one_effect(database: Database, ids: list[str]) -> None:
    """Each of the jobs is there once, succeeded by one attempt, and has that attempt's result."""
    assert len(set(ids)) == len(ids)
    assert _count(database, jobs, jobs.c.state == "succeeded", jobs.c.id.in_(ids)) == len(ids)
    assert _count(database, attempts, attempts.c.outcome == "succeeded", attempts.c.job_id.in_(ids)) == len(ids)
    assert _count(database, results, results.c.job_id.in_(ids)) == len(ids)
    assert _count(database, attempts, attempts.c.outcome.is_(None)) == 0
    assert _count(database, attempts, attempts.c.outcome == "lost") == 0, "nothing is counted as a loss"


def _count(database: Database, table: sa.Table, *where: sa.ColumnElement[Any]) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(*where)
    return int(database.read(lambda uow: uow.conn.execute(query).scalar_one()))
