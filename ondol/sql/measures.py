"""How much waits and runs, looked up for those who watch; every query is answered by a partial index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.jobs import num_jobs
from ondol.sql.leaders import RECONCILER
from ondol.sql.notices import Channel
from ondol.sql.sessions import INFER, TRAIN
from ondol.sql.tables import IS_RUNG, IS_UNFINISHED_TRAINING, IS_WAITING, jobs, notices, sessions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

REPAIR_KINDS = (
    "session_lapsed",
    "job_taken_back",
    "deadline_exceeded",
    "redis_data_lost",
    "message_lost",
    "message_orphaned",
    "leader_lapsed",
    "worker_deaf",
    "worker_restarted",
    "backlog_idle",
    "forward_over_limit",
    "trainer_stalled",
)
TRAINING_QUEUE = JobKind.FINE_TUNE.value


@dataclass(frozen=True, slots=True)
class Measures:
    """A look at the whole system; queues are the classes, and `fine-tune`.

    A sharded job is one job, counted where a shard of it is: queued, running, or both.
    """

    num_queued: Mapping[str, int]
    oldest_s: Mapping[str, float]
    """How long the oldest job that may run now has waited since it might."""
    num_running: Mapping[str, int]
    num_ready_workers: Mapping[str, int]
    repairs: Mapping[str, int]
    num_notices: Mapping[str, int]
    leaderless_s: float | None = None
    """How long no reconciler has led; 0 while one does, None where none ever did."""


def take_measures(uow: UnitOfWork) -> Measures:
    """Look at everything, in one read transaction."""
    num_queued, oldest_s = _queues(uow)
    return Measures(
        num_queued=num_queued,
        oldest_s=oldest_s,
        num_running=_running(uow),
        num_ready_workers=_ready_workers(uow),
        repairs=dict.fromkeys(REPAIR_KINDS, 0) | uow.leaders.repair_counts(),
        num_notices=_notices(uow),
        leaderless_s=uow.leaders.leaderless_s(RECONCILER),
    )


def _queues(uow: UnitOfWork) -> tuple[dict[str, int], dict[str, float]]:
    names = [*(priority.value for priority in Priority), TRAINING_QUEUE]
    num, since = dict.fromkeys(names, 0), dict[str, float]()
    is_training = jobs.c.kind == JobKind.FINE_TUNE
    # A rung job is about to run, but as long as nobody has claimed it, it waits; a fine-tune is counted as one.
    parts: tuple[tuple[sa.ColumnElement[bool], sa.ColumnElement[str]], ...] = (
        (IS_WAITING, jobs.c.priority),
        (sa.and_(IS_RUNG, ~is_training), jobs.c.priority),
        (sa.and_(IS_UNFINISHED_TRAINING, jobs.c.session_id.is_(None)), sa.literal(TRAINING_QUEUE)),
    )
    for condition, name in parts:
        since_when = sa.func.min(jobs.c.run_after).label("since")
        columns = (name.label("queue"), num_jobs(jobs.c.parent_id).label("num"), since_when)
        for row in uow.conn.execute(sa.select(*columns).where(condition).group_by(sa.text("queue"))):
            num[row.queue] += int(row.num)
            since[row.queue] = min(since.get(row.queue, row.since), row.since)
    return num, {name: max(0.0, uow.now - since[name]) if name in since else 0.0 for name in names}


def _running(uow: UnitOfWork) -> dict[str, int]:
    query = (
        sa.select(jobs.c.kind, num_jobs(jobs.c.parent_id).label("num"))
        .where(jobs.c.session_id.is_not(None), jobs.c.state == JobState.RUNNING)
        .group_by(jobs.c.kind)
    )
    return dict.fromkeys((kind.value for kind in JobKind), 0) | {r.kind: int(r.num) for r in uow.conn.execute(query)}


def _ready_workers(uow: UnitOfWork) -> dict[str, int]:
    query = (
        sa.select(sessions.c.roles, sa.func.count().label("num"))
        .where(sessions.c.ended_at.is_(None), sessions.c.is_ready, sessions.c.expires_at > uow.now)
        .group_by(sessions.c.roles)
    )
    return dict.fromkeys((INFER, TRAIN), 0) | {row.roles: int(row.num) for row in uow.conn.execute(query)}


def _notices(uow: UnitOfWork) -> dict[str, int]:
    query = (
        sa.select(notices.c.channel, sa.func.count().label("num"))
        .where(notices.c.status == sa.literal_column("'waiting'", sa.String))
        .group_by(notices.c.channel)
    )
    waiting = {row.channel: int(row.num) for row in uow.conn.execute(query)}
    return dict.fromkeys((channel.value for channel in Channel), 0) | waiting
