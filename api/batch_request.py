"""From OpenAI's request for a batch and the lines of its file to our job: whose model and options they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from api.embedding_call import parse_call
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.files import MAX_EXPIRY_S, MIN_EXPIRY_S
from ondol.contract.jobs import InputLimits, validated
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority

EMBEDDINGS = "/v1/embeddings"
WINDOW = "24h"
FORMAT = "openai_batch"
MAX_LINE_BYTES = 64 * 1024 * 1024
_MAX_TRIED_LINES = 100
"""Among so many lines there is one that says what is to be run, or the file is refused."""
_BOM = b"\xef\xbb\xbf"


class _Lenient(BaseModel):
    """Ignores fields that it does not know, as the original does."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


class OutputExpiry(_Lenient):
    """When the files of the output are forgotten."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(strict=True, ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)]


class BatchRequest(_Lenient):
    """The body of `POST /v1/batches`."""

    input_file_id: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    endpoint: StrictStr
    completion_window: StrictStr = WINDOW
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[StrictStr, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: OutputExpiry | None = None


@dataclass(frozen=True, slots=True)
class BatchFile:
    """What the lines of a batch's file say: how many they are, and the first body that can be run, without `input`."""

    num_lines: int
    body: dict[str, Any]
    line: int
    """The number of the line with that body, from 1."""


def read_batch_request(body: Any) -> BatchRequest:
    """The request; InvalidPayload naming a field that is wrong, or that asks for what is not run here."""
    request = validated(BatchRequest, body)
    if request.endpoint != EMBEDDINGS:
        raise InvalidPayload(f"endpoint is {EMBEDDINGS}; {request.endpoint[:80]!r} is not run here", param="endpoint")
    if request.completion_window != WINDOW:
        raise InvalidPayload(f"completion_window is {WINDOW!r}", param="completion_window")
    return request


def read_batch_file(file: IO[bytes]) -> BatchFile:
    """What the file asks for; reads all of it, and blocks. InvalidPayload if none of its first lines can be run."""
    found: tuple[dict[str, Any], int] | None = None
    num_lines, first_problem = 0, "it has no lines"
    for number, line in _lines(file):
        num_lines += 1
        if found is None and num_lines <= _MAX_TRIED_LINES:
            body = _body_of(line)
            if isinstance(body, str):
                first_problem = f"line {number} {body}" if num_lines == 1 else first_problem
            else:
                found = body, number
    if found is None:
        raise InvalidPayload(
            f"the file has no line to run: {first_problem}; a line is"
            ' {"custom_id", "method": "POST", "url": "/v1/embeddings", "body": {"model", "input"}}',
            param="input_file_id",
        )
    return BatchFile(num_lines, *found)


def job_body(request: BatchRequest, file: BatchFile, limits: InputLimits, *, truncate: str) -> dict[str, Any]:
    """The job as `POST /v1/jobs` would take it; InvalidPayload names the line whose options are wrong.

    `truncate`: what becomes of long texts where the lines do not say it.
    """
    try:
        call = parse_call({**file.body, "input": "-"}, limits)
    except OndolError as exc:
        raise in_their_words(exc, file.line) from exc
    options = {"truncate": truncate, **call.given_options, "encoding": call.encoding}
    return {
        "kind": JobKind.EMBEDDING.value,
        "model": call.model,
        "input_file": request.input_file_id,
        "options": options,
        "priority": Priority.BULK.value,
        "metadata": request.metadata or {},
    }


def job_payload(file: BatchFile) -> bytes:
    """What the planner of the shards is told."""
    return orjson.dumps({"format": FORMAT, "endpoint": EMBEDDINGS, "body": file.body})


def in_their_words(error: OndolError, line: int) -> OndolError:
    """The error with the field of OpenAI's request that it is about."""
    if error.param in ("metadata", "input_file_id"):
        return error
    if error.param == "input_file":
        error.param = "input_file_id"
        return error
    field = (error.param or "").removeprefix("options.")
    where = f"line {line}, body.{field}" if field else f"line {line}"
    error.message, error.param = f"{where}: {error.message}", "input_file_id"
    return error


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by number from 1."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise InvalidPayload(f"line {number} of the file is over {MAX_LINE_BYTES} bytes", param="input_file_id")
        text = line.removeprefix(_BOM) if number == 1 else line
        if text.strip():
            yield number, text


def _body_of(line: bytes) -> dict[str, Any] | str:
    """The line's body without `input`, or what is wrong with the line."""
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        return f"is not JSON ({exc})"
    if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
        return "has no body"
    if request.get("url") != EMBEDDINGS:
        return f"is not for {EMBEDDINGS}"
    body = {name: value for name, value in request["body"].items() if name != "input"}
    return body if isinstance(body.get("model"), str) else "names no model"
