"""An intake on a database, what it has recorded, and a way to start and stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from pydantic import TypeAdapter

from ondol.contract.ids import new_id
from ondol.contract.model_spec import ModelSpec
from ondol.sql.records import JobRecord
from ondol.sql.tables import jobs
from ondol.sql.unit_of_work import UnitOfWork
from tests.cluster import Cluster
from tests.http.api_process import MOODS, SPEC
from tests.producers.producer import LIMIT_S, MODEL, MOOD_MODEL
from tests.waiting import wait_until


class Shop:
    """A cluster of nothing but an intake, whose workers the tests play."""

    def __init__(self, folder: Path, *, database_url: str, redis_url: str) -> None:
        self.cluster = Cluster(
            folder, database_url=database_url, redis_url=redis_url, settings={"ONDOL_LOG_FORMAT": "json"}
        )
        self.database = self.cluster.database
        self.project_id = self.database.write(lambda uow: uow.keys.ensure_project())
        self.database.write(lambda uow: _publish(uow, self.project_id, MODEL, SPEC))
        self.database.write(lambda uow: _publish(uow, self.project_id, MOOD_MODEL, MOODS))

    def job_of(self, task_id: str) -> JobRecord:
        """The task's job, once it is recorded."""
        found = wait_until(lambda: self.find(task_id), within_s=LIMIT_S, what=f"the job of task {task_id}")
        assert found is not None
        return found

    def find(self, task_id: str) -> JobRecord | None:
        """The task's job, if it is recorded."""
        return self.database.read(lambda uow: uow.jobs.by_task(task_id, self.project_id))

    def count(self, task_id: str | None = None) -> int:
        """How many jobs the task has; of all tasks without one."""
        query = sa.select(sa.func.count()).select_from(jobs)
        if task_id is not None:
            query = query.where(jobs.c.task_id == task_id)
        return self.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


@contextlib.contextmanager
def opened_shop(folder: Path, *, database_url: str, redis_url: str) -> Iterator[Shop]:
    """A shop that is closed at the end of the block; nothing is started yet."""
    shop = Shop(folder, database_url=database_url, redis_url=redis_url)
    try:
        yield shop
    finally:
        shop.cluster.close()


def _publish(uow: UnitOfWork, project_id: str, name: str, spec: ModelSpec) -> None:
    uow.models.publish(
        project_id=project_id,
        name=name,
        task=spec.task,
        manifest_digest=new_id("digest"),
        size_bytes=1,
        spec=TypeAdapter(ModelSpec).dump_python(spec, mode="json"),
        job_id=None,
        attempt=None,
        lineage={},
    )
