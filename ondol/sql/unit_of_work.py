"""A unit of work: one transaction's view of the repositories, and what to do after its commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ondol.sql.attempts import AttemptRepository
from ondol.sql.batches import BatchRepository
from ondol.sql.checkpoints import CheckpointRepository
from ondol.sql.events import EventRepository
from ondol.sql.files import FileRepository
from ondol.sql.idempotency import IdempotencyRepository
from ondol.sql.jobs import JobRepository
from ondol.sql.keys import KeyRepository
from ondol.sql.leaders import LeaderRepository
from ondol.sql.models import ModelRepository
from ondol.sql.notices import NoticeRepository
from ondol.sql.purging import PurgeRepository
from ondol.sql.results import ResultRepository
from ondol.sql.ringing import RingRepository
from ondol.sql.sessions import SessionRepository
from ondol.sql.shards import ShardRepository
from ondol.sql.skew import ClockSkew
from ondol.sql.training import TrainingRepository
from ondol.sql.usage import UsageRepository

_CLOCK = sa.text("SELECT extract(epoch FROM clock_timestamp())")


class UnitOfWork:
    """Repositories over one connection. `is_retry`: an earlier try may have committed without our knowing.

    `clock`: learns how far the database's clock is from this process's, whenever it is read.
    """

    def __init__(
        self, conn: Connection, *, is_sqlite: bool, is_retry: bool = False, clock: ClockSkew | None = None
    ) -> None:
        self.conn = conn
        self.is_sqlite = is_sqlite
        self.is_retry = is_retry
        self.clock = clock or ClockSkew()
        self.hooks: list[Callable[[], None]] = []

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Call `hook` once the transaction is committed; it must not block and may be lost in a crash."""
        self.hooks.append(hook)

    @cached_property
    def now(self) -> float:
        """The database's clock, read once a transaction, in seconds since the epoch."""
        if self.is_sqlite:
            return time.time()  # the file is on a local disk: this machine's clock is the database's
        asked_at = time.time()
        now = float(self.conn.execute(_CLOCK).scalar_one())
        self.clock.saw(now, asked_at=asked_at, answered_at=time.time())
        return now

    @cached_property
    def jobs(self) -> JobRepository:
        """Submitting, reading, cancelling and deleting jobs."""
        return JobRepository(self)

    @cached_property
    def attempts(self) -> AttemptRepository:
        """Claiming and ending attempts, fenced."""
        return AttemptRepository(self)

    @cached_property
    def shards(self) -> ShardRepository:
        """The slices of sharded jobs, and how they end their jobs."""
        return ShardRepository(self)

    @cached_property
    def batches(self) -> BatchRepository:
        """Jobs that OpenAI's batch routes show."""
        return BatchRepository(self)

    @cached_property
    def events(self) -> EventRepository:
        """What happened to a job, keyed (job, seq)."""
        return EventRepository(self)

    @cached_property
    def notices(self) -> NoticeRepository:
        """What is still to be told outside about the ends of jobs."""
        return NoticeRepository(self)

    @cached_property
    def results(self) -> ResultRepository:
        """Stored results."""
        return ResultRepository(self)

    @cached_property
    def purging(self) -> PurgeRepository:
        """Deleting what is over its time, in small steps, and what there is to say about it."""
        return PurgeRepository(self)

    @cached_property
    def files(self) -> FileRepository:
        """Uploaded files."""
        return FileRepository(self)

    @cached_property
    def ringing(self) -> RingRepository:
        """Windows and messages."""
        return RingRepository(self)

    @cached_property
    def sessions(self) -> SessionRepository:
        """Worker sessions and their leases."""
        return SessionRepository(self)

    @cached_property
    def training(self) -> TrainingRepository:
        """Fine-tunes: their windows, validation, pausing."""
        return TrainingRepository(self)

    @cached_property
    def checkpoints(self) -> CheckpointRepository:
        """Committed checkpoints of fine-tunes."""
        return CheckpointRepository(self)

    @cached_property
    def models(self) -> ModelRepository:
        """Models, versions, aliases."""
        return ModelRepository(self)

    @cached_property
    def keys(self) -> KeyRepository:
        """Projects and API keys."""
        return KeyRepository(self)

    @cached_property
    def idempotency(self) -> IdempotencyRepository:
        """First answers by Idempotency-Key."""
        return IdempotencyRepository(self)

    @cached_property
    def leaders(self) -> LeaderRepository:
        """Leadership by lease, and the counters of repairs."""
        return LeaderRepository(self)

    @cached_property
    def usage(self) -> UsageRepository:
        """Tokens and inputs of calls by project, model and day."""
        return UsageRepository(self)
