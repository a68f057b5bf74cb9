"""What delivering keeps in SQL: a secret a project, and claims that are handed back untried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ondol.sql.database import Database
from ondol.sql.notices import Channel
from tests.job_fixtures import new_job, project_of

pytestmark = pytest.mark.integration


def test_a_secret_is_made_once_and_rotated_on_request(database: Database) -> None:
    project_id = project_of(database)
    assert database.read(lambda uow: uow.keys.find_webhook_secret(project_id)) is None
    made = database.write(lambda uow: uow.keys.ensure_webhook_secret(project_id))
    assert made.startswith("whsec_")
    assert database.write(lambda uow: uow.keys.ensure_webhook_secret(project_id)) == made
    rotated = database.write(lambda uow: uow.keys.rotate_webhook_secret(project_id))
    assert rotated != made and database.read(lambda uow: uow.keys.find_webhook_secret(project_id)) == rotated


def test_a_claim_that_is_handed_back_counts_as_no_try(database: Database) -> None:
    project_id = project_of(database)
    job = replace(new_job(project_id), webhook="https://example.org/")
    database.write(lambda uow: uow.jobs.add_all([job]))
    database.write(lambda uow: uow.jobs.cancel(job.id, project_id))
    [claimed] = database.write(lambda uow: uow.notices.claim(Channel.WEBHOOK, for_s=60))
    database.write(lambda uow: uow.notices.hand_back_all([(claimed, 30)]))
    database.write(lambda uow: uow.notices.hand_back_all([(claimed, 3_000)]))
    assert not database.write(lambda uow: uow.notices.hand_back(claimed, for_s=30))
    [kept] = database.read(lambda uow: uow.notices.of(job.id))
    due_in_s = database.read(lambda uow: uow.notices.next_due_in(Channel.WEBHOOK))
    assert (kept.num_tries, kept.last_answer) == (0, None) and due_in_s is not None and 20 < due_in_s <= 30
