"""Schemas of the OpenAPI document: requests as the contract defines them, answers as the routes write them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.batch_openapi import BATCH_SCHEMAS
from api.file_openapi import FILE_SCHEMAS
from api.fine_tuning_openapi import FINE_TUNING_SCHEMAS
from api.hugging_face import TASKS
from api.inference_call import MAX_CALL_INPUTS
from api.model_openapi import MODEL_SCHEMAS
from api.webhooks.openapi import WEBHOOK_SCHEMAS
from ondol.contract.fine_tune import FineTuneOptions
from ondol.contract.jobs import INFERENCE_OPTIONS
from ondol.contract.payloads import ImportInput, ImportOptions, JobBatchRequest, JobRequest, TextPair
from ondol.contract.states import JobState, Priority

Schema = dict[str, Any]

_TEMPLATE = "#/components/schemas/{model}"
_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_FREE: Schema = {"type": "object", "additionalProperties": True}


def component_schemas() -> dict[str, Schema]:
    """All schemas by name."""
    models: list[type[BaseModel]] = [JobRequest, JobBatchRequest, ImportOptions, ImportInput, FineTuneOptions, TextPair]
    models += INFERENCE_OPTIONS.values()
    _, document = models_json_schema([(model, "validation") for model in models], ref_template=_TEMPLATE)
    requests: dict[str, Schema] = document["$defs"]
    requests["JobBatchRequest"]["properties"]["jobs"]["items"] = _ref("JobRequest")
    requests["EmbeddingCallRequest"] = _call_request(requests["EmbeddingOptions"])
    requests["InferenceRequest"] = _inference_request()
    return requests | _answers() | BATCH_SCHEMAS | FILE_SCHEMAS | FINE_TUNING_SCHEMAS | MODEL_SCHEMAS | WEBHOOK_SCHEMAS


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
            "store": {"type": "boolean", "default": False, "description": "Record the call as a job, of one message."},
            "user": _STRING,
            **own,
        },
    }


def _inference_request() -> Schema:
    item: Schema = {"anyOf": [_STRING, _ref("TextPair"), {"type": "array", "items": _INTEGER}]}
    options = [_ref(model.__name__) for model in INFERENCE_OPTIONS.values()]
    return {
        "type": "object",
        "description": f"Hugging Face's request for {', '.join(TASKS)}; other fields are ignored.",
        "required": ["inputs"],
        "properties": {
            "inputs": {"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_CALL_INPUTS}]},
            "parameters": {
                "type": "object",
                "anyOf": options,
                "description": "Hugging Face's parameters of the task, and ours; `truncate` is true or false. "
                "Those of feature-extraction may stand beside `inputs`.",
            },
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
        "InferenceAnswer": _inference_answer(),
        "LabelScore": _label_score(),
        "Entity": _entity(),
        "HuggingFaceError": _object(error=_STRING, error_type=_STRING, param=_maybe(_STRING)),
        "Model": _model(),
        "ModelList": _page("Model"),
        "Checkpoint": _object(
            object=_STRING, job_id=_STRING, step=_INTEGER, attempt=_INTEGER, metrics=_FREE, size_bytes=_INTEGER
        ),
        "CheckpointList": _page("Checkpoint", has_more={"type": "boolean"}),
        "Worker": _object(
            object=_STRING, id=_STRING, worker=_STRING, device=_STRING, role=_STRING, is_ready={"type": "boolean"}
        ),
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
        progress=_progress(),
        usage=_object(tokens=_INTEGER),
        timings=_maybe(_FREE),
        error=_maybe(_FREE),
        result_url=_maybe(_STRING),
        input_file=_described(_maybe(_STRING), "The file whose rows are the inputs."),
        metadata=_FREE,
        webhook=_maybe(_STRING),
        task_id=_maybe(_STRING),
        flower_url=_maybe(_STRING),
    )


def _progress() -> Schema:
    shown = _object(done=_INTEGER, total=_described(_INTEGER, "0 until a file's rows are counted."), unit=_STRING)
    shown["properties"] |= {
        "rate": _described(_maybe(_NUMBER), "Inputs a second; of jobs that run as shards."),
        "eta_s": _described(_maybe(_NUMBER), "Seconds to go at that rate; of jobs that run as shards."),
    }
    return shown


def _result_item() -> Schema:
    item = _object(index=_INTEGER, tokens=_INTEGER, truncated={"type": "boolean"})
    item["properties"] |= {
        "id": _described({"anyOf": [_STRING, _NUMBER]}, "The caller's id, where the inputs' file has a column for it."),
        "output": {
            "anyOf": [
                _described({"type": "array", "items": _NUMBER}, "A vector."),
                _described(_STRING, "A vector in base64 of little-endian float32."),
                {"type": "array", "items": _ref("LabelScore")},
                {"type": "array", "items": _ref("Entity")},
            ],
            "description": "By the job's kind; with pooling none one vector a token. Absent where the input failed.",
        },
        "error": _described(_FREE, "Code, message and param; absent where the input has an output."),
        "special_tokens": _described(
            {"type": "array", "items": _INTEGER}, "With pooling none: the positions of special tokens in the output."
        ),
    }
    return item


def _label_score() -> Schema:
    shown = _object(label=_STRING, score=_NUMBER)
    shown["properties"]["predicted"] = _described(
        {"type": "boolean"}, "Whether the score reaches the threshold; with a threshold, or several labels a text."
    )
    return shown


def _entity() -> Schema:
    shown = _object(score=_NUMBER, word=_STRING, start=_INTEGER, end=_INTEGER)
    shown["properties"] |= {
        "entity_group": _STRING,
        "entity": _described(_STRING, "In place of entity_group with aggregation_strategy none."),
        "index": _described(_INTEGER, "The token's place, with aggregation_strategy none."),
    }
    return shown


def _inference_answer() -> Schema:
    vectors: Schema = {"type": "array", "items": {"type": "array", "items": _NUMBER}}
    labels: Schema = {"type": "array", "items": {"type": "array", "items": _ref("LabelScore")}}
    entities: Schema = {"type": "array", "items": _ref("Entity")}
    return {
        "anyOf": [
            _described(vectors, "feature-extraction: a vector an input."),
            _described(labels, "text-classification: the labels of each input, best first."),
            _described(entities, "token-classification of one text."),
            _described({"type": "array", "items": entities}, "token-classification of a list."),
        ]
    }


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
        labels=_described(
            {"type": "array", "items": _STRING}, "Label names in the order of the scores, if it has any."
        ),
        problem_type=_maybe(_STRING),
        metrics=_described(_FREE, "How well it did when it was trained."),
        lineage=_described(_FREE, "What it was made of: job, data, base version, seed and the like."),
        files_url=_STRING,
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
