"""What routes work with: built once in `api/main.py`, reached through the request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from api.admission import Admission
from api.auth import Authenticator, Caller
from api.background import Background
from api.call_room import CallRoom
from api.database import AsyncDatabase
from api.event_streams import EventStreams
from api.flower_address import FlowerAddress
from api.model_lookup import ModelLookup
from api.readiness import ReadinessProbe
from api.request_body import Bodies
from api.submission import input_limits
from api.usage_meter import UsageMeter
from api.worker_choice import WorkerChooser
from models_store.checkpoints import CheckpointStore
from models_store.file_blobs import FileBlobs
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from models_store.store import ModelStore
from ondol.broker.calls import CallSender
from ondol.broker.wake import WakeBus, WakeListener
from ondol.contract.jobs import InputLimits
from ondol.control.ringer import Ringer
from ondol.metrics.roles import ApiMetrics
from ondol.metrics.system import SystemMetrics
from ondol.settings import ApiSettings

BYTES_A_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one api process. `stopping` is set when it was told to stop: long answers end then."""

    settings: ApiSettings
    database: AsyncDatabase
    auth: Authenticator
    models: ModelLookup
    admission: Admission
    workers: WorkerChooser
    usage: UsageMeter
    readiness: ReadinessProbe
    ringer: Ringer
    wake: WakeBus
    listener: WakeListener
    sender: CallSender
    blobs: ResultBlobs
    inputs: InputBlobs
    checkpoints: CheckpointStore
    files: FileBlobs
    store: ModelStore
    metrics: ApiMetrics
    system: SystemMetrics
    flower: FlowerAddress
    streams: EventStreams
    bodies: Bodies
    calls: CallRoom
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    background: Background = field(default_factory=Background)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def limits(self) -> InputLimits:
        """How much one job may carry."""
        return input_limits(self.settings)


async def services_of(request: Request) -> Services:
    """The services of the process that serves this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def caller_of(request: Request, services: Annotated[Services, Depends(services_of)]) -> Caller:
    """Who asks; NotAuthenticated if nobody that we know, NotPermitted for other sites' pages where none is needed."""
    headers = request.headers
    return await services.auth.caller(
        headers.get("authorization"), host=headers.get("host"), origin=headers.get("origin")
    )


ServicesDep = Annotated[Services, Depends(services_of)]
CallerDep = Annotated[Caller, Depends(caller_of)]
