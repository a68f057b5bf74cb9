"""What only fine-tune jobs answer: pause, resume, checkpoints."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import openapi_parts as docs
from api.job_routes import change_job, check_job_id, json_response
from api.services import CallerDep, ServicesDep
from ondol.sql.records import CheckpointRecord, JobRecord
from ondol.sql.unit_of_work import UnitOfWork

router = APIRouter(prefix="/v1/jobs", tags=["fine-tune jobs"])


@router.post("/{job_id}/pause", responses=docs.job_responses(200))
async def pause_job(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Ask a fine-tune that trains to stop at its next checkpoint and free the device; 409 unless it trains.

    The job is `paused` once the checkpoint is committed; until then `pause_requested_at` says that it was asked.
    """
    check_job_id(job_id)

    def pause(uow: UnitOfWork) -> JobRecord:
        uow.after_commit(lambda: services.wake.strike([job_id]))
        return uow.training.request_pause(job_id, caller.project_id)

    return await change_job(request, services, caller, pause)


@router.post("/{job_id}/resume", responses=docs.job_responses(200))
async def resume_job(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Queue a paused fine-tune again, to go on from its last checkpoint; 409 if it is not paused."""
    check_job_id(job_id)

    def resume(uow: UnitOfWork) -> JobRecord:
        uow.after_commit(services.ringer.ring_soon)
        uow.after_commit(lambda: services.wake.wake([job_id]))
        return uow.training.resume(job_id, caller.project_id)

    return await change_job(request, services, caller, resume)


@router.get("/{job_id}/checkpoints", responses=docs.CHECKPOINT_RESPONSES)
async def list_checkpoints(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Committed checkpoints of a fine-tune, newest first."""
    check_job_id(job_id)

    def read(uow: UnitOfWork) -> list[CheckpointRecord]:
        uow.jobs.get(job_id, caller.project_id)
        return uow.checkpoints.of(job_id)

    found = await services.database.read(read)
    return json_response({"object": "list", "data": [_checkpoint_json(one) for one in found], "has_more": False})


def _checkpoint_json(record: CheckpointRecord) -> dict[str, Any]:
    return {
        "object": "job.checkpoint",
        "job_id": record.job_id,
        "step": record.step,
        "attempt": record.attempt,
        "metrics": record.metrics,
        "is_best": record.is_best,
        "size_bytes": record.size_bytes,
        "created_at": record.created_at,
    }
