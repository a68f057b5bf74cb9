"""The invariants of a run, over its history and what SQL says at the end. Each is one function that names what broke.

What a client was not told (`unknown`) may have happened or not; what it was told must be so for ever.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from ondol.contract.states import TERMINAL, TRANSITIONS, JobState
from tests.chaos.history import Entry, History, Kind
from tests.chaos.snapshot import Attempt, Job, Snapshot

SERIAL_SLACK_S = 0.05
PARALLEL_SLACK_S = 6.0
"""Times are read at the beginning of a transaction. On SQLite they come in the order of the commits; on PostgreSQL one
that stands still for up to five seconds (the server ends it then) commits with a time that is so old."""
OUR_OWN_FAILURES = frozenset({"deadline_exceeded", "worker_lost"})
"""Codes with which a sound job may fail while its neighbours die around it."""
STORE_FAILURES = frozenset({"storage_full", "store_unavailable"})
_SUBMITS = ("submit", "batch", "shards", "fine_tune")


class Texts(Protocol):
    """What inputs must give."""

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of the texts together."""

    def is_right(self, texts: Sequence[str], vectors: Any) -> bool:
        """Whether these are the texts' vectors."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and for what."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the checks look at. `inputs`: the texts of each submitted job by its tag; `is_calm`: nothing was broken.

    `slack_s`: how far the times of two transactions may disagree with the order in which they were committed.
    """

    history: History
    snapshot: Snapshot
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Texts | None = None
    is_calm: bool = False
    slack_s: float = SERIAL_SLACK_S


Check = Callable[[Evidence], Iterator[str]]


def check_all(evidence: Evidence) -> list[Violation]:
    """Every violation of every invariant; an empty list is a run in which all of them held."""
    return [Violation(name, detail) for name, check in INVARIANTS.items() for detail in check(evidence)]


def accepted_ids(history: History) -> dict[str, str]:
    """Job ids that a client was told are accepted, with the tag of what it had submitted."""
    found: dict[str, str] = {}
    for entry in history.of(Kind.OK, *_SUBMITS):
        found |= dict(entry.data["jobs"])
    return found


def accepted_jobs_are_known(evidence: Evidence) -> Iterator[str]:
    known = evidence.snapshot.jobs
    for job_id, tag in accepted_ids(evidence.history).items():
        if job_id not in known:
            yield f"{job_id} was accepted (as {tag}) and is not in SQL"
        elif known[job_id].tag != tag:
            yield f"{job_id} was accepted as {tag}; SQL says {known[job_id].tag}"


def every_job_ends(evidence: Evidence) -> Iterator[str]:
    for job in evidence.snapshot.jobs.values():
        if job.state not in TERMINAL:
            yield f"{job.id} is still {job.state} (attempt {job.attempt})"


def one_submission_is_one_job(evidence: Evidence) -> Iterator[str]:
    by_tag = Counter(job.tag for job in evidence.snapshot.jobs.values() if job.tag is not None)
    for tag, num in by_tag.items():
        if num > 1:
            yield f"{tag} was submitted with one key or once, and became {num} jobs"
    ids_of: defaultdict[str, set[str]] = defaultdict(set)
    for job_id, tag in accepted_ids(evidence.history).items():
        ids_of[tag].add(job_id)
    for tag, ids in ids_of.items():
        if len(ids) > 1:
            yield f"{tag} was answered with different ids: {sorted(ids)}"


def refused_submissions_leave_nothing(evidence: Evidence) -> Iterator[str]:
    """A 4xx or the error of one item of a batch: there is no such job, unless another call may have made it."""
    history = evidence.history
    ended = {entry.call: entry for kind in (Kind.OK, Kind.FAIL) for entry in history.of(kind, *_SUBMITS)}
    refused: dict[str, Entry] = {}
    possible: set[str] = set()
    for invoked in history.of(Kind.INVOKE, *_SUBMITS):
        answer = ended.get(invoked.call)
        told = answer.data.get("refused", ()) if answer is not None and answer.kind is Kind.OK else invoked.data["tags"]
        for tag in invoked.data["tags"]:
            if answer is None or tag not in told:
                possible.add(tag)
            else:
                refused[tag] = answer
    for job in evidence.snapshot.jobs.values():
        if job.tag in refused and job.tag not in possible:
            told = refused[job.tag].data
            yield f"{job.tag} was refused ({told.get('status')} {told.get('code')}), and is {job.id}, {job.state}"


