"""The reconciler's process: `python -m ondol.control.reconciler_main`."""

from __future__ import annotations

import signal
import sys
import threading

import structlog

from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus
from ondol.contract.errors import DatabaseUnavailable, OndolError
from ondol.contract.kinds import JobKind
from ondol.control.heartbeat import Heartbeat
from ondol.control.measuring import measured
from ondol.control.purging import DAY_S, retention_of
from ondol.control.reconciler import Reconciler, ReconcilerLimits
from ondol.control.ringer import Ringer, window_limits
from ondol.logs import configure_logging
from ondol.metrics.roles import ReconcilerMetrics
from ondol.metrics.server import serve_metrics
from ondol.metrics.system import SystemMetrics
from ondol.settings import ReconcilerSettings, load_settings
from ondol.sql.database import Database
from ondol.sql.measures import Measures

log = structlog.get_logger(__name__)


def run_reconciler(settings: ReconcilerSettings, stopping: threading.Event) -> None:
    """Tick until told to stop; an outage of SQL or Redis is waited out."""
    redis_url = settings.resolved_redis_url()
    database = Database(settings.resolved_database_url())
    metrics = ReconcilerMetrics(JobKind)
    ringer = Ringer(database, Publisher(redis_url), window_limits(settings), metrics=metrics.ring)
    wake = WakeBus(redis_url)
    reconciler = Reconciler(
        database=database,
        redis_url=redis_url,
        ringer=ringer,
        wake=wake,
        limits=ReconcilerLimits(
            rung_unclaimed_s=settings.rung_unclaimed_s,
            leader_lease_s=settings.leader_lease_s,
            session_lease_s=settings.lease_s,
            dead_letters_s=settings.keep_dead_letters_days * DAY_S or None,
        ),
        metrics=metrics,
        retention=retention_of(settings),
    )
    metrics.clock.watch(lambda: database.clock.ahead_s)
    SystemMetrics(metrics.registry, lambda: _look(database, reconciler))
    heartbeat = Heartbeat(settings.run_dir, "reconciler")
    try:
        with serve_metrics(settings, metrics.registry):
            while not stopping.is_set():
                heartbeat.beat()
                try:
                    reconciler.tick()
                except DatabaseUnavailable as exc:
                    log.warning("reconciler.database_unavailable", reason=exc.message)
                stopping.wait(settings.tick_s)
    finally:
        reconciler.close()
        ringer.close()
        wake.close()
        database.close()


def _look(database: Database, reconciler: Reconciler) -> Measures | None:
    """The state of the system; only the acting reconciler tells it, and nobody while SQL is away."""
    return measured(database) if reconciler.is_leader else None


def main() -> int:
    """Run until SIGTERM or SIGINT; exit code 0."""
    settings = load_settings(ReconcilerSettings)
    configure_logging(settings.log_level, settings.log_format, process="reconciler")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        run_reconciler(settings, stopping)
    except OndolError as exc:
        sys.stderr.write(f"reconciler: {exc.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
