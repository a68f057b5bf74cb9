"""Pieces of the OpenAPI document about files."""

from __future__ import annotations

from typing import Any

from api.openapi_parts import Responses
from ondol.contract.files import BATCH_OUTPUT, FILE_PURPOSES, MAX_EXPIRY_S, MIN_EXPIRY_S

Schema = dict[str, Any]

SHOWN_PURPOSES = (*FILE_PURPOSES, BATCH_OUTPUT)
"""Of files that exist; the last is of those that batches have written."""

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_FILE: Schema = {"$ref": "#/components/schemas/File"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


FILE_SCHEMAS: dict[str, Schema] = {
    "File": _object(
        id=_STRING,
        object={"const": "file", "type": "string"},
        bytes=_INTEGER,
        created_at=_INTEGER,
        expires_at={"anyOf": [_INTEGER, {"type": "null"}]},
        filename=_STRING,
        purpose={"enum": list(SHOWN_PURPOSES), "type": "string"},
        status={"const": "processed", "type": "string"},
        sha256={"type": "string", "description": "Digest of the content, in hex."},
    ),
    "FilePage": _object(
        object={"const": "list", "type": "string"},
        data={"type": "array", "items": _FILE},
        first_id={"anyOf": [_STRING, {"type": "null"}]},
        last_id={"anyOf": [_STRING, {"type": "null"}]},
        has_more={"type": "boolean"},
    ),
    "FileDeleted": _object(id=_STRING, object=_STRING, deleted={"type": "boolean"}),
}

_FORM: Schema = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream", "description": "With a file name."},
        "purpose": {"enum": list(FILE_PURPOSES), "type": "string"},
        "expires_after[anchor]": {"const": "created_at", "type": "string"},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY_S, "maximum": MAX_EXPIRY_S},
    },
}
UPLOAD_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
FILE_RESPONSES: Responses = {200: _json("The file.", _FILE)}
FILE_PAGE_RESPONSES: Responses = {200: _json("A page.", {"$ref": "#/components/schemas/FilePage"})}
FILE_DELETE_RESPONSES: Responses = {200: _json("The file is gone.", {"$ref": "#/components/schemas/FileDeleted"})}
CONTENT_RESPONSES: Responses = {
    200: {
        "description": "The content.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
        },
    }
}
