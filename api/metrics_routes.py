"""`/metrics`: what this process counts, and the state of the whole system, in Prometheus' text format. No key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from api import openapi_parts as docs
from api.services import ServicesDep
from api.threads import in_check
from ondol.contract.errors import NotFound

router = APIRouter(tags=["health"])


@router.get("/metrics", responses=docs.METRICS_RESPONSES)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Counters and gauges for Prometheus; 404 where the setting `metrics` is off."""
    if not services.settings.metrics:
        raise NotFound(f"there is no route {request.url.path!r}", code="route_not_found")
    text = await in_check(lambda: generate_latest(services.metrics.registry))  # it may look into SQL
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)
