"""A trainer node's process: `python -m workers.training.main`. Celery in front, one training child behind; no torch.

Two threads take messages: one lane checks files, the other trains, so that bad files are refused within seconds even
while a training runs for hours.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading

import structlog

from models_store.cache import LocalCache
from models_store.checkpoints import CheckpointStore
from models_store.file_blobs import FileBlobs
from models_store.store import ModelStore
from ondol.broker.dead_letters import DeadLetters
from ondol.broker.publisher import Publisher as MessagePublisher
from ondol.broker.wake import StrikeListener, WakeBus
from ondol.contract.errors import OndolError
from ondol.control.ringer import Ringer, window_limits
from ondol.logs import configure_logging
from ondol.metrics.roles import TrainerMetrics
from ondol.metrics.server import serve_metrics
from ondol.settings import TrainerSettings, load_settings
from ondol.sql.database import Database
from ondol.sql.sessions import TRAIN
from ondol.sql.training import CHECK_LANE, TRAIN_LANE
from workers.claims import ClaimAudit, Claims
from workers.consuming import consume, queues_of
from workers.device_lock import hold_device
from workers.hearing import Hearing
from workers.memory import resident_bytes
from workers.own_cores import keep_to_cores
from workers.session import SessionKeeper, WorkerIdentity
from workers.stopping import StopRequest
from workers.training.node import NodeDeps, NodeLimits, handle_training
from workers.training.publishing import Publisher
from workers.training.struck import StruckJobs
from workers.training.workspace import Host, Stores
from workers.work_watch import WorkWatch, watch_of_node

log = structlog.get_logger(__name__)

_GIB = 1024**3
LANES = (CHECK_LANE, TRAIN_LANE)
_HARD_EXIT_SLACK_S = 15.0


class TrainerProcess:
    """Builds every part of a trainer node, starts it, and takes it down in order."""

    def __init__(self, settings: TrainerSettings, stop: StopRequest) -> None:
        self._settings = settings
        self._stop = stop
        self._stopping = threading.Event()
        slug = settings.device.replace(":", "")
        self.name = f"train-{slug}@{socket.gethostname()}"
        cores = settings.cores or tuple(sorted(os.sched_getaffinity(0)))
        keep_to_cores(cores)
        self._lock_fd = hold_device(settings.run_dir, self.name, settings.device)
        redis_url = settings.resolved_redis_url()
        self._redis_url = redis_url
        self._database = Database(settings.resolved_database_url())
        self._wake = WakeBus(redis_url)
        self._metrics = TrainerMetrics()
        self._metrics.clock.watch(lambda: self._database.clock.ahead_s)
        self._letters = DeadLetters(redis_url, by=self.name, count=self._metrics.letters.put_aside)
        self._ringer = Ringer(
            self._database, MessagePublisher(redis_url), window_limits(settings), metrics=self._metrics.ring
        )
        store = ModelStore(settings.resolved_store_url())
        self._stores = Stores(
            database=self._database,
            models=store,
            cache=LocalCache(settings.data_dir / "cache", int(settings.cache_max_gb * _GIB)),
            files=FileBlobs(settings.resolved_store_url()),
            checkpoints=CheckpointStore(settings.resolved_store_url()),
        )
        self._publisher = Publisher(database=self._database, store=store, wake=self._wake, worker=self.name)
        self._struck = StruckJobs()
        self._strikes = StrikeListener(redis_url, self._struck.strike)
        self._claims = Claims()
        self._host = Host(
            device=settings.device,
            cores=cores,
            threads=settings.threads or len(cores),
            gate=settings.run_dir / f"gate-{slug}",
            lock_fd=self._lock_fd,
        )
        self._queues = queues_of(self.name, LANES)
        self._hearing = Hearing()
        self._watch = self._make_watch()
        self._session = self._make_session()
        self._root = settings.data_dir / "training" / self.name
        shutil.rmtree(self._root, ignore_errors=True)  # what attempts left that ended with their node

    def run(self) -> int:
        """Work until told to stop; the exit code."""
        with serve_metrics(self._settings, self._metrics.registry):
            return self._run()

    def _run(self) -> int:
        self._session.start()
        self._strikes.start()
        audit = ClaimAudit(self._database, self._session, self._claims)
        audit.start()
        self._watch.start()
        log.info("trainer.up", worker=self.name, resident_mb=resident_bytes() // 1024**2)
        code = self._consume()
        audit.stop()
        self._watch.stop()
        self._take_down()
        return code

    def _consume(self) -> int:
        """Celery's own worker, on this thread, until SIGTERM or SIGINT."""
        deps = self._deps()
        return consume(
            self._redis_url,
            name=self.name,
            queues=self._queues,
            concurrency=len(LANES),
            handle=lambda message_id: handle_training(message_id, deps),
            begin_to_stop=self._begin_to_stop,
            hearing=self._hearing,
            letters=self._letters,
            stop=self._stop,
        )

    def _deps(self) -> NodeDeps:
        settings = self._settings
        return NodeDeps(
            database=self._database,
            stores=self._stores,
            session=self._session,
            claims=self._claims,
            ringer=self._ringer,
            wake=self._wake,
            publisher=self._publisher,
            struck=self._struck,
            host=self._host,
            root=self._root,
            worker=self.name,
            limits=NodeLimits(
                max_attempts=settings.max_attempts,
                grace_s=settings.train_grace_s,
                check_limit_s=settings.check_limit_s,
                check_memory_mb=settings.check_memory_mb,
                train_stall_s=settings.train_stall_s,
            ),
            stopping=self._stopping,
            metrics=self._metrics,
        )

    def _begin_to_stop(self, **_: object) -> None:
        """Runs inside Celery's signal handler: the training writes a checkpoint, and the job is handed back."""
        self._stopping.set()
        self._session.renew_soon()
        self._watch.begin_to_stop()
        self._strikes.begin_to_stop()
        limit = threading.Timer(self._settings.train_grace_s + _HARD_EXIT_SLACK_S, _exit_hard)
        limit.daemon = True
        limit.start()

    def _take_down(self) -> None:
        self._stopping.set()
        self._strikes.stop()
        self._session.end(reason="stopped")
        self._ringer.close()
        self._letters.close()
        self._wake.close()
        self._database.close()
        os.close(self._lock_fd)
        log.info("trainer.down", worker=self.name)

    def _make_watch(self) -> WorkWatch:
        return watch_of_node(
            database=self._database,
            redis_url=self._redis_url,
            queues=self._queues,
            ringer=self._ringer,
            session=lambda: self._session,
            worker=self.name,
            hearing=self._hearing,
            claims=self._claims,
            num_handlers=len(LANES),
            role=TRAIN,
            unheard_s=self._settings.unheard_s,
            grace_s=self._settings.train_grace_s,
        )

    def _make_session(self) -> SessionKeeper:
        settings = self._settings
        identity = WorkerIdentity(
            worker=self.name,
            device=settings.device,
            device_kind=settings.device.partition(":")[0],
            host=socket.gethostname(),
            pid=os.getpid(),
            role=TRAIN,
        )
        return SessionKeeper(
            self._database,
            identity,
            lease_s=settings.lease_s,
            renew_s=settings.renew_s,
            is_ready=lambda: self._watch.hears and not self._stopping.is_set(),
            warm=list,
            on_lost=lambda: None,  # the supervisor looks at the lease and at SQL by itself
            may_be_late=True,
        )


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    stop = StopRequest.listen()
    settings = load_settings(TrainerSettings)
    slug = settings.device.replace(":", "")
    configure_logging(settings.log_level, settings.log_format, process=f"trainer-{slug}")
    try:
        return TrainerProcess(settings, stop).run()
    except OndolError as exc:
        sys.stderr.write(f"trainer: {exc.message}\n")
        return 1


def _exit_hard() -> None:
    """The grace is over: what is still held comes back by its lapsed lease."""
    log.error("trainer.grace_over")
    os._exit(70)


if __name__ == "__main__":
    sys.exit(main())