def success_is_committed_once(evidence: Evidence) -> Iterator[str]:
    snapshot = evidence.snapshot
    for job in snapshot.jobs.values():
        moves = _moves(snapshot, job.id)
        num_events = sum(after == JobState.SUCCEEDED for _, after, _, _ in moves)
        wins = [one.attempt for one in snapshot.attempts.get(job.id, []) if one.outcome == "succeeded"]
        result = snapshot.results.get(job.id)
        if num_events > 1 or len(wins) > 1:
            yield f"{job.id} succeeded {num_events} times by events, {len(wins)} times by attempts"
        if job.state == JobState.SUCCEEDED:
            if result is None:
                yield f"{job.id} succeeded without a result"
            if num_events != 1 or (not job.is_sharded and len(wins) != 1):
                yield f"{job.id} is succeeded by {num_events} events and {len(wins)} attempts"
        if result is not None and not job.is_sharded and [result.attempt] != wins:
            yield f"the result of {job.id} is attempt {result.attempt}'s; those that succeeded: {wins}"
        if result is not None and job.state != JobState.SUCCEEDED:
            yield f"{job.id} is {job.state} and has a result"


def events_are_dense(evidence: Evidence) -> Iterator[str]:
    for job in evidence.snapshot.jobs.values():
        seqs = [event.seq for event in evidence.snapshot.events.get(job.id, [])]
        if seqs != list(range(1, job.event_seq + 1)):
            yield f"{job.id} has events {seqs[:20]}, its row says {job.event_seq}"


def moves_are_legal(evidence: Evidence) -> Iterator[str]:
    for job in evidence.snapshot.jobs.values():
        state: str | None = None
        for before, after, reason, _ in _moves(evidence.snapshot, job.id):
            if before != state:
                yield f"{job.id} moved from {before} to {after} ({reason}), but was {state}"
            elif before is not None and not _may_move(before, after, reason):
                yield f"{job.id} moved from {before} to {after} ({reason})"
            state = after
        if state != job.state:
            yield f"{job.id} is {job.state}; its events end with {state}"


def retries_are_recorded(evidence: Evidence) -> Iterator[str]:
    asked: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for entry in evidence.history.of(Kind.INVOKE, "retry"):
        asked[entry.data["job"]] += 1
    for entry in evidence.history.of(Kind.OK, "retry"):
        told[entry.data["job"]] += 1
    for job in evidence.snapshot.jobs.values():
        num = sum(reason == "retry_requested" for _, _, reason, _ in _moves(evidence.snapshot, job.id))
        whole = job.parent_id or job.id
        if num > asked[whole]:
            yield f"{job.id} was retried {num} times; {asked[whole]} were asked for"
        if job.parent_id is None and num < told[job.id]:
            yield f"{job.id}: {told[job.id]} retries were acknowledged, {num} are recorded"


def attempts_increase(evidence: Evidence) -> Iterator[str]:
    for job in evidence.snapshot.jobs.values():
        rows = evidence.snapshot.attempts.get(job.id, [])
        numbers = [row.attempt for row in rows]
        if numbers != list(range(1, job.attempt + 1)):
            yield f"{job.id} has attempts {numbers}, its row says {job.attempt}"
        claims = [n for _, _, reason, n in _moves(evidence.snapshot, job.id) if reason == "claimed" and n is not None]
        if any(later < earlier for earlier, later in pairwise(claims)):
            yield f"{job.id} was claimed as attempts {claims}"
        if job.state in TERMINAL and any(row.outcome is None for row in rows):
            yield f"{job.id} has ended; its attempts: {[row.outcome for row in rows]}"


