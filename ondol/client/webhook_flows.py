"""Flows about webhooks: notices of a job's ends, telling again, and the secret that signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ondol.client.errors import BadAnswer
from ondol.client.flow import Flow, Json, Request, exchange_json
from ondol.client.records import parse_page
from ondol.client.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class JobNotice:
    """How far the telling of one end of a job is: `status` is waiting, accepted or given_up.

    `channel` is webhook or celery; `last_answer` is what came of the last try; `next_try_at` is None unless it waits.
    """

    id: str
    job_id: str
    seq: int
    channel: str
    status: str
    num_tries: int
    next_try_at: datetime | None
    last_try_at: datetime | None
    last_answer: str | None
    created_at: datetime
    accepted_at: datetime | None
    raw: Json


def list_notices(job_id: str, policy: RetryPolicy) -> Flow[Sequence[JobNotice]]:
    """The job's notices, oldest end first."""
    page = parse_page((yield from exchange_json(Request("GET", f"/v1/jobs/{job_id}/notices"), policy)))
    return [_parse_notice(raw) for raw in page.data]


def redeliver(job_id: str, notice_id: str, policy: RetryPolicy) -> Flow[JobNotice]:
    """The notice, due now."""
    send = Request("POST", f"/v1/jobs/{job_id}/notices/{notice_id}/redeliver")
    return _parse_notice((yield from exchange_json(send, policy)))


def get_secret(policy: RetryPolicy) -> Flow[str]:
    """The project's secret, made if it has none yet."""
    return _parse_secret((yield from exchange_json(Request("GET", "/v1/webhooks/secret"), policy)))


def rotate_secret(policy: RetryPolicy) -> Flow[str]:
    """A fresh secret."""
    return _parse_secret((yield from exchange_json(Request("POST", "/v1/webhooks/secret/rotate"), policy)))


def _parse_secret(raw: Json) -> str:
    secret = raw.get("secret")
    if not isinstance(secret, str):
        raise BadAnswer("the server's answer holds no secret")
    return secret


def _parse_notice(raw: Json) -> JobNotice:
    try:
        return JobNotice(
            id=raw["id"],
            job_id=raw["job_id"],
            seq=raw["seq"],
            channel=raw["channel"],
            status=raw["status"],
            num_tries=raw["num_tries"],
            next_try_at=_time(raw.get("next_try_at")),
            last_try_at=_time(raw.get("last_try_at")),
            last_answer=raw.get("last_answer"),
            created_at=datetime.fromtimestamp(raw["created_at"], UTC),
            accepted_at=_time(raw.get("accepted_at")),
            raw=raw,
        )
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not a notice: {str(raw)[:200]}") from exc


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
