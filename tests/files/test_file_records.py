"""What SQL knows of files: whose they are, until when they live, and that jobs keep them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from ondol.contract.errors import FileInUse, FileNotFound
from ondol.contract.ids import new_id
from ondol.sql.database import Database
from ondol.sql.files import FileRecord, NewFile
from ondol.sql.tables import files
from ondol.sql.unit_of_work import UnitOfWork
from tests.files.store_folder import fine_tune_on
from tests.job_fixtures import project_of

pytestmark = pytest.mark.integration


def add(database: Database, project_id: str, *, purpose: str = "fine-tune", lives_s: float | None = None) -> FileRecord:
    new = NewFile(new_id("file"), project_id, "여름.csv", purpose, 3, "0" * 64, lives_s)
    return database.write(lambda uow: uow.files.add(new))


def expire(database: Database, file_id: str) -> None:
    statement = sa.update(files).where(files.c.id == file_id).values(expires_at=1.0)
    database.write(lambda uow: uow.conn.execute(statement))


def test_a_file_is_read_as_it_was_added_and_by_its_project_alone(database: Database) -> None:
    project_id = project_of(database)
    record = add(database, project_id, lives_s=3600)
    assert record.expires_at == record.created_at + 3600
    assert database.read(lambda uow: uow.files.get(record.id, project_id)) == record
    assert database.write(lambda uow: uow.files.hold(record.id, project_id)) == record
    other = database.write(lambda uow: uow.keys.ensure_project("other"))
    with pytest.raises(FileNotFound):
        database.read(lambda uow: uow.files.get(record.id, other))
    with pytest.raises(FileNotFound):
        database.write(lambda uow: uow.files.delete(record.id, other))
    assert database.read(lambda uow: uow.files.page(other)) == ([], False)


def test_a_repeated_unit_of_work_adds_a_file_once(database: Database) -> None:
    new = NewFile(new_id("file"), project_of(database), "a.csv", "batch", 3, "0" * 64)
    first = database.write(lambda uow: uow.files.add(new))

    def again(uow: UnitOfWork) -> FileRecord:
        uow.is_retry = True  # as the writer sets it after a commit that nobody confirmed
        return uow.files.add(new)

    assert database.write(again) == first


def test_pages_follow_one_another_in_both_orders(database: Database) -> None:
    project_id = project_of(database)
    ids = [add(database, project_id).id for _ in range(3)]
    other = add(database, project_id, purpose="evals").id

    def page(**given: Any) -> tuple[list[str], bool]:
        found, more = database.read(lambda uow: uow.files.page(project_id, **given))
        return [record.id for record in found], more

    assert page() == ([other, *reversed(ids)], False)
    assert page(purpose="fine-tune", limit=2) == ([ids[2], ids[1]], True)
    assert page(purpose="fine-tune", limit=2, after=ids[1]) == ([ids[0]], False)
    assert page(is_ascending=True, limit=1, after=ids[0]) == ([ids[1]], True)


def test_an_expired_file_is_gone_for_callers_and_waits_for_the_purge(database: Database) -> None:
    project_id = project_of(database)
    record, kept = add(database, project_id, lives_s=3600), add(database, project_id, lives_s=3600)
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 0
    expire(database, record.id)
    with pytest.raises(FileNotFound):
        database.read(lambda uow: uow.files.get(record.id, project_id))
    with pytest.raises(FileNotFound):
        database.write(lambda uow: uow.files.delete(record.id, project_id))
    assert [file.id for file in database.read(lambda uow: uow.files.page(project_id)[0])] == [kept.id]
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 1
    assert database.read(lambda uow: uow.files.existing([record.id, kept.id])) == {kept.id}


@pytest.mark.parametrize("field", ["train_file", "validation_file"])
def test_a_file_that_an_unfinished_fine_tune_names_is_kept(database: Database, field: str) -> None:
    project_id = project_of(database)
    record, free = add(database, project_id), add(database, project_id)
    [job] = database.write(lambda uow: uow.jobs.add_all([fine_tune_on(project_id, **{field: record.id})]))
    with pytest.raises(FileInUse, match=job.id):
        database.write(lambda uow: uow.files.delete(record.id, project_id))
    assert database.write(lambda uow: uow.files.delete(free.id, project_id)) == free
    expire(database, record.id)
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 0
    assert database.read(lambda uow: uow.files.get(record.id, project_id, may_be_expired=True)).id == record.id
    database.write(lambda uow: uow.jobs.cancel(job.id, project_id))
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 1
    assert database.read(lambda uow: uow.files.existing([record.id])) == set()
