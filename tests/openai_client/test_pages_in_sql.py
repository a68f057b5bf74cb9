"""What OpenAI's pages are read by, on both databases: metadata, the newest events, the loss of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.job_pages import JobFilter
from tests.job_fixtures import (
    new_fine_tune,
    open_trainer,
    project_of,
    ring_and_claim_training,
)

pytestmark = pytest.mark.integration


def test_jobs_are_found_by_all_of_their_metadata(database: Database) -> None:
    project_id = project_of(database)
    bearing: list[dict[str, Any]] = [
        {},
        {"team": "a"},
        {"team": "a", "it's": "ü.$%"},
        {"team": ""},
        {"n": 3, "team": "\0"},
    ]
    made = [replace(new_fine_tune(project_id), metadata=metadata) for metadata in bearing]
    database.write(lambda uow: uow.jobs.add_all(made))

    def found(**metadata: str) -> list[dict[str, Any]]:
        jobs, _ = database.read(lambda uow: uow.jobs.page(project_id, JobFilter(metadata=metadata)))
        return [job.metadata for job in jobs[::-1]]

    assert found(team="a") == bearing[1:3]
    assert found(team="a", **{"it's": "ü.$%"}) == bearing[2:3]
    assert found(team="") == bearing[3:4]
    assert found() == bearing[:1]
    assert found(team="b") == []


def test_events_are_read_backwards_and_a_step_has_the_loss_before_it(database: Database) -> None:
    session_id = open_trainer(database)
    job = new_fine_tune(project_of(database))
    database.write(lambda uow: uow.jobs.add_all([job]))
    [claimed] = ring_and_claim_training(database, session_id)
    for step, loss in ((10, 0.9), (20, 0.7), (30, None)):
        data = {"phase": "train", "step": step, "loss": loss}
        evaluation = {"phase": "evaluation", "step": step, "loss": 5.0, "metrics": {"loss": 0.8}}
        for kind, content in (("metrics", data), ("log", {"lines": ["step"]}), ("metrics", evaluation)):
            database.write(
                lambda uow, k=kind, c=content: uow.events.append(job.id, attempt=claimed.attempt, type=k, data=c)  # type: ignore[misc]  # bound at definition
            )

    def numbers(before: int | None, limit: int) -> list[int]:
        found = database.read(
            lambda uow: uow.events.newest(job.id, types=("state", "metrics"), before=before, limit=limit)
        )
        return [event.seq for event in found]

    assert numbers(None, 20) == [11, 9, 8, 6, 5, 3, 2, 1]
    assert numbers(8, 3) == [6, 5, 3]
    assert numbers(1, 3) == []
    losses = [database.read(lambda uow, s=step: uow.events.training_loss_at(job.id, s)) for step in (9, 10, 25, 30)]  # type: ignore[misc]  # bound at definition
    assert losses == [None, 0.9, 0.7, None]
    [record] = database.read(lambda uow: uow.jobs.get_many([job.id], job.project_id))
    assert record.state is JobState.VALIDATING_FILES and record.options == job.options
