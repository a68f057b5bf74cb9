"""Webhooks: what was told of a job's ends, telling it again, and the secret that signs it."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.job_routes import check_job_id, json_response
from api.services import CallerDep, ServicesDep
from api.webhooks import openapi as docs
from ondol.contract.errors import NotFound
from ondol.sql.notices import NoticeRecord, NoticeStatus
from ondol.sql.unit_of_work import UnitOfWork

_NO_STORE = "no-store"
_NOTICE_ID = re.compile(r"[a-z]{1,8}_[0-9a-z]{26}")

router = APIRouter()


@router.get("/v1/jobs/{job_id}/notices", tags=["jobs"], responses=docs.NOTICE_LIST_RESPONSES)
async def list_notices(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Who is told of the job's ends, and how that goes; empty for a job that nobody wants to be told of."""
    check_job_id(job_id)

    def look(uow: UnitOfWork) -> list[NoticeRecord]:
        uow.jobs.get(job_id, caller.project_id)
        return uow.notices.of(job_id)

    found = await services.database.read(look)
    return json_response({"object": "list", "data": [notice_json(notice) for notice in found]})


@router.post(
    "/v1/jobs/{job_id}/notices/{notice_id}/redeliver",
    status_code=202,
    tags=["jobs"],
    responses=docs.NOTICE_RESPONSES,
)
async def redeliver(job_id: str, notice_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Tell it again, now, also where it was accepted or given up; the tries begin anew under the same id."""
    check_job_id(job_id)
    if _NOTICE_ID.fullmatch(notice_id) is None:
        raise NotFound(f"job {job_id} has no notice {notice_id[:80]!r}", param="id")

    def send_again(uow: UnitOfWork) -> NoticeRecord:
        uow.jobs.get(job_id, caller.project_id)
        uow.after_commit(lambda: services.wake.wake([job_id]))
        return uow.notices.send_again(notice_id, job_id)

    return json_response(notice_json(await services.database.write(send_again)), status=202)


@router.get("/v1/webhooks/secret", tags=["webhooks"], responses=docs.SECRET_RESPONSES)
async def get_secret(services: ServicesDep, caller: CallerDep) -> Response:
    """The secret that signs the project's webhooks; made when it is first needed."""
    secret = await services.database.write(lambda uow: uow.keys.ensure_webhook_secret(caller.project_id))
    return _secret_response(secret)


@router.post("/v1/webhooks/secret/rotate", tags=["webhooks"], responses=docs.SECRET_RESPONSES)
async def rotate_secret(services: ServicesDep, caller: CallerDep) -> Response:
    """A fresh secret, which signs every try from now on; the one before signs nothing any more."""
    secret = await services.database.write(lambda uow: uow.keys.rotate_webhook_secret(caller.project_id))
    return _secret_response(secret)


def notice_json(notice: NoticeRecord) -> dict[str, Any]:
    """The notice object."""
    return {
        "object": "job.notice",
        "id": notice.id,
        "job_id": notice.job_id,
        "seq": notice.seq,
        "channel": notice.channel.value,
        "status": notice.status.value,
        "num_tries": notice.num_tries,
        "next_try_at": notice.next_try_at if notice.status is NoticeStatus.WAITING else None,
        "last_try_at": notice.last_try_at,
        "last_answer": notice.last_answer,
        "created_at": notice.created_at,
        "accepted_at": notice.accepted_at,
    }


def _secret_response(secret: str) -> Response:
    response = json_response({"object": "webhook.secret", "secret": secret})
    response.headers["cache-control"] = _NO_STORE
    return response
