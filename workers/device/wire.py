"""Frames of the device protocol to requests, results to frames. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ondol.contract.errors import InvalidPayload, OndolError
from ondol.contract.frames import Buffer, Header
from workers.device.engine import (
    IntArray,
    LoadRequest,
    LoadResult,
    ModelHandle,
    ProbeRequest,
    ProbeResult,
    RunRequest,
    RunResult,
    RunSpec,
    UnloadRequest,
)

Request = LoadRequest | RunRequest | ProbeRequest | UnloadRequest


def parse_request(header: Header, body: memoryview) -> Request:
    """The request in a frame; InvalidPayload names what is missing or of a wrong form."""
    parser = _PARSERS.get(str(header.get("op")))
    if parser is None:
        raise InvalidPayload(f"unknown operation {header.get('op')!r}", param="op")
    try:
        return parser(header, body)
    except KeyError as exc:
        raise InvalidPayload(f"the frame lacks {exc.args[0]!r}", param=str(exc.args[0])) from exc
    except (TypeError, AttributeError) as exc:
        raise InvalidPayload(f"the frame has a field of a wrong type: {exc}") from exc


def loaded_header(result: LoadResult) -> Header:
    """The answer to `load`."""
    return {"op": "loaded", **asdict(result)}


def ran_header(result: RunResult) -> Header:
    """The answer to `run`; its body is `vectors_body`."""
    header: Header = {
        "op": "ran",
        "key": result.key,
        "shape": list(result.vectors.shape),
        "dims": None,
        "load_s": result.load_s,
        "forward_s": result.forward_s,
        "num_padding": result.num_padding,
        "num_halvings": result.num_halvings,
        "max_batch_tokens": result.max_batch_tokens,
        "evicted": list(result.evicted),
        "engine": result.engine,
        "is_packed": result.is_packed,
    }
    if result.switched is not None:
        header["switched"] = asdict(result.switched)
    if result.row_errors:
        header["row_errors"] = {str(row): _error_fields(error) for row, error in result.row_errors.items()}
    return header


def vectors_body(result: RunResult) -> Buffer:
    """The vectors' float32 bytes, row by row."""
    return np.ascontiguousarray(result.vectors, dtype="<f4").data.cast("B")


def probed_header(result: ProbeResult) -> Header:
    """The answer to `probe`."""
    return {"op": "probed", **asdict(result)}


def failed_header(error: OndolError) -> Header:
    """The answer to a request that failed."""
    return {"op": "failed", "error": _error_fields(error), "is_retryable": error.retryable}


def _error_fields(error: OndolError) -> Mapping[str, str]:
    return {"code": error.code, "message": error.message}


def _parse_model(header: Header) -> ModelHandle:
    model: Mapping[str, Any] = header["model"]
    return ModelHandle(
        key=str(model["key"]), ref=str(model["ref"]), path=Path(str(model["path"])), dtype=str(model["dtype"])
    )


def _parse_load(header: Header, _body: memoryview) -> LoadRequest:
    return LoadRequest(_parse_model(header), is_pinned=bool(header.get("pinned", False)))


def _parse_probe(header: Header, _body: memoryview) -> ProbeRequest:
    model = dict(header["model"])
    return ProbeRequest(_parse_model({"model": {"dtype": "float32", **model}}))


def _parse_unload(header: Header, _body: memoryview) -> UnloadRequest:
    return UnloadRequest(str(header["key"]))


def _parse_run(header: Header, body: memoryview) -> RunRequest:
    lengths = _parse_counts(header["lengths"], "lengths", minimum=1)
    if not lengths:
        raise InvalidPayload("a batch has at least one row", param="lengths")
    skip = header.get("skip")
    skips = None if skip is None else _parse_counts(skip, "skip", minimum=0)
    if skips is not None and len(skips) != len(lengths):
        raise InvalidPayload(f"{len(skips)} skips for {len(lengths)} rows", param="skip")
    has_type_ids = bool(header.get("has_type_ids", False))
    token_ids, type_ids = _parse_ids(body, sum(lengths), has_type_ids=has_type_ids)
    spec: Mapping[str, Any] = header["spec"]
    pooling = spec.get("pooling")
    if pooling is not None and not isinstance(pooling, list):
        raise InvalidPayload("pooling is a list of modes or null", param="spec.pooling")
    return RunRequest(
        model=_parse_model(header),
        spec=RunSpec(
            task=str(spec["task"]),
            pooling=None if pooling is None else tuple(str(mode) for mode in pooling),
            layer=_parse_layer(spec.get("layer", -1)),
        ),
        lengths=lengths,
        token_ids=token_ids,
        skip=skips,
        type_ids=type_ids,
    )


def _parse_layer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidPayload("layer is a whole number", param="spec.layer")
    return value


def _parse_counts(values: object, name: str, *, minimum: int) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and value >= minimum for value in values):
        raise InvalidPayload(f"{name} is a list of whole numbers of at least {minimum}", param=name)
    return tuple(values)


def _parse_ids(body: memoryview, num_tokens: int, *, has_type_ids: bool) -> tuple[IntArray, IntArray | None]:
    num_expected = num_tokens * (2 if has_type_ids else 1)
    if len(body) != num_expected * 4:
        raise InvalidPayload(f"the body has {len(body)} bytes; {num_expected} int32 numbers were announced")
    numbers = np.frombuffer(body, dtype="<i4")
    return numbers[:num_tokens], numbers[num_tokens:] if has_type_ids else None


_PARSERS: Mapping[str, Callable[[Header, memoryview], Request]] = {
    "load": _parse_load,
    "run": _parse_run,
    "probe": _parse_probe,
    "unload": _parse_unload,
}
