"""The api process: reads its settings, builds the parts, serves until SIGTERM. `python -m api.main`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from api.admission import Admission, queue_limits
from api.app import Lifespan, create_app
from api.auth import Authenticator
from api.call_room import CallRoom
from api.connections import allow_open_files, leave_the_gone
from api.database import READ_THREADS, AsyncDatabase
from api.event_streams import EventStreams
from api.flower_address import FlowerAddress
from api.housekeeping import Housekeeping
from api.model_lookup import ModelLookup
from api.readiness import ReadinessProbe
from api.request_body import Bodies
from api.services import BYTES_A_MB, Services
from api.usage_meter import UsageMeter
from api.webhooks.addresses import SystemResolver
from api.webhooks.deliverer import WebhookDeliverer
from api.webhooks.sender import Sender
from api.worker_choice import WorkerChooser
from models_store.checkpoints import CheckpointStore
from models_store.file_blobs import FileBlobs
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from models_store.store import ModelStore
from ondol.broker.calls import CallSender
from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus, WakeListener
from ondol.contract.errors import OndolError
from ondol.contract.ids import new_id
from ondol.control.measuring import measured
from ondol.control.ringer import Ringer, window_limits
from ondol.logs import configure_logging
from ondol.metrics.roles import ApiMetrics
from ondol.metrics.system import SystemMetrics
from ondol.settings import EXIT_WRONG_USE, ApiSettings, load_settings
from ondol.sql.database import Database

GRACE_S = 8
"""Time for running requests to end after SIGTERM; shorter than what `ondol up` gives each process."""
KEEP_ALIVE_S = 30
BACKLOG = 2048

log = structlog.get_logger(__name__)


def main() -> None:
    """Serve; exits 0 after SIGTERM or Ctrl-C, 2 on a bad setting."""
    settings = load_settings(ApiSettings)
    configure_logging(settings.log_level, settings.log_format, process="api")
    try:
        redis_url = settings.resolved_redis_url()
    except OndolError as exc:
        sys.stderr.write(exc.message + "\n")
        raise SystemExit(EXIT_WRONG_USE) from None
    metrics = ApiMetrics()
    app = create_app(make_lifespan(settings, redis_url, metrics), metrics)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        backlog=BACKLOG,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    allow_open_files(settings.max_event_streams)
    server = ApiServer(config, on_stop=lambda: _tell_to_stop(app), client_gone_s=settings.client_gone_s)
    server.run()
    raise SystemExit(0 if server.started else 1)


class ApiServer(uvicorn.Server):
    """A server that tells its long answers when it is to stop, and whose process exits 0 after a signal."""

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None], client_gone_s: float) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._client_gone_s = client_gone_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is the library's
        """Stop; a second Ctrl-C stops at once. The signal is not raised again, so the exit code stays 0."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
            return
        self.should_exit = True
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, then say where."""
        await super().startup(sockets)
        listening = [sock for server in self.servers for sock in server.sockets]
        leave_the_gone(listening, self._client_gone_s)
        for listener in listening:
            log.info("api.listening", address=listener.getsockname()[:2])


def make_lifespan(settings: ApiSettings, redis_url: str, metrics: ApiMetrics) -> Lifespan:
    """What builds the services before the first request and takes them down after the last."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = build_services(settings, redis_url, metrics)
        housekeeping = Housekeeping(services)
        webhooks = build_deliverer(services)
        app.state.services = services
        await services.listener.start()
        await services.sender.start()
        services.usage.start()
        housekeeping.start()
        webhooks.start()
        try:
            yield
        finally:
            services.stopping.set()
            await webhooks.stop()
            await housekeeping.stop()
            await _take_down(services)

    return lifespan


def build_services(settings: ApiSettings, redis_url: str, metrics: ApiMetrics) -> Services:
    """The parts of this process, wired; threads start, nothing is asked of any server yet."""
    sync = Database(settings.resolved_database_url(), pool_size=READ_THREADS)
    database = AsyncDatabase(sync, limit_s=settings.database_limit_s)
    sender = CallSender(redis_url, new_id("api"))
    metrics.clock.watch(lambda: sync.clock.ahead_s)
    streams = EventStreams(most=settings.max_event_streams, most_of_project=settings.project_max_event_streams)
    bodies = Bodies(max_bytes=settings.max_body_mb * BYTES_A_MB, max_all_bytes=settings.max_bodies_mb * BYTES_A_MB)
    metrics.watch(num_streams=lambda: streams.num_open, num_body_bytes=lambda: bodies.num_bytes)
    return Services(
        settings=settings,
        database=database,
        auth=Authenticator(database, settings.auth),
        models=ModelLookup(database),
        admission=Admission(database, queue_limits(settings), counts=metrics.accept),
        workers=WorkerChooser(database, device=settings.device_for_calls, in_flight=sender.in_flight),
        usage=UsageMeter(database.without_limit()),
        readiness=ReadinessProbe(sync, redis_url),
        ringer=Ringer(sync, Publisher(redis_url), window_limits(settings), metrics=metrics.ring),
        wake=WakeBus(redis_url),
        listener=WakeListener(redis_url),
        sender=sender,
        blobs=ResultBlobs(settings.resolved_store_url()),
        inputs=InputBlobs(settings.resolved_store_url()),
        checkpoints=CheckpointStore(settings.resolved_store_url()),
        files=FileBlobs(settings.resolved_store_url()),
        store=ModelStore(settings.resolved_store_url()),
        flower=FlowerAddress(settings.flower_url, settings.run_dir / "flower.url"),
        metrics=metrics,
        streams=streams,
        bodies=bodies,
        calls=CallRoom(most=settings.max_calls_waiting, most_of_project=settings.project_max_calls_waiting),
        system=SystemMetrics(metrics.registry, lambda: measured(sync)),
    )


def build_deliverer(services: Services) -> WebhookDeliverer:
    """What tells webhooks; it finds receivers by the machine's own resolver."""
    settings = services.settings
    sender = Sender(SystemResolver(), networks=settings.webhook_networks, timeout_s=settings.webhook_timeout_s)
    return WebhookDeliverer(
        services.database.without_limit(),
        services.listener,
        sender,
        settings,
        metrics=services.metrics.notices,
        flower=services.flower,
    )


async def _take_down(services: Services) -> None:
    await services.background.stop()
    await services.sender.stop()
    await services.listener.stop()
    await services.usage.stop()
    await asyncio.to_thread(services.ringer.close)
    await asyncio.to_thread(services.wake.close)
    await services.database.close()
    log.info("api.stopped")


def _tell_to_stop(app: FastAPI) -> None:
    services = getattr(app.state, "services", None)
    if isinstance(services, Services):
        # A signal handler runs between two bytecodes of the loop's own thread: only waking it is safe.
        services.loop.call_soon_threadsafe(services.stopping.set)


if __name__ == "__main__":
    main()
