"""Random moves on the tables and on the reference at once; after each the two must say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ondol.contract.errors import IllegalTransition
from ondol.contract.states import JobState, Priority
from ondol.sql.database import Database
from ondol.sql.records import Failure, RungMessage
from ondol.sql.ringing import WindowLimits
from ondol.sql.sessions import INFER, TRAIN
from ondol.sql.training import CHECK_LANE, TRAIN_LANE
from ondol.sql.unit_of_work import UnitOfWork
from tests.model_based.agreement import check_agreement
from tests.model_based.reference import TERMINAL, Job, Message, Pair, Reference, Session
from tests.model_based.tables import Tables, completion, fine_tune, inference_job

T = TypeVar("T")

LEASE_S = 6.0
MAX_RETRIES = 2
RUNG_UNCLAIMED_S = 4.0
LIMITS = WindowLimits(messages=2, bulk_messages=1, message_jobs=3)
TICK_S = 1 / 64
WORKERS = ("cpu0@test", "cpu1@test")
TRAINERS = ("train0@test", "train1@test")
RESOLVED = {"max_steps": 4}
ERROR = {"code": "device_error", "message": "no", "param": None}
MOST_JOBS = 12
MOST_ROUNDS = 60

numbers = st.integers(0, 1_000)
seldom = st.sampled_from([False, False, False, True])


class JobMachine(RuleBasedStateMachine):
    """All moves of jobs that are no shards. `database` is set by the subclass that is run."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables(self.database)
        self.ref = Reference(self.tables.now)
        self.pairs: list[Pair] = []
        self.message_ids: list[tuple[str, bool]] = []
        self.session_ids: list[str] = []

    # People

    @precondition(lambda self: len(self.ref.jobs) < MOST_JOBS)
    @rule(
        num=st.integers(1, 3),
        priority=st.sampled_from(Priority),
        deadline_s=st.sampled_from([None, None, 3.0]),
        delay_s=st.sampled_from([None, None, 2.0]),
        wants_notice=st.booleans(),
    )
    def submit(
        self, num: int, priority: Priority, deadline_s: float | None, delay_s: float | None, wants_notice: bool
    ) -> None:
        webhook = "http://localhost/told" if wants_notice else None
        run_after = None if delay_s is None else self.tables.now + TICK_S + delay_s
        new = [
            inference_job(self.tables.project_id, priority, deadline_s=deadline_s, run_after=run_after, webhook=webhook)
            for _ in range(num)
        ]
        self._write(lambda uow: uow.jobs.add_all(new))
        # Nobody answered the commit: the same jobs are handed in again, and are known.
        assert self.tables.write(lambda uow: uow.jobs.add_all(new), is_retry=True) == []
        for job in new:
            self._accepted(job.id, is_training=False, priority=priority, wants_notice=wants_notice)
            self.ref.jobs[job.id].run_after = run_after or self.tables.now
            self.ref.jobs[job.id].deadline_at = None if deadline_s is None else self.tables.now + deadline_s

    @precondition(lambda self: len(self.ref.jobs) < MOST_JOBS)
    @rule(priority=st.sampled_from(Priority), wants_notice=st.booleans())
    def submit_fine_tune(self, priority: Priority, wants_notice: bool) -> None:
        new = fine_tune(self.tables.project_id, priority, webhook="http://localhost/told" if wants_notice else None)
        self._write(lambda uow: uow.jobs.add_all([new]))
        self._accepted(new.id, is_training=True, priority=priority, wants_notice=wants_notice)

    @precondition(lambda self: self.ref.jobs)
    @rule(number=numbers, what=st.sampled_from(["cancel", "retry", "delete", "pause", "resume"]))
    def ask(self, number: int, what: str) -> None:
        job_id = _one_of(list(self.ref.jobs), number)
        project = self.tables.project_id
        moves: dict[str, tuple[Callable[[UnitOfWork], Any], Callable[[str], bool]]] = {
            "cancel": (lambda uow: uow.jobs.cancel(job_id, project), self.ref.cancel),
            "retry": (lambda uow: uow.jobs.retry(job_id, project), self.ref.retry),
            "delete": (lambda uow: uow.jobs.delete(job_id, project), self.ref.delete),
            "pause": (lambda uow: uow.training.request_pause(job_id, project), self.ref.ask_pause),
            "resume": (lambda uow: uow.training.resume(job_id, project), self.ref.resume),
        }
        real, expected = moves[what]
        assert self._is_allowed(real) == expected(job_id), f"{what} of {job_id}"

    @initialize(priority=st.sampled_from(Priority))
    def begin(self, priority: Priority) -> None:
        """Nothing happens to jobs that nobody runs: some begin."""
        self.submit(3, priority, None, None, wants_notice=True)
        self.submit_fine_tune(priority, wants_notice=True)
        self.serve()

    @rule()
    def serve(self) -> None:
        """Somebody is there, and takes what there is."""
        for worker in WORKERS[:1] + TRAINERS[:1]:
            if worker not in self.ref.ready(is_trainer=worker in TRAINERS):
                self.open_session(worker)
        self.ring(claims=True)

    @precondition(lambda self: any(job.session for job in self.ref.jobs.values()))
    @rule(number=numbers, what=st.sampled_from(["cancel", "pause"]))
    def ask_of_what_runs(self, number: int, what: str) -> None:
        ids = list(self.ref.jobs)
        held = [place for place, job_id in enumerate(ids) if self.ref.jobs[job_id].session]
        self.ask(_one_of(held, number), what)

    # Time and repairs

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 7.0]))
    def pass_time(self, seconds: float) -> None:
        self.tables.now += seconds

    @rule()
    def reconcile(self) -> None:
        def repair(uow: UnitOfWork) -> None:
            for session_id, _ in uow.sessions.lapse():
                uow.attempts.take_back(session_id)
            uow.attempts.take_back_forgotten()
            uow.jobs.expire_deadlines()
            uow.ringing.recall_unclaimed(rung_before=uow.now - RUNG_UNCLAIMED_S)
            uow.ringing.recall_orphans()

        self._write(repair)
        self.ref.reconcile(rung_before=self.tables.now - RUNG_UNCLAIMED_S)

    @rule()
    def redis_loses_everything(self) -> None:
        expected = self.ref.release([m.id for m in self.ref.messages.values() if m.claimed_by is None])
        assert self._write(lambda uow: uow.ringing.recall_unclaimed()) == expected

    # Workers

    @rule(worker=st.sampled_from(WORKERS + TRAINERS))
    def open_session(self, worker: str) -> None:
        is_trainer = worker in TRAINERS
        session_id = self._write(
            lambda uow: uow.sessions.open(
                worker=worker,
                device="cpu:0",
                device_kind="cpu",
                host="test",
                pid=1,
                lease_s=LEASE_S,
                role=TRAIN if is_trainer else INFER,
            )
        )
        self.ref.open(Session(session_id, worker, is_trainer, self.tables.now + LEASE_S))
        self.session_ids.append(session_id)
        self.renew(-1, may_be_late=False)

    @precondition(lambda self: self.session_ids)
    @rule(number=numbers, may_be_late=seldom)
    def renew(self, number: int, may_be_late: bool) -> None:
        session_id = _one_of(self.session_ids, number)
        renewed = self._write(
            lambda uow: uow.sessions.renew(session_id, lease_s=LEASE_S, is_ready=True, warm=[], may_be_late=may_be_late)
        )
        assert renewed == self.ref.renew(session_id, LEASE_S, may_be_late=may_be_late)

    @precondition(lambda self: self.session_ids)
    @rule(number=numbers)
    def stop_session(self, number: int) -> None:
        session_id = _one_of(self.session_ids, number)
        handed_back = self._write(lambda uow: uow.sessions.stop(session_id, reason="stopped"))
        assert sorted(handed_back) == sorted(self.ref.stop(session_id))

    @rule(claims=st.booleans())
    def ring(self, claims: bool) -> None:
        before = set(self.ref.messages)
        chosen = self._write(lambda uow: uow.ringing.choose(LIMITS))
        for message in chosen:
            is_training = message.worker in TRAINERS
            rung = Message(message.id, message.worker, message.priority, self.tables.now, is_training)
            self._check_rung(message)
            self.ref.rung(rung, message.jobs)
            self.message_ids.append((message.id, is_training))
        assert not before & {message.id for message in chosen}
        self._check_windows()
        if claims:
            for message in chosen:
                owner = next(s.id for s in self.ref.sessions.values() if s.worker == message.worker and not s.has_ended)
                self._claim(message.id, owner, is_training=message.worker in TRAINERS)

    @precondition(lambda self: self.message_ids and self.session_ids)
    @rule(message=numbers, session=numbers, is_unanswered=seldom)
    def claim(self, message: int, session: int, is_unanswered: bool) -> None:
        message_id, is_training = _one_of(self.message_ids, message)
        of_role = [s for s in self.session_ids if self.ref.sessions[s].is_trainer == is_training]
        if of_role:
            self._claim(message_id, _one_of(of_role, session), is_training=is_training, is_unanswered=is_unanswered)

    @precondition(lambda self: len(self.ref.jobs) < MOST_JOBS)
    @rule()
    def wake_after_the_lease(self) -> None:
        """Whoever was frozen before it claimed finds its lease gone, though nobody has ended its session."""
        self._ring_for_new_sessions()
        self.pass_time(LEASE_S + 1)
        self._claim_what_is_rung(lambda sessions: sessions[-1])

    @precondition(lambda self: len(self.ref.jobs) < MOST_JOBS)
    @rule()
    def wake_beside_the_next_life(self) -> None:
        """Whoever was frozen before it claimed finds another life under its name; its own lease would still run."""
        self._ring_for_new_sessions()
        for worker in (WORKERS[0], TRAINERS[0]):
            self.open_session(worker)
        self._claim_what_is_rung(lambda sessions: sessions[-2] if len(sessions) > 1 else sessions[-1])

    @precondition(lambda self: self.message_ids)
    @rule(message=numbers)
    def finish_message(self, message: int) -> None:
        message_id, _ = _one_of(self.message_ids, message)
        self._write(lambda uow: uow.ringing.finish(message_id))
        self.ref.release([message_id] if message_id in self.ref.messages else [])

    @precondition(lambda self: self.pairs)
    @rule(number=numbers, num=st.integers(1, 3), is_stale=seldom)
    def complete(self, number: int, num: int, is_stale: bool) -> None:
        pairs = list(dict(self._some_pairs(number, num, is_stale)).items())  # one attempt a job, as a worker holds them
        recorded = self._write(lambda uow: uow.attempts.complete([completion(*pair) for pair in pairs]))
        assert sorted(recorded) == sorted(self.ref.complete(pairs))

    @precondition(lambda self: self.pairs)
    @rule(number=numbers, retry_after_s=st.sampled_from([None, 0.0, 1.0]), is_stale=seldom)
    def fail(self, number: int, retry_after_s: float | None, is_stale: bool) -> None:
        [pair] = self._some_pairs(number, 1, is_stale)
        failure = Failure(*pair, ERROR, retry_after_s=retry_after_s)
        recorded = self._write(lambda uow: uow.attempts.fail([failure], max_retries=MAX_RETRIES))
        assert recorded == self.ref.fail(
            pair, retry_after_s=retry_after_s, max_retries=MAX_RETRIES, code=str(ERROR["code"])
        )

    @precondition(lambda self: self.pairs)
    @rule(number=numbers, num=st.integers(1, 3), is_stale=seldom)
    def hand_back(self, number: int, num: int, is_stale: bool) -> None:
        pairs = list(dict(self._some_pairs(number, num, is_stale)).items())
        recorded = self._write(lambda uow: uow.attempts.hand_back(pairs))
        assert sorted(recorded) == sorted(self.ref.hand_back(pairs))

    @precondition(lambda self: self.pairs)
    @rule(
        number=numbers,
        is_stale=seldom,
        what=st.sampled_from(["lose", "event", "progress", "refuse", "give_back", "put_off", "free"]),
    )
    def report(self, number: int, is_stale: bool, what: str) -> None:
        [pair] = self._some_pairs(number, 1, is_stale)
        self._report(what, pair)

    @precondition(lambda self: self.pairs)
    @rule(number=numbers, is_stale=seldom, what=st.sampled_from(["validated", "pause"]))
    def train(self, number: int, is_stale: bool, what: str) -> None:
        trained = [pair for pair in self.pairs if pair[0] in self.ref.jobs and self.ref.jobs[pair[0]].is_training]
        if trained:
            self._report(what, _one_of(self._preferred(trained, is_stale), number))

    @invariant()
    def the_two_agree(self) -> None:
        check_agreement(self.tables.snapshot(), self.ref)

    def teardown(self) -> None:
        """Whatever happened: nobody claims without a lease, and regular moves bring every job to its end, told once."""
        # Here in every run: among the random moves each is seldom.
        self.wake_after_the_lease()
        self.wake_beside_the_next_life()
        for _ in range(MOST_ROUNDS):
            if all(job.state in TERMINAL for job in self.ref.jobs.values()):
                break
            self._one_regular_round()
        else:
            left = {job.id: job.state for job in self.ref.jobs.values() if job.state not in TERMINAL}
            raise AssertionError(f"jobs that no regular move ends: {left}")
        self.the_two_agree()

    def _one_regular_round(self) -> None:
        self.pass_time(7.0)
        self.reconcile()
        for job in list(self.ref.jobs.values()):
            if job.state is JobState.PAUSED:
                self.ask(list(self.ref.jobs).index(job.id), "resume")
        for worker in WORKERS[:1] + TRAINERS[:1]:
            self.open_session(worker)
        self.ring(claims=True)
        for job in list(self.ref.jobs.values()):
            if job.state is JobState.VALIDATING_FILES and job.session is not None:
                self._report("validated", (job.id, job.attempt))
        running = [(j.id, j.attempt) for j in self.ref.jobs.values() if j.state is JobState.RUNNING]
        recorded = self._write(lambda uow: uow.attempts.complete([completion(*pair) for pair in running]))
        assert sorted(recorded) == sorted(self.ref.complete(running))
        for message_id in [m.id for m in self.ref.messages.values() if m.claimed_by is not None]:
            self._write(lambda uow, m=message_id: uow.ringing.finish(m))  # type: ignore[misc]  # bound at definition
            self.ref.release([message_id])

    def _write(self, work: Callable[[UnitOfWork], T]) -> T:
        self.tables.now += TICK_S
        self.ref.now = self.tables.now
        return self.tables.write(work)

    def _is_allowed(self, work: Callable[[UnitOfWork], Any]) -> bool:
        try:
            self._write(work)
        except IllegalTransition:
            return False
        return True

    def _accepted(self, job_id: str, *, is_training: bool, priority: Priority, wants_notice: bool) -> None:
        state = JobState.VALIDATING_FILES if is_training else JobState.QUEUED
        job = Job(job_id, is_training, priority, state, self.tables.now, None, wants_notice)
        job.events.append((None, state, "accepted", None))
        self.ref.jobs[job_id] = job

    def _claim(self, message_id: str, session_id: str, *, is_training: bool, is_unanswered: bool = False) -> None:
        worker = self.ref.sessions[session_id].worker

        def take(uow: UnitOfWork) -> list[Pair]:
            if not is_training:
                found = uow.attempts.claim(message_id, session_id=session_id, worker=worker)
                return [(job.id, job.attempt) for job in found]
            one = uow.training.claim(message_id, session_id=session_id, worker=worker)
            return [] if one is None else [(one.id, one.attempt)]

        claimed = self._write(take)
        expected = self.ref.claim(message_id, session_id)
        assert sorted(claimed) == sorted(expected)
        self.pairs += claimed
        if is_unanswered and claimed:
            assert sorted(self.tables.write(take, is_retry=True)) == sorted(claimed)

    def _ring_for_new_sessions(self) -> None:
        """A job for a worker and one for a trainer are rung, or were before; nobody has claimed them."""
        for worker in (WORKERS[0], TRAINERS[0]):
            self.open_session(worker)
        self.submit(1, Priority.NORMAL, None, None, wants_notice=False)
        self.submit_fine_tune(Priority.NORMAL, wants_notice=False)
        self.ring(claims=False)

    def _claim_what_is_rung(self, choose: Callable[[list[str]], str]) -> None:
        """Under the session of each message's worker that `choose` takes, of all that it had."""
        unclaimed = [m for m in self.ref.messages.values() if m.claimed_by is None]
        assert {m.is_training for m in unclaimed} == {False, True}, "there is something to claim"
        for message in unclaimed:
            owners = [s.id for s in self.ref.sessions.values() if s.worker == message.worker]
            self._claim(message.id, choose(owners), is_training=message.is_training)

    def _report(self, what: str, pair: Pair) -> None:
        job_id, attempt = pair
        worker = "anyone"
        moves: dict[str, tuple[Callable[[UnitOfWork], object], Callable[[], bool]]] = {
            "lose": (lambda u: u.attempts.lose(*pair, ERROR, worker=worker), lambda: self.ref.lose(pair)),
            "event": (
                lambda u: u.events.append(job_id, attempt=attempt, type="progress", data={}) is not None,
                lambda: self.ref.append_event(pair),
            ),
            "progress": (lambda u: u.training.made_progress(*pair), lambda: self.ref.made_progress(pair)),
            "validated": (
                lambda u: u.training.validated(*pair, RESOLVED, worker=worker),
                lambda: self.ref.validated(pair),
            ),
            "refuse": (
                lambda u: u.training.refuse(*pair, ERROR, worker=worker),
                lambda: self.ref.refuse(pair, str(ERROR["code"])),
            ),
            "give_back": (lambda u: u.training.give_back_check(*pair), lambda: self.ref.give_back_check(*pair)),
            "put_off": (
                lambda u: u.training.put_off_check(*pair, ERROR, after_s=1.0, max_retries=MAX_RETRIES),
                lambda: self.ref.put_off_check(pair, 1.0, MAX_RETRIES),
            ),
            "pause": (lambda u: u.training.pause(*pair, worker=worker), lambda: self.ref.pause(pair)),
            "free": (lambda u: u.training.device_released(*pair), lambda: self.ref.free_device(pair)),
        }
        real, expected = moves[what]
        assert self._write(real) == expected(), f"{what} of {pair}"

    def _some_pairs(self, number: int, num: int, is_stale: bool) -> list[Pair]:
        pairs = self._preferred(self.pairs, is_stale)
        return [pairs[(number + i) % len(pairs)] for i in range(min(num, len(pairs)))]

    def _preferred(self, pairs: list[Pair], is_stale: bool) -> list[Pair]:
        """Attempts that run, unless there are none or it is about the others."""
        held = [p for p in pairs if p[0] in self.ref.jobs and self.ref.jobs[p[0]].session and self._is_latest(p)]
        return pairs if is_stale or not held else held

    def _is_latest(self, pair: Pair) -> bool:
        return self.ref.jobs[pair[0]].attempt == pair[1]

    def _check_rung(self, message: RungMessage) -> None:
        assert message.worker in self.ref.ready(is_trainer=message.worker in TRAINERS), "rung for nobody"
        jobs = [self.ref.jobs[job_id] for job_id, _ in message.jobs]
        assert len(jobs) <= LIMITS.message_jobs
        assert len(jobs) == 1 or not any(job.is_alone for job in jobs), "a job that must be alone has company"
        if message.worker in TRAINERS:
            state = JobState.VALIDATING_FILES if message.priority is CHECK_LANE else JobState.QUEUED
            assert [(job.is_training, job.state) for job in jobs] == [(True, state)]
        else:
            assert all(not job.is_training and job.priority is message.priority for job in jobs)

    def _check_windows(self) -> None:
        """No window is over its limit, and nothing waits beside one that has room."""
        for lane in Priority:
            has_room = False
            for worker in self.ref.ready(is_trainer=False):
                assert self.ref.window(worker, lane) <= LIMITS.of(lane)
                has_room = has_room or self.ref.window(worker, lane) < LIMITS.of(lane)
            assert not (has_room and self.ref.waiting(lane)), f"{lane} waits beside a window with room"
        for lane, state in ((CHECK_LANE, JobState.VALIDATING_FILES), (TRAIN_LANE, JobState.QUEUED)):
            free = [w for w in self.ref.ready(is_trainer=True) if self.ref.window(w, lane) == 0]
            assert not (free and self.ref.waiting_training(state)), f"{state} waits beside a free trainer"


def _one_of(items: Sequence[T], number: int) -> T:
    return items[number % len(items)]
