"""From a shard's result to the lines of a batch's output: one line of the input, one line here, in order.

A line of the input may have several inputs, which are neighbours in one shard and bear its `custom_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from api.embedding_call import answer_json
from api.result_parts import ResultPart
from api.stored_items import placed
from api.vectors import StoredVectors
from ondol.contract.errors import ModelStoreError
from ondol.sql.records import JsonObject

DUPLICATE = "duplicate_custom_id"
"""The code of a line that bears the custom_id of an earlier one: never one with its neighbour."""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """A line as it is written; `has_failed` says into which of the two files."""

    content: bytes
    has_failed: bool


def output_lines(job_id: str, part: ResultPart) -> Iterator[OutputLine]:
    """The lines of one part of a batch's result. ModelStoreError if it has lost the ids of its lines."""
    if part.ids is None or len(part.ids) != part.num_inputs:
        raise ModelStoreError(f"the custom_ids of {job_id} from input {part.first_input} are lost")
    stored, errors = part.stored, {} if part.stored is None else part.stored.summary["errors"]
    for start, stop in _groups(part.ids, errors):
        number = part.first_input + start
        line = {"id": f"batch_req_{job_id.removeprefix('job_')}_{number}", "custom_id": part.ids[start]}
        response: dict[str, Any] = {"status_code": 200, "request_id": f"{job_id}-{number}"}
        error = next((placed(errors[str(i)], -start) for i in range(start, stop) if str(i) in errors), part.error)
        if error is None:
            assert isinstance(stored, StoredVectors), "what has no error has vectors"
            response["body"] = orjson.Fragment(_body(stored, start, stop))
            yield OutputLine(_dump(line | {"response": response, "error": None}), has_failed=False)
        else:
            yield OutputLine(_dump(line | _failed(response, error)), has_failed=True)


def _groups(ids: Sequence[str], errors: JsonObject) -> Iterator[tuple[int, int]]:
    """The inputs of each line: from, and before which."""
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[start] or _is_duplicate(errors, i) or _is_duplicate(errors, start):
            yield start, i
            start = i


def _is_duplicate(errors: JsonObject, place: int) -> bool:
    error = errors.get(str(place))
    return error is not None and error.get("code") == DUPLICATE


def _body(stored: StoredVectors, start: int, stop: int) -> bytes:
    """What `/v1/embeddings` would have answered."""
    summary = stored.summary
    return answer_json(
        [np.ascontiguousarray(stored.vector(i)) for i in range(start, stop)],
        encoding=summary.get("encoding") or "float",
        model=summary["model"],
        num_tokens=sum(summary["tokens"][start:stop]),
    )


def _failed(response: dict[str, Any], error: JsonObject) -> dict[str, Any]:
    """Both where OpenAI puts an answer that is an error and where it puts a request that was never answered."""
    code, message = str(error.get("code") or "internal_error"), str(error.get("message") or "the line failed")
    shown = {"message": message, "type": "invalid_request_error", "param": error.get("param"), "code": code}
    return {
        "response": response | {"status_code": 400, "body": {"error": shown}},
        "error": {"code": code, "message": message},
    }


def _dump(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line) + b"\n"
