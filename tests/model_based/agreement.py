"""The tables and the reference side by side, and what must hold of the tables by themselves."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from ondol.contract.states import TRANSITIONS, JobState
from tests.model_based.reference import TERMINAL, Job, Reference

Rows = dict[str, list[Any]]


def check_agreement(rows: Rows, ref: Reference) -> None:
    """AssertionError naming the first job, session or message that the two do not agree on."""
    assert {row.id for row in rows["jobs"]} == set(ref.jobs)
    found = {name: _by_job(rows[name]) for name in ("attempts", "events", "notices", "results")}
    for row in rows["jobs"]:
        job = ref.jobs[row.id]
        _check_job(row, job)
        _check_attempts(row, found["attempts"][row.id], job)
        _check_events(row, found["events"][row.id], job)
        _check_result(row, found["results"][row.id], job)
        assert len(found["notices"][row.id]) == job.num_ends, "an end is told once"
    _check_sessions(rows, ref)
    _check_messages(rows, ref)


def _check_job(row: Any, job: Job) -> None:
    shown = {
        "state": (row.state, job.state.value),
        "attempt": (row.attempt, job.attempt),
        "session": (row.session_id, job.session),
        "message": (row.message_id, job.message),
        "counters": (
            (row.num_losses, row.num_lapses, row.num_retries, row.is_alone),
            (job.num_losses, job.num_lapses, job.num_retries, job.is_alone),
        ),
        "run_after": (row.run_after, job.run_after),
        "deadline_at": (row.deadline_at, job.deadline_at),
        "error": ((row.error or {}).get("code"), job.error),
        "pause asked": (row.pause_requested_at is not None, job.is_pause_asked),
        "holds device": (
            row.kind == "fine-tune" and row.state == "cancelled" and row.device_released_at is None,
            job.holds_device,
        ),
        "ended": (row.finished_at is not None, job.state in TERMINAL),
    }
    wrong = {what: pair for what, pair in shown.items() if pair[0] != pair[1]}
    assert not wrong, f"{row.id}: (tables, reference) differ in {wrong}"


def _check_attempts(row: Any, attempts: list[Any], job: Job) -> None:
    assert [a.attempt for a in attempts] == list(range(1, row.attempt + 1)), "attempts are numbered without a gap"
    assert {a.attempt: a.outcome for a in attempts} == job.outcomes, row.id
    open_ones = [a.attempt for a in attempts if a.finished_at is None]
    assert open_ones == ([row.attempt] if job.session is not None else []), "one open attempt, of who holds the job"
    assert all(a.session_id == job.sessions[a.attempt] for a in attempts)


def _check_events(row: Any, events: list[Any], job: Job) -> None:
    assert [e.seq for e in events] == list(range(1, row.event_seq + 1)), "events are numbered without a gap"
    told = [_move(e) if e.type == "state" else e.type for e in events]
    assert told == job.events, row.id
    assert all(a.created_at <= b.created_at for a, b in pairwise(events))
    for before, after, _, _ in (move for move in told if not isinstance(move, str)):
        is_begin, is_claimed_check = before is None, before == after == JobState.VALIDATING_FILES
        assert is_begin or is_claimed_check or JobState(after) in TRANSITIONS[JobState(before)], (before, after)


def _check_result(row: Any, results: list[Any], job: Job) -> None:
    assert [r.attempt for r in results] == ([] if job.result_of is None else [job.result_of]), (
        "one result, of the winner"
    )
    assert bool(results) == (row.state == JobState.SUCCEEDED)
    assert all(r.data == r.attempt.to_bytes(4, "little") for r in results)


def _check_sessions(rows: Rows, ref: Reference) -> None:
    real = {row.id: (row.worker, row.expires_at, row.ended_at is not None, row.is_ready) for row in rows["sessions"]}
    assert real == {s.id: (s.worker, s.expires_at, s.has_ended, s.is_ready) for s in ref.sessions.values()}
    open_names = [row.worker for row in rows["sessions"] if row.ended_at is None]
    assert len(open_names) == len(set(open_names)), "one open session a worker"
    ended = {row.id for row in rows["sessions"] if row.ended_at is not None}
    assert not ended & {row.session_id for row in rows["jobs"]}, "nothing runs under a session that has ended"


def _check_messages(rows: Rows, ref: Reference) -> None:
    real = {row.id: (row.worker, row.priority, row.rung_at, row.session_id) for row in rows["messages"]}
    expected = {m.id: (m.worker, m.lane.value, m.rung_at, m.claimed_by) for m in ref.messages.values()}
    assert real == expected
    for job in rows["jobs"]:
        if job.message_id is None:
            continue
        if job.session_id is None:
            assert job.message_id in real, f"{job.id} waits under a message that is gone"
            assert real[job.message_id][3] is None, f"{job.id} waits under a message that was claimed"


def _move(event: Any) -> tuple[str | None, str, str, int | None]:
    data = event.data
    return data["from"], data["to"], data["reason"], data["attempt"]


def _by_job(rows: list[Any]) -> defaultdict[str, list[Any]]:
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.job_id].append(row)
    return found
