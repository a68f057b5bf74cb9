"""Pieces of the OpenAPI document about OpenAI's routes for fine-tunes."""

from __future__ import annotations

from typing import Any

from api.openapi_parts import Responses, json_body
from ondol.contract.states import JobState

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_FREE: Schema = {"type": "object", "additionalProperties": True}
_MAYBE_STRING: Schema = {"anyOf": [_STRING, {"type": "null"}]}
_MAYBE_TIME: Schema = {"anyOf": [_INTEGER, {"type": "null"}], "description": "Unix seconds."}
_METADATA: Schema = {"type": "object", "additionalProperties": _STRING | {"maxLength": 512}, "maxProperties": 16}
_METADATA_ASKED_FOR: Schema = _METADATA | {
    # Brackets end a name in a query, and SQLite has no way to write quotes and backslashes in a path.
    "propertyNames": {"pattern": r'^[^"\\\[\]\u0000]{1,64}$'},
    "additionalProperties": _STRING | {"pattern": r"^[^\u0000]*$"},
}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _optional(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _constant(value: str) -> Schema:
    return {"const": value, "type": "string"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _page_of(name: str) -> Schema:
    items: Schema = {"type": "array", "items": _ref(name)}
    return _object(object=_constant("list"), data=items, has_more={"type": "boolean"})


def _answer(description: str, schema: str) -> Responses:
    return {200: {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}}


def _or_auto(schema: Schema, description: str) -> Schema:
    return {"anyOf": [_constant("auto"), schema], "default": "auto", "description": description}


_REQUEST: Schema = {
    "type": "object",
    "description": "OpenAI's request with the options of our fine-tune jobs beside it; other fields are ignored.",
    "required": ["model", "training_file"],
    "properties": {
        "model": _STRING | {"description": "The base: name, name:3 or name@alias."},
        "training_file": _STRING,
        "validation_file": _MAYBE_STRING,
        "method": _optional(
            type=_constant("supervised"), supervised=_optional(hyperparameters=_ref("SupervisedHyperparameters"))
        ),
        "hyperparameters": _ref("SupervisedHyperparameters"),
        "suffix": _STRING | {"maxLength": 64, "description": "The model is published as {base}-{suffix}."},
        "seed": _INTEGER | {"minimum": 0},
        "metadata": _METADATA,
        "options": _FREE | {"description": "Options of a fine-tune job, `FineTuneOptions`; none twice."},
    },
}
_HYPERPARAMETERS = _optional(
    n_epochs=_or_auto(_NUMBER, "options.hyperparameters.num_train_epochs"),
    batch_size=_or_auto(_INTEGER, "options.hyperparameters.per_device_train_batch_size"),
    learning_rate_multiplier=_or_auto(_NUMBER, "Times the learning rate that fits the backbone."),
)

FINE_TUNING_SCHEMAS: dict[str, Schema] = {
    "FineTuningRequest": _REQUEST,
    "SupervisedHyperparameters": _HYPERPARAMETERS,
    "FineTuningJob": _object(
        object=_constant("fine_tuning.job"),
        id=_STRING | {"description": "The job's id on every route."},
        created_at=_INTEGER,
        error={"anyOf": [_object(code=_STRING, message=_STRING, param=_MAYBE_STRING), {"type": "null"}]},
        fine_tuned_model=_MAYBE_STRING | {"description": "The published version, name:3."},
        finished_at=_MAYBE_TIME,
        hyperparameters=_ref("SupervisedHyperparameters"),
        method=_FREE,
        model=_STRING | {"description": "The base version, name:3."},
        organization_id=_STRING | {"description": "The project."},
        result_files={"type": "array", "items": _STRING, "maxItems": 0},
        seed=_INTEGER,
        status={"enum": list(JobState), "type": "string"},
        trained_tokens={"type": "null", "description": "Not counted."},
        training_file=_STRING,
        validation_file=_MAYBE_STRING,
        estimated_finish=_MAYBE_TIME,
        integrations={"type": "array", "maxItems": 0},
        metadata=_FREE,
    ),
    "FineTuningEvent": _object(
        object=_constant("fine_tuning.job.event"),
        id=_STRING,
        created_at=_INTEGER,
        level={"enum": ["info", "warn", "error"], "type": "string"},
        message=_STRING,
        type={"enum": ["message", "metrics"], "type": "string"},
        data=_FREE,
    ),
    "FineTuningCheckpoint": _object(
        object=_constant("fine_tuning.job.checkpoint"),
        id=_STRING,
        created_at=_INTEGER,
        fine_tuned_model_checkpoint=_STRING,
        step_number=_INTEGER,
        metrics=_FREE,
        fine_tuning_job_id=_STRING,
    ),
    "FineTuningJobPage": _page_of("FineTuningJob"),
    "FineTuningEventPage": _page_of("FineTuningEvent"),
    "FineTuningCheckpointPage": _page_of("FineTuningCheckpoint"),
}

CREATE_BODY = json_body("FineTuningRequest")
METADATA_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "Only fine-tunes that bear this metadata.",
            "schema": _METADATA_ASKED_FOR,
        }
    ]
}
JOB_RESPONSES = _answer("The fine-tune.", "FineTuningJob")
JOB_PAGE_RESPONSES = _answer("A page, newest first.", "FineTuningJobPage")
EVENT_PAGE_RESPONSES = _answer("A page, newest first.", "FineTuningEventPage")
CHECKPOINT_PAGE_RESPONSES = _answer("A page, newest first.", "FineTuningCheckpointPage")
