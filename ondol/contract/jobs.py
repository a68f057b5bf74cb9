"""From a request to a checked job: input and options by kind, with errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from ondol.contract.errors import ContractError, InvalidPayload, PayloadTooLarge, UnknownJobKind
from ondol.contract.fine_tune import FineTuneOptions
from ondol.contract.kinds import SUPPORTED_KINDS, JobKind
from ondol.contract.payloads import (
    EmbeddingOptions,
    ImportInput,
    ImportOptions,
    JobRequest,
    Text,
    TextClassificationOptions,
    TextPair,
    TokenClassificationOptions,
    TokenIds,
)
from ondol.contract.webhooks import check_webhook

Pair = dict[str, str]
"""`{"text": …, "text_pair": …}`: two texts that go through the model together."""
Inputs = list[str] | list[list[int]] | list[str | Pair]
InferenceOptions = EmbeddingOptions | TextClassificationOptions | TokenClassificationOptions
M = TypeVar("M", bound=BaseModel)

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_TEXTS: TypeAdapter[list[str]] = TypeAdapter(list[Text])
_IDS: TypeAdapter[list[list[int]]] = TypeAdapter(list[TokenIds])
INFERENCE_OPTIONS: dict[JobKind, type[InferenceOptions]] = {
    JobKind.EMBEDDING: EmbeddingOptions,
    JobKind.TEXT_CLASSIFICATION: TextClassificationOptions,
    JobKind.TOKEN_CLASSIFICATION: TokenClassificationOptions,
}
_OPTIONS: dict[JobKind, type[BaseModel]] = {
    **INFERENCE_OPTIONS,
    JobKind.IMPORT: ImportOptions,
    JobKind.FINE_TUNE: FineTuneOptions,
}
_KINDS = frozenset(JobKind)


@dataclass(frozen=True, slots=True)
class InputLimits:
    """How much one job may carry."""

    max_inputs: int = 100_000
    max_text_bytes: int = 1_048_576
    webhook_networks: tuple[str, ...] = ()
    """Networks beside the public ones that webhooks may reach."""
    message_tokens: int = 16_384
    """Estimated tokens over which inputs are cut into shards."""


@dataclass(frozen=True, slots=True)
class ParsedJob:
    """A checked job, `options` complete with defaults.

    `inputs` are those of an inference, `sizes` their UTF-8 bytes (token ids count four each); both are empty where the
    inputs stand in a file. Of other kinds `payload` is the input as UTF-8 JSON.
    """

    request: JobRequest
    options: dict[str, Any]
    payload: bytes = b"null"
    num_inputs: int = 0
    inputs: Inputs = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def parse_job(body: Any, limits: InputLimits) -> ParsedJob:
    """The job that `body` (parsed JSON) asks for; ContractError with `param` for anything wrong."""
    request = parse_request(body)
    if request.kind not in SUPPORTED_KINDS:
        names = ", ".join(sorted(SUPPORTED_KINDS))
        raise UnknownJobKind(f"jobs of kind {request.kind} are not run here; this server runs {names}", param="kind")
    if request.webhook is not None:
        check_webhook(request.webhook, limits.webhook_networks)
    options = validated(_OPTIONS[request.kind], request.options, prefix="options").model_dump(mode="json")
    _check_file_fields(request)
    if request.kind is JobKind.IMPORT:
        source = validated(ImportInput, request.input, prefix="input")
        return ParsedJob(request, options, source.model_dump_json().encode(), num_inputs=1)
    if request.model is None:
        raise InvalidPayload("a model is required, for example all-minilm-l6-v2", param="model")
    if request.kind is JobKind.FINE_TUNE:
        if request.input is not None:
            raise InvalidPayload("a fine-tune takes no input; its data are options.train_file", param="input")
        return ParsedJob(request, options)
    if request.input_file is not None:
        return ParsedJob(request, options, _dump_columns(request))
    if request.input is None:
        raise InvalidPayload("give input, or the id of an uploaded file as input_file", param="input")
    inputs, sizes = parse_sized_inputs(request.input, limits, param="input", kind=request.kind)
    return ParsedJob(request, options, num_inputs=len(inputs), inputs=inputs, sizes=sizes)


def parse_request(body: Any) -> JobRequest:
    """The envelope of a job; an unknown kind is told apart from other mistakes."""
    if isinstance(body, dict) and isinstance(body.get("kind"), str) and body["kind"] not in _KINDS:
        names = ", ".join(JobKind)
        raise UnknownJobKind(f"{body['kind'][:80]!r} is not a job kind; there are {names}", param="kind")
    return validated(JobRequest, body)


def parse_inputs(
    value: Any, limits: InputLimits, *, param: str, kind: JobKind = JobKind.EMBEDDING
) -> tuple[Inputs, int]:
    """Inputs as of `parse_sized_inputs`, and their size in bytes together."""
    inputs, sizes = parse_sized_inputs(value, limits, param=param, kind=kind)
    return inputs, sum(sizes)


def parse_sized_inputs(value: Any, limits: InputLimits, *, param: str, kind: JobKind) -> tuple[Inputs, list[int]]:
    """Inputs, each with its size in bytes: a string, a list of strings; embedding: also (lists of) token ids;
    text-classification: also text pairs.

    Raises InvalidPayload or PayloadTooLarge naming the item, `input[3]`.
    """
    inputs = _as_list(value, param, kind)
    if len(inputs) > limits.max_inputs:
        raise PayloadTooLarge(f"{len(inputs)} inputs; at most {limits.max_inputs} fit one job", param=param)
    sizes = []
    items: list[str | list[int] | Pair] = list(inputs)
    for i, item in enumerate(items):
        size = _size_of(item, param=f"{param}[{i}]" if isinstance(value, list) else param)
        if size > limits.max_text_bytes:
            raise PayloadTooLarge(
                f"the text has {size} bytes; at most {limits.max_text_bytes} are taken", param=f"{param}[{i}]"
            )
        sizes.append(size)
    return inputs, sizes


def dump_inputs(inputs: Inputs) -> bytes:
    """Inputs as stored. Written one by one: on a thread, many of them hold up no other thread."""
    return b"[" + b",".join(_encode(one).encode() for one in inputs) + b"]"


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


def _check_file_fields(request: JobRequest) -> None:
    """Return unless the fields of an input file stand where they mean nothing, or beside `input`."""
    if request.input_columns is not None and request.input_file is None:
        raise InvalidPayload("columns are those of an input_file; none is named", param="input_columns")
    if request.input_file is None:
        return
    if request.kind not in INFERENCE_OPTIONS:
        instead = "options.train_file" if request.kind is JobKind.FINE_TUNE else "input"
        raise InvalidPayload(f"a job of kind {request.kind} takes {instead}, and no input_file", param="input_file")
    if request.input is not None:
        raise InvalidPayload("input and input_file exclude each other; give one of them", param="input_file")
    columns = request.input_columns
    if columns is not None and columns.text_pair is not None and request.kind is not JobKind.TEXT_CLASSIFICATION:
        raise InvalidPayload("only a text-classification takes pairs of texts", param="input_columns.text_pair")


def _dump_columns(request: JobRequest) -> bytes:
    """What the planner of a file's shards is told: which columns to read, null for the default ones."""
    columns = None if request.input_columns is None else request.input_columns.model_dump(mode="json")
    return json.dumps({"columns": columns}).encode()


