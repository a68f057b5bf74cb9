"""The ringer: fills windows from the backlog and publishes what was chosen, from a thread of its own."""

from __future__ import annotations

import threading

import structlog
from prometheus_client import CollectorRegistry

from ondol.broker.publisher import Publisher
from ondol.contract.errors import DatabaseUnavailable
from ondol.metrics.jobs import RingMetrics
from ondol.settings import WindowSettings
from ondol.sql.database import Database
from ondol.sql.records import RungMessage
from ondol.sql.ringing import WindowLimits

log = structlog.get_logger(__name__)


def window_limits(settings: WindowSettings) -> WindowLimits:
    """The windows that the settings ask for."""
    return WindowLimits(
        messages=settings.window_messages,
        bulk_messages=settings.window_bulk_messages,
        message_jobs=settings.message_jobs,
        message_tokens=settings.message_tokens,
    )


class Ringer:
    """Rings when told that something may have changed; requests that come while it rings are one request."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        limits: WindowLimits,
        *,
        metrics: RingMetrics | None = None,
    ) -> None:
        self._metrics = metrics or RingMetrics(CollectorRegistry())
        self._database = database
        self._publisher = publisher
        self._limits = limits
        self._wanted = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="ringer", daemon=True)
        self._thread.start()

    def ring_soon(self) -> None:
        """Ask for a round; returns at once. Lost in a crash: the reconciler rings."""
        self._wanted.set()

    def ring(self) -> list[RungMessage]:
        """One round on the calling thread: choose and commit, then publish. DatabaseUnavailable if SQL is away."""
        chosen = self._database.write(lambda uow: uow.ringing.choose(self._limits))
        for message in chosen:
            is_published = self._publisher.publish(
                message.id,
                worker=message.worker,
                priority=message.priority,
                kind=message.kind,
                jobs=message.jobs,
            )
            self._metrics.rung(message.kind, len(message.jobs), is_published=is_published)
        return chosen

    def close(self) -> None:
        """Stop after the present round."""
        self._stopping = True
        self._wanted.set()
        self._thread.join(timeout=20)
        self._publisher.close()

    def _loop(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._stopping:
                return
            try:
                self.ring()
            except DatabaseUnavailable as exc:
                log.warning("ring.database_unavailable", reason=exc.message)
            except (
                Exception
            ):  # the thread's edge: the reconciler rings what this round did not, the next round is tried
                log.exception("ring.failed")