def one_attempt_runs_at_a_time(evidence: Evidence) -> Iterator[str]:
    for job_id, rows in evidence.snapshot.attempts.items():
        for earlier, later in pairwise(rows):
            if earlier.finished_at is None or later.started_at < earlier.finished_at - evidence.slack_s:
                yield f"{job_id}: attempt {later.attempt} began before attempt {earlier.attempt} had ended"


def one_holder_a_device(evidence: Evidence) -> Iterator[str]:
    by_worker = defaultdict(list)
    for session in evidence.snapshot.sessions:
        by_worker[session.worker].append(session)
    for worker, lives in by_worker.items():
        lives.sort(key=lambda one: one.started_at)
        for earlier, later in pairwise(lives):
            if earlier.ended_at is None or later.started_at < earlier.ended_at - evidence.slack_s:
                yield f"{worker} had sessions {earlier.id} and {later.id} at once"
    ended = {one.id: one for one in evidence.snapshot.sessions}
    for rows in evidence.snapshot.attempts.values():
        yield from (problem for row in rows if (problem := _outside_its_session(row, ended, evidence.slack_s)))
    for entry in evidence.history.of(Kind.NOTE, "second_holder"):
        if not entry.data["refused"]:
            yield f"a second process could hold {entry.data['worker']}"


def _outside_its_session(row: Attempt, sessions: Mapping[str, Any], slack_s: float) -> str | None:
    session = sessions.get(row.session_id)
    if session is None:
        return f"attempt {row.attempt} at {row.job_id} ran under no session"
    if row.started_at < session.started_at - slack_s:
        return f"attempt {row.attempt} at {row.job_id} began before its session"
    over = session.ended_at
    if row.outcome == "succeeded" and over is not None and (row.finished_at or 0) > over + slack_s:
        return f"attempt {row.attempt} at {row.job_id} succeeded after its session had ended"
    return None


def cancelled_stays_cancelled(evidence: Evidence) -> Iterator[str]:
    for entry in evidence.history.of(Kind.OK, "cancel"):
        job = evidence.snapshot.jobs.get(entry.data["job"])
        if job is not None and job.state != JobState.CANCELLED:
            yield f"the cancel of {job.id} was acknowledged; it is {job.state}"


def what_was_seen_stays(evidence: Evidence) -> Iterator[str]:
    """A client that has seen a final state sees no other one later."""
    invoked = {entry.call: entry.n for entry in evidence.history.of(Kind.INVOKE)}
    final: dict[str, tuple[int, str]] = {}
    for entry in evidence.history.of(Kind.OK, "get", "cancel"):
        job_id, status = entry.data["job"], entry.data["status"]
        seen_at, seen = final.get(job_id, (entry.n, status))
        if status != seen and seen_at < invoked.get(entry.call, 0):
            yield f"{job_id} was seen {seen}, then {status}"
        if not TRANSITIONS[JobState(status)] and job_id not in final:
            final[job_id] = (entry.n, status)
    for job_id, (_, status) in final.items():
        job = evidence.snapshot.jobs.get(job_id)
        if job is not None and job.state != status:
            yield f"{job_id} was seen {status}; it is {job.state}"
    for entry in evidence.history.of(Kind.FAIL, "get", "result"):
        if entry.data.get("status") == 404 or entry.data.get("was_succeeded"):
            yield f"{entry.op} of {entry.data['job']} was answered {entry.data.get('status')}: {entry.data.get('code')}"


def results_are_right(evidence: Evidence) -> Iterator[str]:
    texts, snapshot = evidence.texts, evidence.snapshot
    for entry in evidence.history.of(Kind.OK, "result", "call"):
        if not entry.data["is_right"]:
            yield f"{entry.op} of {entry.data.get('job', 'texts')} gave other vectors than its texts have"
    if texts is None:
        return
    for result in snapshot.results.values():
        owner = snapshot.jobs.get(result.job_id)
        given = _inputs_of(owner, evidence) if owner is not None else None
        if given is not None and result.vectors is not None and not texts.is_right(given, result.vectors):
            yield f"the result of {result.job_id} (attempt {result.attempt}) is not what its texts give"


