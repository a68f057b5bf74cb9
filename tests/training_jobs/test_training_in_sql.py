"""Fine-tunes in SQL: checked, queued, trained, paused, lost; every write fenced, on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ondol.contract.errors import IllegalTransition
from ondol.contract.states import JobState, Priority, Reason
from ondol.sql.database import Database
from ondol.sql.records import ClaimedTraining, NewJob
from tests.job_fixtures import (
    LIMITS,
    RESOLVED,
    TRAINER,
    completions,
    finish_messages,
    new_fine_tune,
    new_job,
    open_session,
    open_trainer,
    project_of,
    ring_and_claim,
    ring_and_claim_training,
    validate,
)

pytestmark = pytest.mark.integration


def submit(database: Database, *jobs: NewJob) -> None:
    database.write(lambda uow: uow.jobs.add_all(jobs))


def state_of(database: Database, job_id: str) -> JobState:
    return database.read(lambda uow: uow.jobs.states_of([job_id]))[job_id][0]


def training(database: Database, session_id: str) -> ClaimedTraining:
    """A fine-tune that was checked and is running."""
    job = new_fine_tune(project_of(database))
    submit(database, job)
    [checked] = ring_and_claim_training(database, session_id)
    assert checked.is_check
    validate(database, checked)
    [running] = ring_and_claim_training(database, session_id)
    assert running.id == job.id
    assert not running.is_check
    return running


def test_files_are_checked_before_the_job_is_queued(database: Database) -> None:
    session_id = open_trainer(database)
    job = training(database, session_id)
    events = database.read(lambda uow: uow.events.after(job.id, 0))
    moves = [(e.data["from"], e.data["to"], e.data["reason"]) for e in events if e.type == "state"]
    assert moves == [
        (None, "validating_files", "accepted"),
        ("validating_files", "validating_files", "claimed"),
        ("validating_files", "queued", "validated"),
        ("queued", "running", "claimed"),
    ]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert job.resolved == RESOLVED


def test_workers_get_no_fine_tunes_and_trainers_no_rows(database: Database) -> None:
    project_id = project_of(database)
    fine_tune, plain = new_fine_tune(project_id), new_job(project_id)
    submit(database, fine_tune, plain)
    worker, trainer = open_session(database), open_trainer(database)
    rung = database.write(lambda uow: uow.ringing.choose(LIMITS))
    assert {(m.worker, m.jobs[0][0]) for m in rung} == {("cpu0@test", plain.id), (TRAINER, fine_tune.id)}
    assert worker != trainer


def test_a_trainer_trains_one_job_at_a_time_and_checks_others_meanwhile(database: Database) -> None:
    session_id = open_trainer(database)
    running = training(database, session_id)
    project_id = project_of(database)
    submit(database, new_fine_tune(project_id), new_fine_tune(project_id))
    [checked] = ring_and_claim_training(database, session_id)
    assert checked.is_check
    assert ring_and_claim_training(database, session_id) == []
    assert database.write(lambda uow: uow.training.validated(checked.id, checked.attempt, RESOLVED, worker=TRAINER))
    assert state_of(database, checked.id) is JobState.QUEUED
    assert state_of(database, running.id) is JobState.RUNNING
    assert ring_and_claim_training(database, session_id) == [], "both lanes still hold their message"


def test_fine_tunes_wait_by_class_then_by_age(database: Database) -> None:
    project_id = project_of(database)
    session_id = open_trainer(database)
    jobs = [
        replace(new_fine_tune(project_id, priority=priority), state=JobState.QUEUED)
        for priority in (Priority.BULK, Priority.NORMAL, Priority.INTERACTIVE, Priority.NORMAL)
    ]
    submit(database, *jobs)
    positions = {
        job.id: database.read(lambda uow, j=job: uow.training.queue_position(uow.jobs.get(j.id, project_id)))  # type: ignore[misc]  # bound at definition
        for job in jobs
    }
    order = []
    for _ in jobs:
        [claimed] = ring_and_claim_training(database, session_id)
        order.append(claimed.id)
        database.write(lambda uow, c=claimed: uow.jobs.cancel(c.id, project_id))  # type: ignore[misc]  # bound at definition
        finish_messages(database)
    assert order == [jobs[2].id, jobs[1].id, jobs[3].id, jobs[0].id]
    assert [positions[job_id] for job_id in order] == [0, 1, 2, 3]


def test_a_refused_file_fails_the_job_with_its_sentence(database: Database) -> None:
    session_id = open_trainer(database)
    job = new_fine_tune(project_of(database))
    submit(database, job)
    [checked] = ring_and_claim_training(database, session_id)
    error = {"code": "invalid_payload", "message": "row 1,307: two cells", "param": "options.train_file"}
    assert database.write(lambda uow: uow.training.refuse(job.id, checked.attempt, error, worker=TRAINER))
    record = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert (record.state, record.error) == (JobState.FAILED, error)
    assert not database.write(lambda uow: uow.training.validated(job.id, checked.attempt, RESOLVED, worker=TRAINER))


def test_a_check_whose_node_died_is_done_by_another_and_the_third_loss_fails(database: Database) -> None:
    job = new_fine_tune(project_of(database))
    submit(database, job)
    for number in range(3):
        session_id = open_trainer(database, f"train-{number}@test")
        [checked] = ring_and_claim_training(database, session_id, f"train-{number}@test")
        assert checked.attempt == number + 1
        assert state_of(database, job.id) is JobState.VALIDATING_FILES
        taken = database.write(lambda uow, s=session_id: uow.attempts.take_back(s))  # type: ignore[misc]  # bound at definition
        database.write(lambda uow, s=session_id: uow.sessions.end(s, reason="lapsed"))  # type: ignore[misc]  # bound at definition
        assert taken == [job.id]
    record = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert record.state is JobState.FAILED
    assert record.error is not None
    assert record.error["code"] == "worker_lost"


def test_a_check_of_a_stopping_node_counts_nothing(database: Database) -> None:
    job = new_fine_tune(project_of(database))
    submit(database, job)
    for _ in range(4):
        session_id = open_trainer(database)
        [checked] = ring_and_claim_training(database, session_id)
        database.write(lambda uow, s=session_id: uow.sessions.stop(s, reason="stopped"))  # type: ignore[misc]  # bound at definition
        assert checked.is_check
    assert state_of(database, job.id) is JobState.VALIDATING_FILES


def test_a_check_that_may_be_tried_again_waits_and_is_not_tried_for_ever(database: Database) -> None:
    session_id = open_trainer(database)
    job = new_fine_tune(project_of(database))
    submit(database, job)
    error = {"code": "store_unavailable", "message": "no answer", "param": None}

    def put_off(checked: ClaimedTraining, after_s: float) -> bool:
        return database.write(
            lambda uow: uow.training.put_off_check(job.id, checked.attempt, error, after_s=after_s, max_retries=2)
        )

    [checked] = ring_and_claim_training(database, session_id)
    assert put_off(checked, 0.0)
    assert not put_off(checked, 0.0), "it is counted once, also when its answer was lost"
    finish_messages(database)
    [checked] = ring_and_claim_training(database, session_id)
    assert put_off(checked, 0.0)
    finish_messages(database)
    [checked] = ring_and_claim_training(database, session_id)
    assert not put_off(checked, 60.0), "no retry is left"
    assert database.write(lambda uow: uow.training.refuse(job.id, checked.attempt, error, worker=TRAINER))


def test_a_check_that_was_put_off_is_not_rung_before_its_time(database: Database) -> None:
    session_id = open_trainer(database)
    job = new_fine_tune(project_of(database))
    submit(database, job)
    [checked] = ring_and_claim_training(database, session_id)
    assert database.write(
        lambda uow: uow.training.put_off_check(job.id, checked.attempt, {}, after_s=60.0, max_retries=2)
    )
    finish_messages(database)
    assert ring_and_claim_training(database, session_id) == []


def test_a_check_that_was_taken_back_writes_nothing(database: Database) -> None:
    session_id = open_trainer(database)
    job = new_fine_tune(project_of(database))
    submit(database, job)
    [checked] = ring_and_claim_training(database, session_id)
    database.write(lambda uow: uow.attempts.take_back(session_id))
    assert not database.write(lambda uow: uow.training.validated(job.id, checked.attempt, RESOLVED, worker=TRAINER))
    assert not database.write(lambda uow: uow.training.refuse(job.id, checked.attempt, {}, worker=TRAINER))
    assert not database.write(lambda uow: uow.training.give_back_check(job.id, checked.attempt))


def test_the_device_of_a_cancelled_job_is_free_when_its_trainer_is_gone(database: Database) -> None:
    session_id = open_trainer(database)
    job = training(database, session_id)
    database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    database.write(lambda uow: uow.attempts.take_back(session_id))
    first = database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).device_released_at
    assert first is not None
    assert not database.write(lambda uow: uow.training.device_released(job.id, job.attempt)), "said once"
    assert database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).device_released_at == first


def test_losses_without_progress_fail_a_training_and_a_checkpoint_counts_anew(database: Database) -> None:
    session_id = open_trainer(database)
    job = training(database, session_id)
    error = {"code": "worker_lost", "message": "signal 9", "param": None}

    def lose(attempt: int) -> None:
        assert database.write(lambda uow: uow.attempts.lose(job.id, attempt, error, worker=TRAINER))
        finish_messages(database)

    lose(job.attempt)
    [again] = ring_and_claim_training(database, session_id)
    lose(again.attempt)
    [again] = ring_and_claim_training(database, session_id)
    assert add_checkpoint(database, again, 5)
    lose(again.attempt)
    for _ in range(2):
        [again] = ring_and_claim_training(database, session_id)
        assert state_of(database, job.id) is JobState.RUNNING
        lose(again.attempt)
    assert state_of(database, job.id) is JobState.FAILED


def add_checkpoint(database: Database, job: ClaimedTraining, step: int, *, is_best: bool = False) -> bool:
    return database.write(
        lambda uow: uow.checkpoints.add(
            job.id,
            job.attempt,
            step=step,
            manifest_digest=f"{step:064d}",
            size_bytes=10,
            metrics={"f1_macro": step / 100},
            is_best=is_best,
        )
    )


def test_a_stale_attempt_writes_nothing(database: Database) -> None:
    session_id = open_trainer(database)
    job = training(database, session_id)
    database.write(lambda uow: uow.attempts.take_back(session_id))
    assert not add_checkpoint(database, job, 3)
    assert not database.write(lambda uow: uow.training.set_progress(job.id, job.attempt, num_steps=3, max_steps=12))
    assert not database.write(lambda uow: uow.training.pause(job.id, job.attempt, worker=TRAINER))
    assert database.write(lambda uow: uow.attempts.complete(completions([job]))) == []  # type: ignore[list-item]  # has what is read
    assert database.write(lambda uow: uow.events.append(job.id, attempt=job.attempt, type="log", data={})) is None
    assert database.read(lambda uow: uow.training.status(job.id, job.attempt)) == (False, False)


def test_the_best_checkpoint_is_one(database: Database) -> None:
    job = training(database, open_trainer(database))
    for step, is_best in ((4, True), (8, True), (12, False)):
        assert add_checkpoint(database, job, step, is_best=is_best)
    found = database.read(lambda uow: uow.checkpoints.of(job.id))
    assert [(c.step, c.is_best) for c in found] == [(12, False), (8, True), (4, False)]
    database.write(lambda uow: uow.checkpoints.forget(replace(found[0], attempt=found[0].attempt - 1)))
    assert len(database.read(lambda uow: uow.checkpoints.of(job.id))) == 3, "another attempt's of that step stays"
    database.write(lambda uow: uow.checkpoints.forget(found[0]))
    assert [c.step for c in database.read(lambda uow: uow.checkpoints.of(job.id))] == [8, 4]


def test_pause_frees_the_trainer_and_resume_queues_again(database: Database) -> None:
    session_id = open_trainer(database)
    job = training(database, session_id)
    project_id = job.project_id
    asked = database.write(lambda uow: uow.training.request_pause(job.id, project_id))
    assert asked.pause_requested_at is not None
    assert asked.state is JobState.RUNNING
    assert database.read(lambda uow: uow.training.status(job.id, job.attempt)) == (True, True)
    assert database.write(lambda uow: uow.training.pause(job.id, job.attempt, worker=TRAINER))
    finish_messages(database)
    assert state_of(database, job.id) is JobState.PAUSED
    assert ring_and_claim_training(database, session_id) == []
    assert database.write(lambda uow: uow.training.resume(job.id, project_id)).state is JobState.QUEUED
    [again] = ring_and_claim_training(database, session_id)
    assert database.read(lambda uow: uow.training.status(job.id, again.attempt)) == (True, False)
    with pytest.raises(IllegalTransition, match="only a paused job"):
        database.write(lambda uow: uow.training.resume(job.id, project_id))


def test_only_a_training_can_be_paused(database: Database) -> None:
    job = new_fine_tune(project_of(database))
    submit(database, job)
    with pytest.raises(IllegalTransition, match="validating_files"):
        database.write(lambda uow: uow.training.request_pause(job.id, job.project_id))


def test_cancelled_is_a_state_at_once_and_the_device_is_free_later(database: Database) -> None:
    job = training(database, open_trainer(database))
    cancelled = database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.device_released_at is None
    assert database.write(lambda uow: uow.training.device_released(job.id, job.attempt))
    shown = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert shown.device_released_at is not None
    waiting = new_fine_tune(job.project_id)
    submit(database, waiting)
    at_once = database.write(lambda uow: uow.jobs.cancel(waiting.id, job.project_id))
    assert at_once.device_released_at is not None, "it never held a device"


def test_a_late_renewal_keeps_a_session_that_nobody_has_ended(database: Database) -> None:
    session_id = open_trainer(database)
    assert database.write(lambda uow: uow.sessions.renew(session_id, lease_s=-1, is_ready=True, warm=[]))
    assert not database.write(lambda uow: uow.sessions.renew(session_id, lease_s=6, is_ready=True, warm=[]))
    kept = database.write(
        lambda uow: uow.sessions.renew(session_id, lease_s=6, is_ready=True, warm=[], may_be_late=True)
    )
    assert kept, "nobody has ended the session"
    database.write(lambda uow: uow.sessions.end(session_id, reason="lapsed"))
    assert not database.write(
        lambda uow: uow.sessions.renew(session_id, lease_s=6, is_ready=True, warm=[], may_be_late=True)
    )


def test_a_message_that_was_lost_is_rung_again(database: Database) -> None:
    session_id = open_trainer(database)
    job = new_fine_tune(project_of(database))
    submit(database, job)
    assert len(database.write(lambda uow: uow.ringing.choose(LIMITS))) == 1
    assert database.write(lambda uow: uow.ringing.choose(LIMITS)) == []
    assert database.write(lambda uow: uow.ringing.recall_unclaimed()) == 1
    [checked] = ring_and_claim_training(database, session_id)
    assert checked.id == job.id


def test_reasons_of_fine_tunes_are_told(database: Database) -> None:
    job = training(database, open_trainer(database))
    error = {"code": "worker_lost", "message": "signal 9", "param": None}
    database.write(lambda uow: uow.attempts.lose(job.id, job.attempt, error, worker=TRAINER))
    last = database.read(lambda uow: uow.events.after(job.id, 0))[-1]
    assert last.data["reason"] == Reason.PROCESS_DIED


def test_rows_of_a_deleted_fine_tune_are_gone(database: Database) -> None:
    job = training(database, open_trainer(database))
    add_checkpoint(database, job, 4)
    database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
    assert database.read(lambda uow: uow.checkpoints.of(job.id, with_deleted=True)) == []


def test_plain_claims_do_not_take_fine_tunes(database: Database) -> None:
    submit(database, replace(new_fine_tune(project_of(database)), state=JobState.QUEUED))
    assert ring_and_claim(database, open_session(database)) == []
