"""Embedding: from a job's or call's inputs to rows, and from the rows' vectors to its answer.

`N` inputs, `H` length of a vector as the model gives it, `D` length after cutting to `dimensions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ondol.contract.errors import OndolError
from ondol.contract.inference_checks import vector_width
from ondol.contract.jobs import Inputs
from ondol.contract.model_spec import PoolingMode
from ondol.contract.payloads import EmbeddingOptions
from ondol.contract.states import Priority
from workers.model_library import ModelLibrary
from workers.rows import BatchKey, DeviceModel, FloatArray, Row, Work
from workers.texts import Tokenized, TokenRow, tokenize


@dataclass(slots=True, eq=False)
class EmbeddingTask:
    """Inputs that became a work, and what is needed to make an answer of its outputs."""

    work: Work
    tokenized: Tokenized
    options: EmbeddingOptions
    model: DeviceModel
    ref: str
    num_inputs: int
    tokenize_s: float
    dimensions: int
    """D."""

    @property
    def is_ragged(self) -> bool:
        """Whether an answer is one vector a token."""
        return self.options.pooling is PoolingMode.NONE


@dataclass(frozen=True, slots=True)
class EmbeddingAnswer:
    """Vectors [N, D] (zeros where an item failed), or a list of [T_i, D] for `pooling: none`."""

    vectors: FloatArray | list[FloatArray]
    tokens: list[int]
    truncated: list[bool]
    errors: dict[int, OndolError]

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs that have an answer."""
        return sum(count for i, count in enumerate(self.tokens) if i not in self.errors)


def prepare(
    library: ModelLibrary,
    *,
    work_id: str,
    version_id: str,
    options: EmbeddingOptions,
    inputs: Inputs,
    priority: Priority,
    deadline_at: float | None = None,
    is_alone: bool = False,
    num_losses: int = 0,
    on_done: Callable[[Work], None] | None = None,
) -> EmbeddingTask:
    """Tokenise the inputs and make their rows; blocks while the model is brought here and loaded."""
    wanted_at = time.monotonic()
    version = library.version(version_id)
    model = library.device_model(version, options.dtype)
    started_at = time.monotonic()
    tokenized = tokenize(inputs, options, version.spec, version.tokenizer)
    pooling = (options.pooling.value,) if options.pooling is not None else None
    layer = -1 if options.layer == version.spec.num_layers else options.layer  # the last, by either of its numbers
    key = BatchKey(model, "embedding", pooling, layer)
    work = Work(
        id=work_id,
        key=key,
        priority=priority,
        on_done=on_done,
        deadline_at=deadline_at,
        is_alone=is_alone,
        load_s=started_at - wanted_at,
    )
    work.add_rows([_row(row, work, i, num_losses) for i, row in enumerate(tokenized.rows)])
    return EmbeddingTask(
        work=work,
        tokenized=tokenized,
        options=options,
        model=model,
        ref=version.record.ref,
        num_inputs=len(inputs),
        tokenize_s=time.monotonic() - started_at,
        dimensions=options.dimensions or vector_width(options, version.spec),
    )


def answer(task: EmbeddingTask) -> EmbeddingAnswer:
    """The answer of a finished work: windows pooled, cut, normalised."""
    errors = dict(task.tokenized.errors)
    for row_index, error in task.work.errors.items():
        errors.setdefault(task.tokenized.rows[row_index].input_index, error)
    by_input: list[list[int]] = [[] for _ in range(task.num_inputs)]
    for row_index, row in enumerate(task.tokenized.rows):
        by_input[row.input_index].append(row_index)
    if task.is_ragged:
        vectors: FloatArray | list[FloatArray] = _ragged(task, by_input, errors)
    else:
        vectors = _finish(_pooled(task, by_input, errors), task.options)
    return EmbeddingAnswer(vectors, task.tokenized.tokens, task.tokenized.truncated, errors)


def summary_of(task: EmbeddingTask, found: EmbeddingAnswer) -> dict[str, Any]:
    """How the bytes of a stored result are to be read."""
    summary: dict[str, Any] = {
        "kind": "embedding",
        "shape": None,
        "lengths": None,
        "tokens": found.tokens,
        "truncated": [i for i, cut in enumerate(found.truncated) if cut],
        "errors": {str(i): error.as_dict() for i, error in found.errors.items()},
        "model": task.ref,
        "dtype": task.model.dtype,
        "engine": "torch",
        "encoding": task.options.encoding,
        "num_tokens": found.num_tokens,
    }
    if isinstance(found.vectors, list):
        summary["lengths"] = [len(vectors) for vectors in found.vectors]
        summary["dimensions"] = task.dimensions
        summary["special_tokens"] = _special_tokens(task, found)
    else:
        summary["shape"] = list(found.vectors.shape)
    return summary


def data_of(found: EmbeddingAnswer) -> bytes:
    """The vectors as little-endian float32 bytes."""
    if isinstance(found.vectors, list):
        return b"".join(np.ascontiguousarray(vectors, dtype="<f4").tobytes() for vectors in found.vectors)
    return np.ascontiguousarray(found.vectors, dtype="<f4").tobytes()


def _row(row: TokenRow, work: Work, index: int, num_losses: int) -> Row:
    return Row(row.ids, work, index, skip=row.skip, num_losses=num_losses)


def _pooled(task: EmbeddingTask, by_input: list[list[int]], errors: dict[int, OndolError]) -> FloatArray:
    """Float32 [N, H]; an input of several windows is their mean, weighted by content tokens."""
    outputs, rows = task.work.outputs, task.tokenized.rows
    size = next((len(output) for output in outputs if output is not None), task.dimensions)
    vectors = np.zeros((task.num_inputs, size), dtype=np.float32)
    for i, row_indices in enumerate(by_input):
        if i in errors:
            continue
        if len(row_indices) == 1:
            vectors[i] = outputs[row_indices[0]]
        else:
            weights = np.array([rows[k].weight for k in row_indices], dtype=np.float32)
            table = np.stack([_present(outputs[k]) for k in row_indices])
            vectors[i] = weights @ table / weights.sum()
    return vectors


def _ragged(task: EmbeddingTask, by_input: list[list[int]], errors: dict[int, OndolError]) -> list[FloatArray]:
    outputs = task.work.outputs
    found: list[FloatArray] = []
    for i, row_indices in enumerate(by_input):
        if i in errors:
            found.append(np.zeros((0, task.dimensions), dtype=np.float32))
            continue
        tables = [_present(outputs[k]) for k in row_indices]
        found.append(_finish(np.concatenate(tables), task.options))
    return found


def _special_tokens(task: EmbeddingTask, found: EmbeddingAnswer) -> list[list[int]]:
    """By input, the places of its special tokens among its vectors; a long text's windows lie end to end."""
    places: list[list[int]] = [[] for _ in range(task.num_inputs)]
    starts = [0] * task.num_inputs
    for row in task.tokenized.rows:
        if row.input_index not in found.errors:
            places[row.input_index] += [starts[row.input_index] + place for place in row.specials]
            starts[row.input_index] += len(row.ids)
    return places


def _present(output: FloatArray | None) -> FloatArray:
    assert output is not None, "a row of an input without an error has an output"
    return output


def _finish(vectors: FloatArray, options: EmbeddingOptions) -> FloatArray:
    """Cut to `dimensions`, then to unit length; vectors of zeros stay zeros."""
    if options.dimensions is not None:
        vectors = vectors[:, : options.dimensions]
    if options.normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, 1e-12)
    return np.ascontiguousarray(vectors, dtype=np.float32)