def usage_is_counted_once(evidence: Evidence) -> Iterator[str]:
    snapshot, texts = evidence.snapshot, evidence.texts
    told = sum(entry.data["tokens"] for entry in evidence.history.of(Kind.OK, "call"))
    maybe = sum(entry.data["tokens"] for entry in evidence.history.of(Kind.UNKNOWN, "call"))
    if snapshot.num_call_tokens > told + maybe:
        yield f"{snapshot.num_call_tokens} tokens of calls are counted; at most {told + maybe} were run"
    if evidence.is_calm and snapshot.num_call_tokens < told:
        yield f"{snapshot.num_call_tokens} tokens of calls are counted; {told} were answered"
    if texts is None:
        return
    for job in snapshot.jobs.values():
        given = _inputs_of(job, evidence)
        if given is None or job.state != JobState.SUCCEEDED or job.kind != "embedding":
            continue
        wanted = texts.num_tokens(given)
        if job.is_sharded:
            counted = snapshot.results[job.id].num_tokens if job.id in snapshot.results else 0
            wanted = _tokens_of_shards(job, evidence, wanted)
        else:
            rows = snapshot.attempts.get(job.id, [])
            counted = sum(row.tokens or 0 for row in rows)
        if counted != wanted:
            yield f"{counted} tokens are counted for {job.id}; its texts have {wanted}"


def _tokens_of_shards(parent: Job, evidence: Evidence, of_all: int) -> int:
    """Tokens of the shards that succeeded: one that has failed counts nothing."""
    assert evidence.texts is not None
    shards = [job for job in evidence.snapshot.jobs.values() if job.parent_id == parent.id]
    if all(job.state == JobState.SUCCEEDED for job in shards):
        return of_all
    good = [job for job in shards if job.state == JobState.SUCCEEDED]
    return sum(evidence.texts.num_tokens(_inputs_of(job, evidence) or ()) for job in good)


def shards_cover_their_job(evidence: Evidence) -> Iterator[str]:
    shards: defaultdict[str, list[Job]] = defaultdict(list)
    for job in evidence.snapshot.jobs.values():
        if job.parent_id is not None:
            shards[job.parent_id].append(job)
    for job in evidence.snapshot.jobs.values():
        if not job.is_sharded:
            continue
        mine = sorted(shards[job.id], key=lambda one: one.first_input or 0)
        if sum(one.num_inputs for one in mine) != job.num_inputs:
            yield f"the shards of {job.id} have {sum(one.num_inputs for one in mine)} of {job.num_inputs} inputs"
        if job.state == JobState.SUCCEEDED and any(one.state not in TERMINAL for one in mine):
            yield f"{job.id} has succeeded before its shards have ended"


def versions_have_one_origin(evidence: Evidence) -> Iterator[str]:
    snapshot = evidence.snapshot
    by_job = Counter(version.job_id for version in snapshot.versions if version.job_id is not None)
    for version in snapshot.versions:
        if not version.is_whole:
            yield f"version {version.id} is published and not whole in the store"
        if version.job_id is None:
            continue
        wins = [one.attempt for one in snapshot.attempts.get(version.job_id, []) if one.outcome == "succeeded"]
        if wins != [version.attempt]:
            yield f"version {version.id} is attempt {version.attempt}'s of {version.job_id}; succeeded: {wins}"
    for job in snapshot.jobs.values():
        wanted = int(job.kind == "fine-tune" and job.state == JobState.SUCCEEDED)
        if by_job[job.id] != wanted:
            yield f"{job.id} ({job.kind}, {job.state}) has published {by_job[job.id]} versions"


def manifests_come_last(evidence: Evidence) -> Iterator[str]:
    for entry in evidence.history.of(Kind.NOTE, "torn_manifest"):
        yield f"manifest {entry.data['digest']} was in the store without {entry.data['missing']}"


def stale_writes_are_refused(evidence: Evidence) -> Iterator[str]:
    for entry in evidence.history.of(Kind.NOTE, "zombie"):
        for write in entry.data["accepted"]:
            yield f"{entry.data['worker']} could {write} after its lease"


