"""A worker's process: Celery in front, one device process behind; no torch in here. `workers.main` starts it."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from models_store.cache import LocalCache
from models_store.file_blobs import FileBlobs
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from models_store.store import ModelStore
from ondol.broker.call_worker import CallTaker, ReplySender
from ondol.broker.dead_letters import DeadLetters
from ondol.broker.publisher import Publisher
from ondol.broker.wake import StrikeListener, WakeBus
from ondol.contract.devices import count_cpu_devices
from ondol.contract.errors import NotReady, OndolError
from ondol.contract.frames import Header
from ondol.contract.states import Priority
from ondol.control.repairs import count_repair
from ondol.control.ringer import Ringer, window_limits
from ondol.logs import configure_logging
from ondol.metrics.roles import WorkerMetrics
from ondol.metrics.server import serve_metrics
from ondol.settings import WorkerSettings
from ondol.sql.database import Database
from ondol.sql.sessions import INFER
from workers.batcher import Batcher
from workers.call_loop import CallLoop
from workers.child_environment import log_environment
from workers.claims import ClaimAudit, Claims
from workers.consuming import consume, queues_of
from workers.device_keeper import DeviceKeeper, DeviceProgram
from workers.device_lock import hold_device
from workers.dispatcher import Dispatcher
from workers.follower import AliasFollower
from workers.handler import HandlerDeps, handle
from workers.hearing import Hearing
from workers.import_job import ImportRunner
from workers.in_flight import InFlight
from workers.memory import cpu_pool_bytes, resident_bytes
from workers.model_library import ModelLibrary
from workers.own_cores import keep_to_cores
from workers.preload import Preloader
from workers.serving_gate import ServingGate
from workers.session import SessionKeeper, WorkerIdentity
from workers.sharding.planner import ShardPlanner
from workers.stopping import StopRequest
from workers.warm_models import WarmModels
from workers.work_watch import WorkWatch, watch_of_node

log = structlog.get_logger(__name__)

_GIB = 1024**3
_MIB = 1024**2
_DEVICE_UP_LIMIT_S = 120.0
_STOP_LOOK_S = 0.1
_DEVICE_DOWN_LIMIT_S = 20.0
"""Longer than a device process takes to start anew: then this worker has no device, and others run what it holds."""
_CALL_BUDGETS = 16

MakeProgram = Callable[[WorkerSettings, tuple[int, ...]], DeviceProgram]


def device_program(settings: WorkerSettings, cores: tuple[int, ...]) -> DeviceProgram:
    """The product's device process with this worker's share of the host."""
    return DeviceProgram((sys.executable, "-m", "workers.device", *device_arguments(settings, cores)))


def device_arguments(settings: WorkerSettings, cores: tuple[int, ...]) -> tuple[str, ...]:
    """What every device program is told."""
    return (
        *("--device", settings.device),
        *("--cores", ",".join(map(str, cores))),
        *("--threads", str(settings.threads or len(cores))),
        *_memory_arguments(settings),
        *("--batch-tokens", str(settings.resolved_max_batch_tokens())),
        *(("--measure-budget",) if settings.max_batch_tokens is None else ()),
        *("--engine", settings.engine, "--engine-cache", str(settings.data_dir / "openvino")),
    )


def check_engine(settings: WorkerSettings) -> None:
    """NotReady when the settings ask for an engine that cannot run here."""
    if settings.engine != "openvino":
        return
    if settings.device.startswith("cuda:"):
        raise NotReady(f"ONDOL_ENGINE=openvino runs on CPU devices only, not on {settings.device}; use auto or torch")
    if importlib.util.find_spec("openvino") is None:
        raise NotReady("ONDOL_ENGINE=openvino, but OpenVINO is not installed; run: pip install 'ondol[openvino]'")


class WorkerProcess:
    """Builds every part of a worker, starts it, and takes it down in order."""

    _session: SessionKeeper

    def __init__(self, settings: WorkerSettings, make_program: MakeProgram, stop: StopRequest) -> None:
        check_engine(settings)
        self._stop = stop
        self._settings = settings
        self._stopping = threading.Event()
        self._host = socket.gethostname()
        self.name = f"{settings.device.replace(':', '')}@{self._host}"
        cores = settings.cores or tuple(sorted(os.sched_getaffinity(0)))
        keep_to_cores(cores)
        lock_fd = hold_device(settings.run_dir, self.name, settings.device)
        program = make_program(settings, cores)
        self._redis_url = settings.resolved_redis_url()
        self._database = Database(settings.resolved_database_url())
        self._wake = WakeBus(self._redis_url)
        self._metrics = WorkerMetrics()
        self._letters = DeadLetters(self._redis_url, by=self.name, count=self._metrics.letters.put_aside)
        self._ringer = self._make_ringer()
        budget = settings.resolved_max_batch_tokens()
        self._batcher = Batcher(max_batch_tokens=budget)
        self._gate = ServingGate(settings.run_dir / f"gate-{settings.device.replace(':', '')}")
        self._in_flight = InFlight(self._gate)
        self._warm = WarmModels(self._batcher, on_change=self._renew_soon, on_switched=self._engine_switched)
        self._keeper = DeviceKeeper(
            DeviceProgram(program.argv, program.environment | log_environment(settings), (*program.keep_fds, lock_fd)),
            forward_limit_s=settings.forward_limit_s,
            forward_stall_s=settings.forward_stall_s,
            on_up=self._device_up,
            on_down=self._device_down,
            on_over_limit=lambda: count_repair(self._database, "forward_over_limit"),
        )
        store = ModelStore(settings.resolved_store_url())
        self._library = ModelLibrary(
            database=self._database,
            store=store,
            cache=LocalCache(settings.data_dir / "cache", int(settings.cache_max_gb * _GIB)),
            keeper=self._keeper,
            default_dtype=settings.dtype,
            on_loaded=self._warm.loaded,
        )
        self._preloader = Preloader(self._database, self._library, settings.models)
        self._follower = self._make_follower()
        self._dispatcher = Dispatcher(self._batcher, self._keeper, on_ran=self._warm.ran, metrics=self._metrics.batches)
        self._calls = self._make_calls(budget)
        self._strikes = StrikeListener(self._redis_url, self._in_flight.strike)
        self._importer = ImportRunner(
            database=self._database,
            store=store,
            library=self._library,
            wake=self._wake,
            staging=settings.data_dir / "staging" / self.name,
            worker=self.name,
        )
        self._inputs = InputBlobs(settings.resolved_store_url())
        self._planner = self._make_planner()
        self._claims = Claims()
        self._queues = queues_of(self.name, Priority)
        self._hearing = Hearing()
        self._watch = self._make_watch()
        self._device_down_at: float | None = None
        self._memory_bytes: int | None = None

    def run(self) -> int:
        """Work until told to stop; the exit code."""
        self._metrics.device.watch(
            is_up=lambda: self._keeper.is_up,
            num_waiting_tokens=lambda: self._batcher.num_waiting_tokens,
            used_bytes=self._warm.used_bytes,
            warm=self._warm.refs,
        )
        self._metrics.clock.watch(lambda: self._database.clock.ahead_s)
        with serve_metrics(self._settings, self._metrics.registry):
            return self._run()

    def _run(self) -> int:
        self._keeper.start()
        if not self._wait_for_device():
            if self._stop.is_made:
                return self._give_up()
            raise NotReady(f"the device process of {self._settings.device} did not start; see the log above")
        self._session = self._make_session()
        self._session.start()
        self._gate.start()
        self._dispatcher.start()
        self._strikes.start()
        self._calls.start()
        audit = ClaimAudit(self._database, self._session, self._claims)
        audit.start()
        self._watch.start()
        self._preloader.start()
        self._follower.start()
        log.info("worker.up", worker=self.name, resident_mb=resident_bytes() // _MIB)
        code = self._consume()
        audit.stop()
        self._watch.stop()
        self._take_down()
        return code

    def _wait_for_device(self) -> bool:
        """Whether the device process is up, looked at until it is, or the time is over, or nobody wants it any more."""
        until = time.monotonic() + _DEVICE_UP_LIMIT_S
        while not self._stop.is_made and time.monotonic() < until:
            if self._keeper.wait_up(_STOP_LOOK_S):
                return True
        return False

    def _give_up(self) -> int:
        """Asked to stop before there was a session: nothing is held yet."""
        self._keeper.stop()
        self._ringer.close()
        self._letters.close()
        self._wake.close()
        self._database.close()
        log.info("worker.down", worker=self.name)
        return 0

    def _consume(self) -> int:
        """Celery's own worker, on this thread, until SIGTERM or SIGINT."""
        deps = HandlerDeps(
            database=self._database,
            library=self._library,
            batcher=self._batcher,
            session=self._session,
            in_flight=self._in_flight,
            claims=self._claims,
            ringer=self._ringer,
            wake=self._wake,
            blobs=ResultBlobs(self._settings.resolved_store_url()),
            inputs=self._inputs,
            importer=self._importer,
            planner=self._planner,
            stopping=self._stopping,
            worker=self.name,
            max_attempts=self._settings.max_attempts,
            metrics=self._metrics,
        )

        return consume(
            self._redis_url,
            name=self.name,
            queues=self._queues,
            concurrency=self._settings.handler_threads,
            handle=lambda message_id: handle(message_id, deps),
            begin_to_stop=self._begin_to_stop,
            hearing=self._hearing,
            letters=self._letters,
            stop=self._stop,
        )

    def _begin_to_stop(self, **_: object) -> None:
        """Runs inside Celery's signal handler: handlers stop waiting and hand their rows back."""
        self._stopping.set()
        self._session.renew_soon()
        self._watch.begin_to_stop()
        self._calls.begin_to_stop()
        self._strikes.begin_to_stop()
        self._follower.begin_to_stop()
        limit = threading.Timer(self._settings.grace_s, _exit_hard)
        limit.daemon = True
        limit.start()

    def _take_down(self) -> None:
        self._stopping.set()
        self._session.renew_soon()
        self._calls.stop(limit_s=self._settings.grace_s / 3)
        self._strikes.stop()
        self._gate.stop()
        self._dispatcher.stop()
        self._keeper.stop()
        self._calls.close()
        self._follower.stop()
        self._session.end(reason="stopped")
        self._ringer.close()
        self._letters.close()
        self._wake.close()
        self._database.close()
        log.info("worker.down", worker=self.name)

    def _device_up(self, ready: dict[str, Any]) -> None:
        self._library.device_kind = str(ready["device_kind"])
        self._library.device_dtypes = tuple(ready.get("dtypes") or ("float32",))
        self._device_down_at = None
        self._memory_bytes = int(ready.get("memory_bytes") or 0) or None
        self._preloader.device_up()
        self._metrics.device.device_up(ready)

    def _device_down(self) -> None:
        self._device_down_at = self._device_down_at or time.monotonic()
        self._warm.clear()
        if not self._stopping.is_set():
            self._metrics.device.restarts.inc()

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
            num_handlers=self._settings.handler_threads,
            role=INFER,
            unheard_s=self._settings.unheard_s,
            grace_s=self._settings.grace_s,
        )

    def _make_ringer(self) -> Ringer:
        limits = window_limits(self._settings)
        return Ringer(self._database, Publisher(self._redis_url), limits, metrics=self._metrics.ring)

    def _make_calls(self, budget: int) -> CallLoop:
        return CallLoop(
            taker=CallTaker(self._redis_url, self.name, letters=self._letters),
            replies=ReplySender(self._redis_url),
            library=self._library,
            batcher=self._batcher,
            in_flight=self._in_flight,
            max_open_tokens=budget * _CALL_BUDGETS,
            stages=self._metrics.stages,
        )

    def _make_planner(self) -> ShardPlanner:
        return ShardPlanner(
            database=self._database,
            files=FileBlobs(self._settings.resolved_store_url()),
            inputs=self._inputs,
            staging=self._settings.data_dir / "planning" / self.name,
            max_tokens=self._settings.message_tokens,
        )

    def _make_follower(self) -> AliasFollower:
        return AliasFollower(
            database=self._database,
            redis_url=self._redis_url,
            library=self._library,
            warm=self._warm,
            in_flight=self._in_flight,
            preloader=self._preloader,
        )

    def _has_device(self) -> bool:
        """Whether a device process is there or starting; False when none has come up for long."""
        down_at = self._device_down_at
        return down_at is None or time.monotonic() - down_at < _DEVICE_DOWN_LIMIT_S

    def _make_session(self) -> SessionKeeper:
        identity = WorkerIdentity(
            worker=self.name,
            device=self._settings.device,
            device_kind=self._library.device_kind,
            host=self._host,
            pid=os.getpid(),
            memory_bytes=self._memory_bytes,
        )
        return SessionKeeper(
            self._database,
            identity,
            lease_s=self._settings.lease_s,
            renew_s=self._settings.renew_s,
            is_ready=lambda: self._watch.hears and not self._stopping.is_set(),
            warm=self._warm.refs,
            on_lost=self._lease_lost,
            has_device=self._has_device,
        )

    def _engine_switched(self, key: str, switched: Header) -> None:
        self._library.record_engine(key, switched)

    def _renew_soon(self) -> None:
        self._session.renew_soon()

    def _lease_lost(self) -> None:
        """Drop every claim; the process and its warm models stay."""
        self._in_flight.strike_leased()


def run_worker(settings: WorkerSettings, stop: StopRequest, make_program: MakeProgram = device_program) -> int:
    """One worker's life until SIGTERM or SIGINT; `stop` listens already, `make_program` chooses the device program."""
    configure_logging(settings.log_level, settings.log_format, process=f"worker-{settings.device.replace(':', '')}")
    try:
        return WorkerProcess(settings, make_program, stop).run()
    except OndolError as exc:
        sys.stderr.write(f"worker: {exc.message}\n")
        return 1


def _memory_arguments(settings: WorkerSettings) -> tuple[str, ...]:
    """The bound of the warm pool; nothing for a GPU without a setting, whose device process measures it."""
    memory_mb = settings.device_memory_mb
    if memory_mb is None and settings.device.startswith("cuda:"):
        return ()
    return ("--memory-mb", str(memory_mb or cpu_pool_bytes(count_cpu_devices(settings.devices)) // _MIB))


def _exit_hard() -> None:
    """The grace is over: what is still held comes back by its lapsed lease."""
    log.error("worker.grace_over")
    os._exit(70)
