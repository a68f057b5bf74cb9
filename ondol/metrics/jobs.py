"""What several processes count of jobs: accepting, ringing, attempts, and telling outside how they ended.

No label ever holds an id, a text or a path. Counting is done once a message or batch, not once a row.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

from ondol.metrics.batch_histogram import BatchHistogram
from ondol.metrics.registry import as_label

STAGE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)


class AcceptMetrics:
    """Jobs at the door; the api's and the intake's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._accepted = Counter("ondol_jobs_accepted_total", "Jobs recorded.", ("kind", "class"), registry=registry)
        self._refused = Counter(
            "ondol_jobs_refused_total",
            "Jobs refused at submission, by error code; a full queue counts each time that it is met.",
            ("code",),
            registry=registry,
        )

    def accepted(self, kind: str, priority: str, num: int = 1) -> None:
        """So many jobs are recorded (count after the commit)."""
        self._accepted.labels(kind, priority).inc(num)

    def refused(self, code: str, num: int = 1) -> None:
        """So many jobs were refused."""
        self._refused.labels(as_label(code)).inc(num)


class RingMetrics:
    """Bells; of every process that has a ringer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rung = Counter(
            "ondol_jobs_rung_total",
            "Jobs named by a message of this process; again when rung again.",
            ("kind",),
            registry=registry,
        )
        self._messages = Counter(
            "ondol_messages_total",
            "Messages handed to Redis: published, or not_published (Redis did not take it; it is rung again).",
            ("outcome",),
            registry=registry,
        )

    def rung(self, kind: str, num_jobs: int, *, is_published: bool) -> None:
        """One message with so many jobs was chosen, and taken by Redis or not."""
        self._rung.labels(kind).inc(num_jobs)
        self._messages.labels("published" if is_published else "not_published").inc()


class EndedAttempts:
    """How attempts end."""

    def __init__(self, registry: CollectorRegistry, *expected: tuple[str, str]) -> None:
        self._attempts = Counter(
            "ondol_attempts_total",
            "Attempts ended: succeeded, failed (also where a retry is left), planned (its file was cut into shards), "
            "handed_back, cancelled, paused, lost (its process died), stale (the end was refused: somebody "
            "else owns the job now).",
            ("kind", "outcome"),
            registry=registry,
        )
        for kind, outcome in expected:  # an alert needs the series before the first one
            self._attempts.labels(kind, outcome)

    def ended(self, kind: str, outcome: str, num: int = 1) -> None:
        """So many attempts ended this way."""
        if num:
            self._attempts.labels(kind, outcome).inc(num)


class AttemptMetrics(EndedAttempts):
    """Claims and how attempts end; of workers and trainer nodes."""

    def __init__(self, registry: CollectorRegistry, *expected: tuple[str, str]) -> None:
        super().__init__(registry, *expected)
        self._claimed = Counter(
            "ondol_jobs_claimed_total",
            "Jobs claimed: attempts begun, checks of files apart.",
            ("kind", "queue"),
            registry=registry,
        )
        self._refused = Counter(
            "ondol_writes_refused_total",
            "Ends of attempts that the fence refused: the job was cancelled, or taken over by a newer attempt.",
            registry=registry,
        )

    def claimed(self, kind: str, queue: str, num: int = 1) -> None:
        """So many jobs of one message were claimed; `queue` is their class, or `fine-tune`."""
        self._claimed.labels(kind, queue).inc(num)

    def refused(self, kind: str, num: int = 1) -> None:
        """So many ends were refused by the fence."""
        if num:
            self._refused.inc(num)
            self.ended(kind, "stale", num)


class StageMetrics:
    """Where the time of jobs and calls goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stages = BatchHistogram(
            "ondol_stage_seconds",
            "Seconds of each job or call in a stage: queue_wait, load, tokenize, forward, train; store is one value "
            "a message.",
            ("stage", "work"),
            bounds=STAGE_BOUNDS_S,
            registry=registry,
        )

    def took(self, stage: str, work: str, seconds: Iterable[float]) -> None:
        """Values of one stage; `work` is `job` or `call`."""
        self._stages.observe(seconds, stage, work)


class NoticeMetrics:
    """Telling outside how jobs ended; of the processes that deliver notices.

    A deliverer calls `tried(channel, outcome)` once a try, after what came of it is committed.
    """

    OUTCOMES = ("accepted", "put_off", "given_up")

    def __init__(self, registry: CollectorRegistry, *channels: str) -> None:
        self._tries = Counter(
            "ondol_notice_tries_total",
            "Tries to tell of a job's end: accepted, put_off (tried again later), given_up, overtaken (a later try "
            "counts).",
            ("channel", "outcome"),
            registry=registry,
        )
        for channel in channels:
            for outcome in self.OUTCOMES:  # an alert on given_up needs the series before the first one
                self._tries.labels(channel, outcome)

    def tried(self, channel: str, outcome: str) -> None:
        """One try on `webhook` or `celery` had this outcome."""
        self._tries.labels(channel, outcome).inc()
