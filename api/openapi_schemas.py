"""Schemas of the OpenAPI document: requests as the contract defines them, answers as the routes write them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.embedding_call import MAX_CALL_INPUTS
from ondol.contract.payloads import EmbeddingOptions, ImportInput, ImportOptions, JobBatchRequest, JobRequest
from ondol.contract.states import JobState, Priority

Schema = dict[str, Any]

_TEMPLATE = "#/components/schemas/{model}"
_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_FREE: Schema = {"type": "object", "additionalProperties": True}


def component_schemas() -> dict[str, Schema]:
    """All schemas by name."""
    models: list[type[BaseModel]] = [JobRequest, JobBatchRequest, EmbeddingOptions, ImportOptions, ImportInput]
    _, document = models_json_schema([(model, "validation") for model in models], ref_template=_TEMPLATE)
    requests: dict[str, Schema] = document["$defs"]
    requests["JobBatchRequest"]["properties"]["jobs"]["items"] = _ref("JobRequest")
    requests["EmbeddingCallRequest"] = _call_request(requests["EmbeddingOptions"])
    return requests | _answers()


def _call_request(options: Schema) -> Schema:
    own = {name: schema for name, schema in options["properties"].items() if name != "encoding"}
    own["truncate"] = {
        "enum": ["right", "left", "error"],
        "type": "string",
        "description": "What to do with a text that is too long; default: the model's, else error.",
    }
    texts: Schema = {"type": "array", "items": _STRING, "minItems": 1, "maxItems": MAX_CALL_INPUTS}
    ids: Schema = {"type": "array", "items": _INTEGER, "minItems": 1}
    return {
        "type": "object",
        "description": "OpenAI's request with our options beside its fields; other fields are ignored.",
        "required": ["model", "input"],
        "properties": {
            "model": _STRING,
            "input": {"anyOf": [_STRING, texts, ids, {"type": "array", "items": ids, "maxItems": MAX_CALL_INPUTS}]},
            "encoding_format": {"enum": ["float", "base64"], "type": "string", "default": "float"},
            "priority": {"enum": list(Priority), "type": "string", "default": Priority.INTERACTIVE},
            "store": {"type": "boolean", "default": False, "description": "Record the call as a job."},
            "user": _STRING,
            **own,
        },
    }


def _answers() -> dict[str, Schema]:
    return {
        "Error": _object(error=_ref("ErrorBody")),
        "ErrorBody": _object(message=_STRING, type=_STRING, param=_maybe(_STRING), code=_STRING),
        "Job": _job(),
        "JobPage": _page("Job", has_more={"type": "boolean"}),
        "JobBatch": _list({"anyOf": [_ref("Job"), _object(index=_INTEGER, error=_ref("ErrorBody"))]}),
        "JobDeleted": _object(object=_STRING, id=_STRING, deleted={"type": "boolean"}),
        "Event": _object(object=_STRING, seq=_INTEGER, created_at=_NUMBER, type=_STRING, data=_FREE),
        "EventPage": _page("Event", has_more={"type": "boolean"}),
        "ResultItem": _result_item(),
        "Result": _page("ResultItem", model=_STRING, dtype=_STRING, engine=_STRING, usage=_FREE),
        "Embeddings": _page("Embedding", model=_STRING, usage=_FREE),
        "Embedding": _object(
            object=_STRING, index=_INTEGER, embedding={"anyOf": [{"type": "array", "items": _NUMBER}, _STRING]}
        ),
        "Model": _model(),
        "ModelList": _page("Model"),
        "Worker": _object(object=_STRING, id=_STRING, worker=_STRING, device=_STRING, is_ready={"type": "boolean"}),
        "WorkerList": _page("Worker"),
        "Readiness": _object(status={"enum": ["ready", "not_ready"], "type": "string"}, checks=_FREE),
    }


def _job() -> Schema:
    return _object(
        object=_STRING,
        id=_STRING,
        kind=_STRING,
        status={"enum": list(JobState), "type": "string"},
        model=_maybe(_STRING),
        priority={"enum": list(Priority), "type": "string"},
        created_at=_described(_NUMBER, "Unix seconds, as all times."),
        not_before=_maybe(_NUMBER),
        deadline_at=_maybe(_NUMBER),
        started_at=_maybe(_NUMBER),
        finished_at=_maybe(_NUMBER),
        attempt=_described(_INTEGER, "Number of the latest claim; 0 before the first."),
        worker=_maybe(_STRING),
        progress=_object(done=_INTEGER, total=_INTEGER, unit=_STRING),
        usage=_object(tokens=_INTEGER),
        timings=_maybe(_FREE),
        error=_maybe(_FREE),
        result_url=_maybe(_STRING),
        metadata=_FREE,
    )


def _result_item() -> Schema:
    item = _object(index=_INTEGER, tokens=_INTEGER, truncated={"type": "boolean"})
    item["properties"] |= {
        "output": _described(
            {}, "A vector as a list or base64 of little-endian float32; absent where the input failed."
        ),
        "error": _described(_FREE, "Code, message and param; absent where the input has an output."),
        "special_tokens": _described(
            {"type": "array", "items": _INTEGER}, "With pooling none: the positions of special tokens in the output."
        ),
    }
    return item


def _model() -> Schema:
    return _object(
        id=_STRING,
        object=_STRING,
        created=_INTEGER,
        owned_by=_STRING,
        version=_described(_STRING, "The version that the reference means now."),
        task=_STRING,
        dimensions=_maybe(_INTEGER),
        max_length=_described(_maybe(_INTEGER), "Effective maximum in tokens, special tokens counted."),
        aliases=_FREE,
        versions={"type": "array", "items": _FREE},
        dtypes=_described(_FREE, "What dtype auto means, by kind of device."),
    )


def _page(item: str, **more: Schema) -> Schema:
    page = _list(_ref(item))
    page["properties"] |= more
    return page


def _list(items: Schema) -> Schema:
    return _object(object={"const": "list", "type": "string"}, data={"type": "array", "items": items})


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _described(schema: Schema, description: str) -> Schema:
    return schema | {"description": description}


def _ref(name: str) -> Schema:
    return {"$ref": _TEMPLATE.format(model=name)}
