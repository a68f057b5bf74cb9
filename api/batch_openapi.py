"""Pieces of the OpenAPI document about OpenAI's routes for batches."""

from __future__ import annotations

from typing import Any

from api.openapi_parts import Responses, json_body

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_MAYBE_STRING: Schema = {"anyOf": [_STRING, {"type": "null"}]}
_MAYBE_TIME: Schema = {"anyOf": [_INTEGER, {"type": "null"}], "description": "Unix seconds."}
_FREE: Schema = {"type": "object", "additionalProperties": True}
_MAYBE_OBJECT: Schema = {"anyOf": [_FREE, {"type": "null"}]}
_METADATA: Schema = {"type": "object", "additionalProperties": _STRING | {"maxLength": 512}, "maxProperties": 16}
_STATUSES = ["validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"]


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: str) -> Responses:
    return {200: {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}}


_EXPIRY: Schema = {
    "type": "object",
    "properties": {"anchor": {"const": "created_at", "type": "string"}, "seconds": _INTEGER},
    "required": ["seconds"],
}

BATCH_SCHEMAS: dict[str, Schema] = {
    "BatchRequest": {
        "type": "object",
        "description": "OpenAI's request; other fields are ignored.",
        "required": ["input_file_id", "endpoint"],
        "properties": {
            "input_file_id": _STRING | {"description": "A file of lines {custom_id, method, url, body}."},
            "endpoint": {"const": "/v1/embeddings", "type": "string"},
            "completion_window": {"const": "24h", "type": "string", "default": "24h"},
            "metadata": {"anyOf": [_METADATA, {"type": "null"}]},
            "output_expires_after": _EXPIRY,
        },
    },
    "BatchRequestCounts": _object(total=_INTEGER, completed=_INTEGER, failed=_INTEGER),
    "Batch": _object(
        id=_STRING | {"description": "The job's id on every route."},
        object={"const": "batch", "type": "string"},
        endpoint=_STRING,
        model=_MAYBE_STRING | {"description": "The version that runs, name:3."},
        errors=_MAYBE_OBJECT,
        input_file_id=_STRING,
        completion_window=_STRING,
        status={"enum": _STATUSES, "type": "string"},
        output_file_id=_MAYBE_STRING,
        error_file_id=_MAYBE_STRING,
        created_at=_INTEGER,
        in_progress_at=_MAYBE_TIME,
        expires_at={"type": "null", "description": "A batch never expires."},
        finalizing_at=_MAYBE_TIME,
        completed_at=_MAYBE_TIME,
        failed_at=_MAYBE_TIME,
        expired_at={"type": "null"},
        cancelling_at=_MAYBE_TIME,
        cancelled_at=_MAYBE_TIME,
        request_counts=_ref("BatchRequestCounts"),
        usage=_FREE,
        metadata=_MAYBE_OBJECT,
    ),
    "BatchPage": _object(
        object={"const": "list", "type": "string"},
        data={"type": "array", "items": _ref("Batch")},
        first_id=_MAYBE_STRING,
        last_id=_MAYBE_STRING,
        has_more={"type": "boolean"},
    ),
}

CREATE_BODY = json_body("BatchRequest")
BATCH_RESPONSES = _answer("The batch.", "Batch")
BATCH_PAGE_RESPONSES = _answer("A page, newest first.", "BatchPage")
