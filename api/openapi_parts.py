"""Pieces of the OpenAPI document that routes refer to; the schemas they name are in `api/openapi_schemas.py`."""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]


def json_body(schema: str) -> dict[str, Any]:
    """A required JSON body of that schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}}


def job_responses(status: int) -> Responses:
    """Answers with one job."""
    return {status: _json("The job.", _ref("Job"))}


def _ref(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


BATCH_RESPONSES: Responses = {200: _json("One outcome a job, in order.", _ref("JobBatch"))}
PAGE_RESPONSES: Responses = {200: _json("A page, newest first.", _ref("JobPage"))}
DELETE_RESPONSES: Responses = {200: _json("The job is gone.", _ref("JobDeleted"))}
CALL_RESPONSES: Responses = {200: _json("One embedding an input, in order.", _ref("Embeddings"))}
INFERENCE_RESPONSES: Responses = {200: _json("The task's answer for each input, in order.", _ref("InferenceAnswer"))}
CHECKPOINT_RESPONSES: Responses = {200: _json("Checkpoints, newest first.", _ref("CheckpointList"))}
MODEL_RESPONSES: Responses = {200: _json("The model.", _ref("Model"))}
MODEL_PAGE_RESPONSES: Responses = {200: _json("All models of the project.", _ref("ModelList"))}
WORKER_RESPONSES: Responses = {200: _json("Workers whose lease runs.", _ref("WorkerList"))}
HEALTH_RESPONSES: Responses = {200: _json("The process turns.", {"type": "object"})}
READY_RESPONSES: Responses = {
    200: _json("Work can be admitted.", _ref("Readiness")),
    503: _json("A part fails; `checks` says which.", _ref("Readiness")),
}
FLOWER_RESPONSES: Responses = {
    307: {"description": "The way to Flower."},
    404: _json("No Flower is known here.", _ref("Error")),
}
METRICS_RESPONSES: Responses = {
    200: {
        "description": "Everything that is counted, in Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    404: _json("The setting `metrics` is off.", _ref("Error")),
}
RESULT_RESPONSES: Responses = {
    200: {
        "description": "The result.",
        "headers": {
            "ondol-num-errors": {
                "description": "Inputs with an error in place of an output; only of a job that succeeded.",
                "schema": {"type": "integer"},
            }
        },
        "content": {
            "application/json": {"schema": _ref("Result")},
            "application/x-ndjson": {"schema": _ref("ResultItem")},
            "application/x-npy": {"schema": {"type": "string", "contentMediaType": "application/x-npy"}},
            "application/vnd.apache.parquet": {
                "schema": {
                    "type": "string",
                    "contentMediaType": "application/vnd.apache.parquet",
                    "description": "A row an input: index, id (text, if the inputs' file has one), embedding, or "
                    "labels and scores (and predicted), or entities; error, tokens, truncated. A row group a shard.",
                }
            },
        },
    }
}
EVENT_RESPONSES: Responses = {
    200: {
        "description": "Events, in order.",
        "content": {
            "application/json": {"schema": _ref("EventPage")},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    204: {"description": "A stream resumed behind the last event of a job that has ended."},
}
