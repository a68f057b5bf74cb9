"""Each invariant of the checker sees a history that breaks it, and nothing in one that does not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.chaos.breakages import BREAKAGES
from tests.chaos.checker import INVARIANTS, Evidence, check_all
from tests.chaos.history import History, Kind
from tests.chaos.plan import KINDS, make_plan
from tests.chaos.snapshot import Attempt, Event, Job, Result, Session, Snapshot, Version
from tests.chaos.world import Size

pytestmark = pytest.mark.unit

JOB, SHARDED, SHARD, TRAINED, FAILED = "job_1", "job_2", "job_2.000000", "job_3", "job_4"
ONES = np.ones((2, 32), dtype=np.float32)


@dataclass
class AllOnes:
    """Texts of two tokens each, whose vectors are ones."""

    def num_tokens(self, texts: Sequence[str]) -> int:
        return 2 * len(texts)

    def is_right(self, texts: Sequence[str], vectors: Any) -> bool:
        return bool(len(vectors) == len(texts) and np.all(vectors == 1))


def test_a_sound_run_has_no_violation() -> None:
    assert check_all(_sound()) == []


def _sound() -> Evidence:
    """A job, a job of one shard, a fine-tune, and a job that missed its deadline and was retried once."""
    history = History()
    for job_id, tag, op in ((JOB, "a", "submit"), (SHARDED, "b", "shards"), (TRAINED, "c", "fine_tune")):
        call = history.invoke(op, tags=[tag])
        history.end(Kind.OK, op, call, jobs=[(job_id, tag)])
    call = history.invoke("retry", job=FAILED)
    history.end(Kind.OK, "retry", call, job=FAILED, status="queued")
    call = history.invoke("call", tokens=4)
    history.end(Kind.OK, "call", call, tokens=4, is_right=True)
    found = Snapshot(
        jobs={
            JOB: Job(JOB, "succeeded", attempt=2, event_seq=5, tag="a", num_inputs=2),
            SHARDED: Job(SHARDED, "succeeded", event_seq=3, tag="b", num_inputs=2, is_sharded=True),
            SHARD: Job(SHARD, "succeeded", attempt=1, event_seq=3, parent_id=SHARDED, first_input=0, num_inputs=2),
            TRAINED: Job(TRAINED, "succeeded", kind="fine-tune", attempt=1, event_seq=3, tag="c"),
            FAILED: Job(FAILED, "failed", event_seq=4, error_code="deadline_exceeded", deadline_at=5.0),
        },
        attempts={
            JOB: [
                Attempt(JOB, 1, "ses_1", "cpu0@h", 1.0, 2.0, "lost"),
                Attempt(JOB, 2, "ses_2", "cpu0@h", 3.0, 4.0, "succeeded", tokens=4),
            ],
            SHARD: [Attempt(SHARD, 1, "ses_2", "cpu0@h", 3.0, 4.0, "succeeded", tokens=4)],
            TRAINED: [Attempt(TRAINED, 1, "ses_2", "cpu0@h", 3.0, 4.0, "succeeded", tokens=0)],
        },
        results={
            JOB: Result(JOB, 2, 4, ONES),
            SHARDED: Result(SHARDED, 0, 4),
            SHARD: Result(SHARD, 1, 4, ONES),
            TRAINED: Result(TRAINED, 1),
        },
        sessions=[Session("ses_1", "cpu0@h", 0.5, 2.0), Session("ses_2", "cpu0@h", 2.5, None)],
        versions=[Version("ver_1", TRAINED, 1), Version("ver_0", None, None)],
        num_call_tokens=4,
    )
    for job_id in (JOB, SHARDED, SHARD, TRAINED, FAILED):
        found.events[job_id] = _events(job_id)
    return Evidence(history, found, {"a": ("x", "y"), "b": ("x", "y")}, AllOnes())


def _events(job_id: str) -> list[Event]:
    run = [(None, "queued", "accepted", None), ("queued", "running", "claimed", 1)]
    end = [("running", "succeeded", "completed", 1)]
    moves = {
        JOB: [*run, ("running", "queued", "session_lapsed", 1), ("queued", "running", "claimed", 2), *end],
        FAILED: [
            run[0],
            ("queued", "failed", "deadline_exceeded", 0),
            ("failed", "queued", "retry_requested", 0),
            ("queued", "failed", "deadline_exceeded", 0),
        ],
    }.get(job_id, [*run, *end])
    return [
        Event(seq, "state", 6.0, {"from": before, "to": after, "reason": reason, "attempt": attempt})
        for seq, (before, after, reason, attempt) in enumerate(moves, start=1)
    ]


def _note(op: str, **data: Any) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        evidence.history.note(op, **data)
        return evidence

    return change


def _told(op: str, kind: Kind = Kind.OK, **data: Any) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        evidence.history.end(kind, op, evidence.history.invoke(op, **data), **data)
        return evidence

    return change


def _submitted(kind: Kind, tag: str, **data: Any) -> Callable[[Evidence], Evidence]:
    """A submission that was answered so, and whose job is there."""

    def change(evidence: Evidence) -> Evidence:
        call = evidence.history.invoke("submit", tags=[tag])
        evidence.history.end(kind, "submit", call, tags=[tag], **data)
        return _job(FAILED, tag=tag)(evidence)

    return change


def _job(job_id: str, **changes: Any) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        evidence.snapshot.jobs[job_id] = replace(evidence.snapshot.jobs[job_id], **changes)
        return evidence

    return change


def _moved(job_id: str, *moves: tuple[str, str, str]) -> Callable[[Evidence], Evidence]:
    """More state events, and the row that goes with them."""

    def change(evidence: Evidence) -> Evidence:
        events = evidence.snapshot.events[job_id]
        for before, after, reason in moves:
            data = {"from": before, "to": after, "reason": reason, "attempt": 1}
            events.append(Event(len(events) + 1, "state", 7.0, data))
        return _job(job_id, state=moves[-1][1], event_seq=len(events))(evidence)

    return change


def _in(change: Callable[[Snapshot], object]) -> Callable[[Evidence], Evidence]:
    def changed(evidence: Evidence) -> Evidence:
        change(evidence.snapshot)
        return evidence

    return changed


def _calm(repairs: dict[str, int]) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        evidence.snapshot.repairs.update(repairs)
        return replace(evidence, is_calm=True)

    return change


LATE = Attempt(JOB, 2, "ses_1", "cpu0@h", 3.0, 4.0, "succeeded", tokens=4)
AT_ONCE = Attempt(JOB, 2, "ses_2", "cpu0@h", 1.5, 4.0, "succeeded", tokens=4)
BROKEN: list[tuple[str, Callable[[Evidence], Evidence]]] = [
    ("accepted jobs are known", _in(lambda s: s.jobs.pop(JOB))),
    ("every job ends", _job(JOB, state="running")),
    ("one submission is one job", _job(SHARDED, tag="a")),
    ("one submission is one job", _told("submit", tags=["a"], jobs=[("job_9", "a")])),
    ("refused submissions leave nothing", _submitted(Kind.FAIL, "z", status=422, code="idempotency_mismatch")),
    ("refused submissions leave nothing", _submitted(Kind.OK, "z", jobs=[], refused=["z"])),
    ("success is committed once", _in(lambda s: s.results.pop(JOB))),
    ("success is committed once", _moved(JOB, ("succeeded", "succeeded", "completed"))),
    ("success is committed once", _in(lambda s: s.results.update({JOB: Result(JOB, 1, 4, ONES)}))),
    ("success is committed once", _in(lambda s: s.results.update({FAILED: Result(FAILED, 1)}))),
    ("events are dense", _in(lambda s: s.events[JOB].pop(2))),
    ("moves are legal", _moved(JOB, ("succeeded", "queued", "retry_requested"))),
    ("moves are legal", _moved(JOB, ("running", "cancelled", "cancel_requested"))),
    ("moves are legal", _moved(FAILED, ("failed", "queued", "session_lapsed"))),
    ("retries are recorded", _moved(FAILED, ("failed", "queued", "retry_requested"))),
    ("retries are recorded", _told("retry", job=JOB, status="queued")),
    ("attempts increase", _in(lambda s: s.attempts[JOB].pop(0))),
    ("attempts increase", _job(JOB, attempt=3)),
    ("one attempt runs at a time", _in(lambda s: s.attempts[JOB].__setitem__(1, AT_ONCE))),
    ("one holder a device", _in(lambda s: s.sessions.append(Session("ses_3", "cpu0@h", 1.0, 1.5)))),
    ("one holder a device", _in(lambda s: s.attempts[JOB].__setitem__(1, LATE))),
    ("one holder a device", _note("second_holder", worker="worker0", refused=False)),
    ("cancelled stays cancelled", _told("cancel", job=JOB, status="cancelled")),
    ("what was seen stays", _told("get", job=JOB, status="cancelled")),
    ("what was seen stays", _told("get", Kind.FAIL, job=JOB, status=404, code="job_not_found")),
    ("what was seen stays", _told("result", Kind.FAIL, job=JOB, status=409, was_succeeded=True, code="conflict")),
    ("results are right", _in(lambda s: s.results.update({JOB: Result(JOB, 2, 4, 0 * ONES)}))),
    ("results are right", _told("call", tokens=0, is_right=False)),
    ("usage is counted once", _in(lambda s: setattr(s, "num_call_tokens", 5))),
    ("usage is counted once", _in(lambda s: s.results.update({SHARDED: Result(SHARDED, 0, 8)}))),
    ("usage is counted once", _in(lambda s: s.attempts[JOB].__setitem__(0, replace(s.attempts[JOB][0], tokens=4)))),
    ("shards cover their job", _job(SHARDED, num_inputs=3)),
    ("versions have one origin", _in(lambda s: s.versions.append(Version("ver_2", TRAINED, 1)))),
    ("versions have one origin", _in(lambda s: s.versions.__setitem__(1, Version("ver_0", None, None, False)))),
    ("versions have one origin", _in(lambda s: s.versions.pop(0))),
    ("manifests come last", _note("torn_manifest", digest="d", missing=["model.safetensors"])),
    ("stale writes are refused", _note("zombie", worker="z", held=[], refused=3, accepted=["complete job_1"])),
    ("failures have a reason", _job(FAILED, error_code="internal_error")),
    ("deadlines are not early", _job(FAILED, deadline_at=9.0)),
    ("nothing is left over", _in(lambda s: setattr(s, "num_messages", 1))),
    ("nothing is left over", _in(lambda s: setattr(s, "has_canary", False))),
    ("calm needs no repair", _calm({"message_lost": 1})),
    ("no internal errors", _told("get", Kind.UNKNOWN, job=JOB, status=500, code="internal_error")),
]


@pytest.mark.parametrize(("invariant", "change"), BROKEN, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BROKEN)])
def test_a_broken_promise_is_seen(invariant: str, change: Callable[[Evidence], Evidence]) -> None:
    assert invariant in {violation.invariant for violation in check_all(change(_sound()))}


def test_every_invariant_has_a_history_that_breaks_it() -> None:
    assert {name for name, _ in BROKEN} == set(INVARIANTS)


def test_an_unknown_call_may_count_or_not() -> None:
    evidence = _told("call", Kind.UNKNOWN, tokens=6)(_sound())
    for counted in (4, 10):
        evidence.snapshot.num_call_tokens = counted
        assert check_all(evidence) == []
    evidence.snapshot.num_call_tokens = 11
    assert check_all(evidence)


@pytest.mark.parametrize("other", [Kind.OK, Kind.UNKNOWN])
def test_what_was_refused_may_be_there_by_another_call(other: Kind) -> None:
    evidence = _submitted(Kind.FAIL, "z", status=409, code="idempotency_in_flight")(_sound())
    assert len(check_all(evidence)) == 1
    jobs = [(FAILED, "z")] if other is Kind.OK else []
    assert check_all(_submitted(other, "z", jobs=jobs)(evidence)) == []


@pytest.mark.parametrize("is_postgresql", [False, True])
def test_one_seed_gives_one_plan_of_what_can_be_done(is_postgresql: bool) -> None:
    size = Size(is_postgresql=is_postgresql)
    plans = [make_plan(random.Random(7), seconds=2000, size=size) for _ in range(2)]
    assert plans[0] == plans[1] != make_plan(random.Random(8), seconds=2000, size=size)
    database = "postgresql" if is_postgresql else "sqlite"
    assert {fault.kind for fault in plans[0]} == {n for n, k in KINDS.items() if k.only_on in (None, database)}
    with pytest.raises(ValueError, match="no fault"):
        make_plan(random.Random(7), seconds=9, size=size, kinds=["lock_database" if is_postgresql else "lose_commit"])


def test_every_breakage_fits_the_source_that_it_breaks() -> None:
    assert len(BREAKAGES) >= 10
    for breakage in BREAKAGES:
        breakage.check_fits()
