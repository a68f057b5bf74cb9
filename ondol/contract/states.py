"""Job states and the one table of transitions. Nothing else in Ondol decides which state may follow which."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands. Each value's sentence is in `docs/architecture.md`."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Priority(StrEnum):
    """A class: which rows go first. Calls are interactive; jobs from files default to bulk."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


class Reason(StrEnum):
    """Why a transition happened; written into its event."""

    ACCEPTED = "accepted"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCEL_REQUESTED = "cancel_requested"
    DEADLINE = "deadline_exceeded"
    LAPSED = "session_lapsed"
    HANDED_BACK = "handed_back"
    RETRY_REQUESTED = "retry_requested"
    RETRYABLE_ERROR = "retryable_error"
    WORKER_LOST = "worker_lost"
    PROCESS_DIED = "process_died"
    VALIDATED = "validated"
    PAUSE_REQUESTED = "pause_requested"
    RESUME_REQUESTED = "resume_requested"
    SHARD_CLAIMED = "shard_claimed"
    SHARDS_ENDED = "shards_ended"


_S = JobState

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.VALIDATING_FILES: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.FAILED}),  # failed: a missed deadline only
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.QUEUED, _S.PAUSED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset({_S.QUEUED}),  # by a recorded retry only
    _S.CANCELLED: frozenset(),
}

TERMINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})


def sources_of(after: JobState) -> frozenset[JobState]:
    """All states that may become `after`."""
    return frozenset(before for before, allowed in TRANSITIONS.items() if after in allowed)
