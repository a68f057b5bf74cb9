"""`/livez` and `/readyz` for supervisors, `/v1/workers` for people: is it alive, can it admit work, who serves."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Depends
from starlette.responses import Response

from api import openapi_parts as docs
from api.job_routes import json_response
from api.services import ServicesDep, caller_of

router = APIRouter(tags=["health"])


@router.get("/livez", responses=docs.HEALTH_RESPONSES)
async def livez() -> Response:
    """Whether the process turns."""
    return json_response({"status": "ok"})


@router.get("/readyz", responses=docs.READY_RESPONSES)
async def readyz(services: ServicesDep) -> Response:
    """Whether work can be admitted now; the body says which part fails. Without a reconciler it can all the same."""
    failing = await services.readiness.check()
    if services.stopping.is_set():
        failing["process"] = "it is stopping"
    is_ready = not any(failing.values())
    if is_ready:
        failing |= await services.readiness.troubles()
    checks = {name: {"ok": reason is None, "reason": reason} for name, reason in failing.items()}
    body = orjson.dumps({"status": "ready" if is_ready else "not_ready", "checks": checks})
    headers = {} if is_ready else {"retry-after": "1"}
    return Response(body, 200 if is_ready else 503, headers, media_type="application/json")


@router.get("/v1/workers", dependencies=[Depends(caller_of)], responses=docs.WORKER_RESPONSES)
async def list_workers(services: ServicesDep) -> Response:
    """Workers whose lease runs, with what they hold warm."""
    sessions = await services.database.read(lambda uow: uow.sessions.open_sessions())
    data: list[dict[str, Any]] = [
        {
            "object": "worker",
            "id": s.id,
            "worker": s.worker,
            "device": s.device,
            "device_kind": s.device_kind,
            "role": s.role,
            "is_ready": s.is_ready,
            "warm": list(s.warm),
            "expires_at": s.expires_at,
        }
        for s in sessions
    ]
    return json_response({"object": "list", "data": data})