def failures_have_a_reason(evidence: Evidence) -> Iterator[str]:
    for job in evidence.snapshot.jobs.values():
        allowed = OUR_OWN_FAILURES | (STORE_FAILURES if job.kind == "fine-tune" else frozenset())
        if job.state == JobState.FAILED and job.error_code not in allowed:
            yield f"{job.id} ({job.kind}) failed with {job.error_code}"


def deadlines_are_not_early(evidence: Evidence) -> Iterator[str]:
    for job in evidence.snapshot.jobs.values():
        if job.state != JobState.FAILED or job.error_code != "deadline_exceeded":
            continue
        if job.deadline_at is None:
            yield f"{job.id} has no deadline, and failed by one"
            continue
        ended = [event.at for event in evidence.snapshot.events.get(job.id, []) if event.type == "state"]
        if ended and ended[-1] < job.deadline_at - SERIAL_SLACK_S:
            yield f"{job.id} missed its deadline {job.deadline_at - ended[-1]:.1f} s before it"


def nothing_is_left_over(evidence: Evidence) -> Iterator[str]:
    if evidence.snapshot.num_messages:
        yield f"{evidence.snapshot.num_messages} messages fill places in the windows for ever"
    if not evidence.snapshot.has_canary:
        yield "the canary key was not set again: nobody noticed that Redis lost its data"


def calm_needs_no_repair(evidence: Evidence) -> Iterator[str]:
    if not evidence.is_calm:
        return
    for kind, num in evidence.snapshot.repairs.items():
        if num and kind not in ("deadline_exceeded", "redis_data_lost"):
            yield f"nothing was broken, and {num} repairs of kind {kind} were needed"


def no_internal_errors(evidence: Evidence) -> Iterator[str]:
    for entry in list(evidence.history.entries):
        if entry.kind is Kind.UNKNOWN and entry.data.get("status") == 500:
            yield f"{entry.op} was answered 500: {entry.data.get('code')}"


def _moves(snapshot: Snapshot, job_id: str) -> list[tuple[str | None, str, str, int | None]]:
    """(from, to, reason, attempt) of the job's state events, in order."""
    return [
        (event.data.get("from"), event.data["to"], event.data["reason"], event.data.get("attempt"))
        for event in snapshot.events.get(job_id, [])
        if event.type == "state"
    ]


def _may_move(before: str, after: str, reason: str) -> bool:
    if before == after:
        return before == JobState.VALIDATING_FILES and reason == "claimed"
    if before == JobState.FAILED and reason != "retry_requested":
        return False
    return JobState(after) in TRANSITIONS[JobState(before)]


def _inputs_of(job: Job, evidence: Evidence) -> Sequence[str] | None:
    """The texts of a job or shard that this run has submitted."""
    whole = evidence.snapshot.jobs.get(job.parent_id) if job.parent_id is not None else job
    given = evidence.inputs.get(whole.tag) if whole is not None and whole.tag is not None else None
    if given is None or job.parent_id is None:
        return given
    first = job.first_input or 0
    return given[first : first + job.num_inputs]


def num_by(entries: Sequence[Entry], key: str) -> dict[str, int]:
    """How many of the entries have each value under `key` of their data."""
    return dict(sorted(Counter(str(entry.data.get(key)) for entry in entries).items()))


INVARIANTS: dict[str, Check] = {
    check.__name__.replace("_", " "): check
    for check in (
        accepted_jobs_are_known,
        every_job_ends,
        one_submission_is_one_job,
        refused_submissions_leave_nothing,
        success_is_committed_once,
        events_are_dense,
        moves_are_legal,
        retries_are_recorded,
        attempts_increase,
        one_attempt_runs_at_a_time,
        one_holder_a_device,
        cancelled_stays_cancelled,
        what_was_seen_stays,
        results_are_right,
        usage_is_counted_once,
        shards_cover_their_job,
        versions_have_one_origin,
        manifests_come_last,
        stale_writes_are_refused,
        failures_have_a_reason,
        deadlines_are_not_early,
        nothing_is_left_over,
        calm_needs_no_repair,
        no_internal_errors,
    )
}
