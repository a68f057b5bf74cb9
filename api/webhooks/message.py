"""What a webhook says: the notice's id, which end it is about, and the job as `GET /v1/jobs/{id}` shows it now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from api.job_json import job_json
from ondol.contract.webhook_signature import sign
from ondol.sql.notices import DueNotice
from ondol.sql.records import JobRecord


@dataclass(frozen=True, slots=True)
class Delivery:
    """A body and the headers that sign it."""

    body: bytes
    headers: dict[str, str]


def event_of(notice: DueNotice, job: JobRecord, *, ended_at: float, flower_url: str | None) -> dict[str, Any]:
    """The event. Its type is the end that the notice is about: a job that was retried may be in another state."""
    return {
        "id": notice.id,
        "object": "event",
        "type": f"job.{notice.state.value}",
        "created_at": int(ended_at),
        "data": job_json(job, flower_url=flower_url),
    }


def make_delivery(event: dict[str, Any], *, secret: str, timestamp: int) -> Delivery:
    """The event, signed at `timestamp` (Unix seconds)."""
    body = orjson.dumps(event)
    return Delivery(body, sign(secret, event["id"], timestamp, body))
