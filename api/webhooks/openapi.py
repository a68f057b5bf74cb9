"""Pieces of the OpenAPI document about webhooks."""

from __future__ import annotations

from typing import Any

from api.openapi_parts import Responses
from ondol.sql.notices import Channel, NoticeStatus

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _answer(status: int, description: str, schema: str) -> Responses:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {status: {"description": description, "content": content}}


WEBHOOK_SCHEMAS: dict[str, Schema] = {
    "Notice": _object(
        object={"const": "job.notice", "type": "string"},
        id=_STRING | {"description": "Also the webhook-id of every try."},
        job_id=_STRING,
        seq=_INTEGER | {"description": "Number of the event of the end that is told."},
        channel={"enum": list(Channel), "type": "string"},
        status={"enum": list(NoticeStatus), "type": "string"},
        num_tries=_INTEGER,
        next_try_at=_maybe(_NUMBER) | {"description": "While it waits; in a try, when that is believed lost."},
        last_try_at=_maybe(_NUMBER),
        last_answer=_maybe(_STRING) | {"description": "The status of the receiver's answer, or why there was none."},
        created_at=_NUMBER,
        accepted_at=_maybe(_NUMBER),
    ),
    "NoticeList": _object(
        object={"const": "list", "type": "string"},
        data={"type": "array", "items": {"$ref": "#/components/schemas/Notice"}},
    ),
    "WebhookSecret": _object(object={"const": "webhook.secret", "type": "string"}, secret=_STRING),
    "WebhookEvent": _object(
        id=_STRING,
        object={"const": "event", "type": "string"},
        type={"enum": ["job.succeeded", "job.failed", "job.cancelled"], "type": "string"},
        created_at=_INTEGER | {"description": "When the job ended so, in Unix seconds."},
        data={"$ref": "#/components/schemas/Job"},
    ),
}

NOTICE_RESPONSES = _answer(202, "The notice, due now.", "Notice")
NOTICE_LIST_RESPONSES = _answer(200, "The job's notices, oldest end first.", "NoticeList")
SECRET_RESPONSES = _answer(200, "The secret.", "WebhookSecret")
