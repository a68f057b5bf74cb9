"""Who wants to be told of a job's end gets one notice an end, written with the end, whatever dies between the tries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from ondol.contract.errors import Conflict, NotFound
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.notices import Channel, NoticeStatus
from ondol.sql.records import Failure
from ondol.sql.tables import attempts, notices
from tests.job_fixtures import completions, new_job, open_session, project_of, ring_and_claim, submit

pytestmark = pytest.mark.integration

WEBHOOK = "https://example.org/hook"


def submit_told(database: Database, *, task_id: str | None = None, webhook: str | None = WEBHOOK) -> str:
    job = replace(new_job(project_of(database)), task_id=task_id, webhook=webhook)
    database.write(lambda uow: uow.jobs.add_all([job]))
    return job.id


def test_each_channel_gets_a_notice_with_the_end_and_none_before(database: Database) -> None:
    told, untold = submit_told(database, task_id="task-1"), submit(database, 1)[0].id
    claimed = ring_and_claim(database, open_session(database))
    assert database.read(lambda uow: uow.notices.of(told)) == []
    database.write(lambda uow: uow.attempts.complete(completions(claimed)))
    assert {notice.channel for notice in database.read(lambda uow: uow.notices.of(told))} == set(Channel)
    assert database.read(lambda uow: uow.notices.of(untold)) == []
    project_id = project_of(database)
    job = database.read(lambda uow: uow.jobs.by_task("task-1", project_id))
    assert job is not None and (job.id, job.message_id) == (told, _message_of(database, told))


def test_a_claimed_notice_is_nobody_elses_until_its_time_is_over(database: Database) -> None:
    job_id = submit_told(database)
    project_id = project_of(database)
    database.write(lambda uow: uow.jobs.cancel(job_id, project_id))
    first = database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60))[0]
    assert (first.state, first.webhook, first.num_tries) == (JobState.CANCELLED, WEBHOOK, 1)
    assert database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60)) == []
    database.write(lambda uow: uow.conn.execute(sa.update(notices).values(next_try_at=uow.now - 1)))  # its holder died

    second = database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60))[0]
    assert (second.id, second.num_tries) == (first.id, 2)
    assert not database.write(lambda uow: uow.notices.put_off(first, "500", for_s=1))
    assert database.write(lambda uow: uow.notices.accept(second, "200"))
    assert not database.write(lambda uow: uow.notices.give_up(first, "500"))
    assert database.read(lambda uow: uow.notices.next_due_in(Channel.WEBHOOK)) is None
    kept = database.read(lambda uow: uow.notices.of(job_id))[0]
    assert (kept.status, kept.last_answer, kept.accepted_at is not None) == (NoticeStatus.ACCEPTED, "200", True)


def test_a_retried_job_is_told_of_again_with_the_end_that_was(database: Database) -> None:
    job_id, project_id = submit_told(database), project_of(database)
    session = open_session(database)
    claimed = ring_and_claim(database, session)[0]
    failure = Failure(job_id, claimed.attempt, {"code": "x", "message": "y", "param": None})
    database.write(lambda uow: uow.attempts.fail([failure], max_retries=0))
    database.write(lambda uow: uow.jobs.retry(job_id, project_id))
    failed = database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60))[0]
    assert failed.state is JobState.FAILED
    claimed_again = ring_and_claim(database, session)
    database.write(lambda uow: uow.attempts.complete(completions(claimed_again)))
    told = database.read(lambda uow: uow.notices.of(job_id))
    assert [notice.seq for notice in told] == sorted({notice.seq for notice in told})
    assert len(told) == 2


def test_a_notice_can_be_sent_again_and_goes_with_its_job(database: Database) -> None:
    job_id, project_id = submit_told(database), project_of(database)
    database.write(lambda uow: uow.jobs.cancel(job_id, project_id))
    notice = database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60))[0]
    database.write(lambda uow: uow.notices.give_up(notice, "410"))
    with pytest.raises(NotFound):
        database.write(lambda uow: uow.notices.send_again("ntc_none", job_id))
    again = database.write(lambda uow: uow.notices.send_again(notice.id, job_id))
    assert again.status is NoticeStatus.WAITING
    assert database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60))[0].id == notice.id
    database.write(lambda uow: uow.jobs.delete(job_id, project_id))
    assert database.read(lambda uow: uow.notices.of(job_id)) == []


def test_one_task_is_one_job(database: Database) -> None:
    submit_told(database, task_id="task-1")
    with pytest.raises(Conflict):
        submit_told(database, task_id="task-1")


def _message_of(database: Database, job_id: str) -> str:
    query = sa.select(attempts.c.message_id).where(attempts.c.job_id == job_id)
    return str(database.read(lambda uow: uow.conn.execute(query).scalar_one()))
