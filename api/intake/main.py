"""The intake: a Celery node of its own for what producers send. `python -m api.intake.main`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading

import structlog
from celery import Celery
from celery.signals import heartbeat_sent, worker_ready, worker_shutting_down
from celery.worker import state

from api.admission import Admission, queue_limits
from api.database import AsyncDatabase
from api.intake.answering import Answerer, AnswerLimits
from api.intake.node import Node, putting_aside
from api.intake.receiving import IntakeServices, Receiver
from api.intake.results import ProducerResults
from api.model_lookup import ModelLookup
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from ondol.broker.celery_app import PRODUCER_QUEUES, make_intake_app
from ondol.broker.dead_letters import DeadLetters
from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus
from ondol.contract.errors import OndolError
from ondol.control.heartbeat import Heartbeat
from ondol.control.ringer import Ringer, window_limits
from ondol.logs import configure_logging
from ondol.metrics.roles import IntakeMetrics
from ondol.metrics.server import serve_metrics
from ondol.settings import EXIT_WRONG_USE, IntakeSettings, load_settings
from ondol.sql.database import Database

CONCURRENCY = 16
"""Messages that one intake records at a time, and the most that it holds unacknowledged."""
GRACE_S = 8.0
_BYTES_A_KB = 1024

log = structlog.get_logger(__name__)


class IntakeProcess:
    """Builds every part of an intake, runs it, and takes it down in order."""

    def __init__(self, settings: IntakeSettings, redis_url: str) -> None:
        self._heartbeat = Heartbeat(settings.run_dir, "intake")
        self._database = Database(settings.resolved_database_url())
        self._wake = WakeBus(redis_url)
        self._metrics = IntakeMetrics()
        self._metrics.clock.watch(lambda: self._database.clock.ahead_s)
        self._name = f"intake@{socket.gethostname()}"
        self._letters = DeadLetters(redis_url, by=self._name, count=self._metrics.letters.put_aside)
        self._settings = settings
        self._ringer = Ringer(self._database, Publisher(redis_url), window_limits(settings), metrics=self._metrics.ring)
        self._app: Celery = make_intake_app(redis_url, result_s=settings.producer_result_s)
        self._results = ProducerResults(self._app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="intake-loop", daemon=True)
        self._async_database = AsyncDatabase(self._database)
        self._stopping = asyncio.Event()
        services = IntakeServices(
            settings=settings,
            database=self._async_database,
            models=ModelLookup(self._async_database),
            admission=Admission(self._async_database, queue_limits(settings), counts=self._metrics.accept),
            ringer=self._ringer,
            wake=self._wake,
            results=self._results,
            revoked=state.revoked,
            stopping=self._stopping,
        )
        self._node = Node(Receiver(services), self._results, self._loop)
        self._answerer = Answerer(
            database=self._database,
            blobs=ResultBlobs(settings.resolved_store_url()),
            inputs=InputBlobs(settings.resolved_store_url()),
            results=self._results,
            redis_url=redis_url,
            limits=AnswerLimits(
                settings.producer_result_kb * _BYTES_A_KB, api_url=str(settings.public_url or "").rstrip("/")
            ),
            metrics=self._metrics.notices,
        )

    def run(self) -> int:
        """Take messages and answer them until SIGTERM or SIGINT, on this (the main) thread; the exit code."""
        with serve_metrics(self._settings, self._metrics.registry):
            return self._run()

    def _run(self) -> int:
        self._node.register(self._app)
        self._thread.start()
        self._answerer.start()
        worker_ready.connect(_say_up, weak=False)
        heartbeat_sent.connect(self._beat, weak=False)
        worker_shutting_down.connect(self._begin_to_stop, weak=False)
        worker = self._app.Worker(
            hostname=self._name,
            pool="threads",
            concurrency=CONCURRENCY,
            queues=list(PRODUCER_QUEUES),
            consumer_cls=putting_aside(self._letters),
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            optimization="fair",
        )
        worker.start()
        self._take_down()
        return int(worker.exitcode or 0)

    def _begin_to_stop(self, **_: object) -> None:
        """Runs inside Celery's signal handler: who waits for an outage to pass gives its message back."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._answerer.begin_to_stop()
        limit = threading.Timer(GRACE_S, _exit_hard)
        limit.daemon = True
        limit.start()

    def _beat(self, **_: object) -> None:
        """Every two seconds from Celery's own loop, as long as it reaches Redis: the health check looks for it."""
        self._heartbeat.beat()

    def _take_down(self) -> None:
        self._answerer.stop()
        self._ringer.close()
        asyncio.run_coroutine_threadsafe(self._async_database.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._letters.close()
        self._wake.close()
        self._app.close()
        log.info("intake.down")


def main() -> int:
    """Run until SIGTERM or SIGINT; exits 2 on a bad setting."""
    settings = load_settings(IntakeSettings)
    configure_logging(settings.log_level, settings.log_format, process="intake")
    try:
        redis_url = settings.resolved_redis_url()
    except OndolError as exc:
        sys.stderr.write(exc.message + "\n")
        return EXIT_WRONG_USE
    try:
        return IntakeProcess(settings, redis_url).run()
    except OndolError as exc:
        sys.stderr.write(f"intake: {exc.message}\n")
        return 1


def _say_up(**_: object) -> None:
    log.info("intake.up", queues=PRODUCER_QUEUES)


def _exit_hard() -> None:
    """The grace is over: unacknowledged messages go to another intake, or to this one's next life."""
    log.error("intake.grace_over")
    os._exit(70)


if __name__ == "__main__":
    sys.exit(main())
