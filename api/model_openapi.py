"""Pieces of the OpenAPI document about aliases and files of models."""

from __future__ import annotations

from typing import Any

from api.openapi_parts import Responses, json_body
from ondol.sql.aliases import MAX_REASON_CHARS

Schema = dict[str, Any]

MAX_VERSION = 999_999_999
"""The largest number that a version may have."""

_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_NUMBER_OF_VERSION: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_VERSION}
_MAYBE_STRING: Schema = {"anyOf": [_STRING, {"type": "null"}]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of(name: str, **more: Schema) -> Schema:
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}
    return _object(object={"const": "list", "type": "string"}, data=items, **more)


def _answer(description: str, schema: str) -> Responses:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {200: {"description": description, "content": content}}


_MOVES: Schema = {"type": "array", "items": {"$ref": "#/components/schemas/AliasMove"}}

MODEL_SCHEMAS: dict[str, Schema] = {
    "AliasRequest": {
        "type": "object",
        "additionalProperties": False,
        "required": ["version"],
        "properties": {
            "version": _NUMBER_OF_VERSION | {"description": "Number of the version that it shall point to."},
            "expected": {
                "anyOf": [_NUMBER_OF_VERSION, {"type": "null"}],
                "description": "Move it only if it points to this version now; null: only if there is no such alias. "
                "Left out: whatever it points to.",
            },
            "reason": _STRING | {"maxLength": MAX_REASON_CHARS, "default": ""},
        },
    },
    "Alias": _object(
        object={"const": "model.alias", "type": "string"},
        name=_STRING,
        version=_STRING | {"description": "The version that it points to, name:3."},
        updated_at=_NUMBER,
    ),
    "AliasMove": _object(
        alias=_STRING,
        version=_MAYBE_STRING | {"description": "What it pointed to from then on; null: it was deleted."},
        previous=_MAYBE_STRING,
        created_at=_NUMBER,
        reason=_STRING,
    ),
    "AliasList": _list_of("Alias", history=_MOVES | {"description": "The latest moves, newest first."}),
    "ModelFile": _object(path=_STRING, size_bytes=_INTEGER, sha256=_STRING),
    "ModelFileList": _list_of("ModelFile", version=_STRING, size_bytes=_INTEGER),
    "Deleted": _object(id=_STRING, object=_STRING, deleted={"type": "boolean"}),
}

ALIAS_BODY = json_body("AliasRequest")
ALIAS_RESPONSES = _answer("The alias as it is now.", "Alias")
ALIAS_LIST_RESPONSES = _answer("Aliases and their history.", "AliasList")
DELETED_RESPONSES = _answer("It is gone.", "Deleted")
FILE_LIST_RESPONSES = _answer("The version's files with their digests.", "ModelFileList")
FILE_RESPONSES: Responses = {
    200: {
        "description": "The file; `etag` is its SHA-256.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
        },
    }
}