def _as_list(value: Any, param: str, kind: JobKind) -> Inputs:
    takes_pairs = kind is JobKind.TEXT_CLASSIFICATION
    if isinstance(value, str) or (takes_pairs and isinstance(value, dict)):
        value = [value]
    if not isinstance(value, list):
        raise InvalidPayload(f"{param} must be {_TAKEN.get(kind, 'a string or a list of strings')}", param=param)
    if not value:
        raise InvalidPayload(f"{param} is an empty list; give at least one text", param=param)
    if takes_pairs:
        return [_text_or_pair(item, f"{param}[{i}]") for i, item in enumerate(value)]
    if kind is JobKind.EMBEDDING and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        value = [value]
    is_ids = kind is JobKind.EMBEDDING and isinstance(value[0], list)
    adapter: TypeAdapter[Any] = _IDS if is_ids else _TEXTS
    try:
        parsed: Inputs = adapter.validate_python(value)
    except ValidationError as exc:
        raise invalid_payload(exc, prefix=param) from exc
    return parsed


_TAKEN = {
    JobKind.EMBEDDING: "a string, a list of strings, or token ids",
    JobKind.TEXT_CLASSIFICATION: 'a string, {"text", "text_pair"}, or a list of them',
}


def _text_or_pair(item: Any, param: str) -> str | Pair:
    if isinstance(item, dict):
        pair = validated(TextPair, item, prefix=param)
        return {"text": pair.text, "text_pair": pair.text_pair}
    if not isinstance(item, str) or not item:
        raise InvalidPayload(f'{param}: a text of at least one character, or {{"text", "text_pair"}}', param=param)
    return item


def _size_of(item: str | list[int] | Pair, *, param: str) -> int:
    if isinstance(item, list):
        return 4 * len(item)
    if isinstance(item, dict):
        return sum(_size_of(text, param=f"{param}.{name}") for name, text in item.items())
    try:
        return len(item.encode())
    except UnicodeEncodeError as exc:
        raise InvalidPayload(f"the text has a lone surrogate at position {exc.start}", param=param) from exc
