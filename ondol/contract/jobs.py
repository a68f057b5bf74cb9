"""From a request to a checked job: input and options by kind, with errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from ondol.contract.errors import ContractError, InvalidPayload, PayloadTooLarge, UnknownJobKind
from ondol.contract.kinds import SUPPORTED_KINDS, JobKind
from ondol.contract.payloads import EmbeddingOptions, ImportInput, ImportOptions, JobRequest, Text, TokenIds

Inputs = list[str] | list[list[int]]
M = TypeVar("M", bound=BaseModel)

_TEXTS: TypeAdapter[list[str]] = TypeAdapter(list[Text])
_IDS: TypeAdapter[list[list[int]]] = TypeAdapter(list[TokenIds])
_OPTIONS: dict[JobKind, type[BaseModel]] = {JobKind.EMBEDDING: EmbeddingOptions, JobKind.IMPORT: ImportOptions}


@dataclass(frozen=True, slots=True)
class InputLimits:
    """How much one job may carry."""

    max_inputs: int = 100_000
    max_text_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class ParsedJob:
    """A checked job: `payload` is its input as UTF-8 JSON, `options` complete with defaults."""

    request: JobRequest
    payload: bytes
    options: dict[str, Any]
    num_inputs: int
    num_bytes: int
    """UTF-8 bytes of text, for the token estimate; token ids count four bytes each."""


def parse_job(body: Any, limits: InputLimits) -> ParsedJob:
    """The job that `body` (parsed JSON) asks for; ContractError with `param` for anything wrong."""
    request = parse_request(body)
    if request.kind not in SUPPORTED_KINDS:
        names = ", ".join(sorted(SUPPORTED_KINDS))
        raise UnknownJobKind(f"jobs of kind {request.kind} are not run here; this server runs {names}", param="kind")
    options = validated(_OPTIONS[request.kind], request.options, prefix="options").model_dump(mode="json")
    if request.kind is JobKind.IMPORT:
        source = validated(ImportInput, request.input, prefix="input")
        payload = source.model_dump_json().encode()
        return ParsedJob(request, payload, options, num_inputs=1, num_bytes=0)
    if request.model is None:
        raise InvalidPayload("a model is required, for example all-minilm-l6-v2", param="model")
    inputs, num_bytes = parse_inputs(request.input, limits, param="input")
    return ParsedJob(request, dump_inputs(inputs), options, num_inputs=len(inputs), num_bytes=num_bytes)


def parse_request(body: Any) -> JobRequest:
    """The envelope of a job; an unknown kind is told apart from other mistakes."""
    if isinstance(body, dict) and isinstance(body.get("kind"), str) and body["kind"] not in set(JobKind):
        names = ", ".join(JobKind)
        raise UnknownJobKind(f"{body['kind'][:80]!r} is not a job kind; there are {names}", param="kind")
    return validated(JobRequest, body)


def parse_inputs(value: Any, limits: InputLimits, *, param: str) -> tuple[Inputs, int]:
    """Texts or token ids, and their size in bytes: a string, a list of strings, or (lists of) token ids.

    Raises InvalidPayload or PayloadTooLarge naming the item, `input[3]`.
    """
    inputs = _as_list(value, param)
    if len(inputs) > limits.max_inputs:
        raise PayloadTooLarge(f"{len(inputs)} inputs; at most {limits.max_inputs} fit one job", param=param)
    num_bytes = 0
    items: list[str | list[int]] = list(inputs)
    for i, item in enumerate(items):
        size = _size_of(item, param=f"{param}[{i}]" if isinstance(value, list) else param)
        if size > limits.max_text_bytes:
            raise PayloadTooLarge(
                f"the text has {size} bytes; at most {limits.max_text_bytes} are taken", param=f"{param}[{i}]"
            )
        num_bytes += size
    return inputs, num_bytes


def dump_inputs(inputs: Inputs) -> bytes:
    """Inputs as stored."""
    return json.dumps(inputs, ensure_ascii=False, separators=(",", ":")).encode()


def validated(model: type[M], value: Any, *, prefix: str = "") -> M:
    """`value` as `model`; InvalidPayload naming the first field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise invalid_payload(exc, prefix=prefix) from exc


def invalid_payload(exc: ValidationError, *, prefix: str = "") -> ContractError:
    """The first mistake that pydantic found, in the field's own words."""
    first = exc.errors(include_url=False)[0]
    path = field_path([prefix, *first["loc"]] if prefix else list(first["loc"]))
    if first["type"] == "extra_forbidden":
        return InvalidPayload(f"unknown field {path!r}", param=path)
    message = first["msg"].removeprefix("Value error, ")
    return InvalidPayload(f"{path}: {message}" if path else message, param=path or None)


def field_path(loc: Sequence[str | int]) -> str:
    """A field's path as people write it: `input[3]`, `options.pooling`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _as_list(value: Any, param: str) -> Inputs:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise InvalidPayload(f"{param} must be a string, a list of strings, or token ids", param=param)
    if not value:
        raise InvalidPayload(f"{param} is an empty list; give at least one text", param=param)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        value = [value]
    adapter: TypeAdapter[Any] = _IDS if isinstance(value[0], list) else _TEXTS
    try:
        parsed: Inputs = adapter.validate_python(value)
    except ValidationError as exc:
        raise invalid_payload(exc, prefix=param) from exc
    return parsed


def _size_of(item: str | list[int], *, param: str) -> int:
    if isinstance(item, list):
        return 4 * len(item)
    try:
        return len(item.encode())
    except UnicodeEncodeError as exc:
        raise InvalidPayload(f"the text has a lone surrogate at position {exc.start}", param=param) from exc
