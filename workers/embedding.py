"""Embedding: from a job's or call's inputs to rows, and from the rows' vectors to its answer.

`N` inputs, `H` length of a vector as the model gives it, `D` length after cutting to `dimensions`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ondol.contract.errors import OndolError
from ondol.contract.inference_checks import vector_width
from ondol.contract.jobs import Inputs
from ondol.contract.model_spec import PoolingMode
from ondol.contract.payloads import EmbeddingOptions
from workers.inference_task import Answer, InferenceTask, present
from workers.model_library import ServedVersion
from workers.rows import BatchKey, DeviceModel, FloatArray
from workers.texts import tokenize


class EmbeddingTask(InferenceTask):
    """Texts or token ids that became rows: one each, or several windows of a long text."""

    def __init__(self, version: ServedVersion, model: DeviceModel, options: EmbeddingOptions, inputs: Inputs) -> None:
        tokenized = tokenize(inputs, options, version.spec, version.tokenizer)
        super().__init__(version, model, tokenized, num_inputs=len(inputs))
        is_last = options.layer == version.spec.num_layers  # the last, by either of its numbers
        self._layer = -1 if is_last else options.layer
        self._options = options
        self._dimensions = options.dimensions or vector_width(options, version.spec)

    def key(self) -> BatchKey:
        """Rows of one pooling and layer share batches."""
        pooling = (self._options.pooling.value,) if self._options.pooling is not None else None
        return BatchKey(self.model, "embedding", pooling, self._layer)

    def answer(self) -> Answer:
        """Windows pooled, cut, normalised."""
        errors = self.errors()
        by_input: list[list[int]] = [[] for _ in range(self.num_inputs)]
        for row_index, row in enumerate(self.tokenized.rows):
            by_input[row.input_index].append(row_index)
        if self._options.pooling is PoolingMode.NONE:
            vectors: FloatArray | list[FloatArray] = self._ragged(by_input, errors)
        else:
            vectors = _finish(self._pooled(by_input, errors), self._options)
        return Answer(vectors, self.tokenized.tokens, self.tokenized.truncated, errors)

    def how_to_read(self, found: Answer) -> dict[str, Any]:
        """Vectors [N, D], or [T_i, D] by their `lengths`."""
        about: dict[str, Any] = {
            "kind": "embedding",
            "shape": None,
            "lengths": None,
            "encoding": self._options.encoding,
        }
        if isinstance(found.vectors, list):
            about["lengths"] = [len(vectors) for vectors in found.vectors]
            about["dimensions"] = self._dimensions
            about["special_tokens"] = self._special_tokens(found)
        else:
            about["shape"] = list(found.vectors.shape)
        return about

    def _pooled(self, by_input: list[list[int]], errors: dict[int, OndolError]) -> FloatArray:
        """Float32 [N, H]; an input of several windows is their mean, weighted by content tokens."""
        outputs, rows = self.work.outputs, self.tokenized.rows
        size = next((len(output) for output in outputs if output is not None), self._dimensions)
        vectors = np.zeros((self.num_inputs, size), dtype=np.float32)
        for i, row_indices in enumerate(by_input):
            if i in errors:
                continue
            if len(row_indices) == 1:
                vectors[i] = outputs[row_indices[0]]
            else:
                weights = np.array([rows[k].weight for k in row_indices], dtype=np.float32)
                table = np.stack([present(outputs[k]) for k in row_indices])
                vectors[i] = weights @ table / weights.sum()
        return vectors

    def _ragged(self, by_input: list[list[int]], errors: dict[int, OndolError]) -> list[FloatArray]:
        outputs = self.work.outputs
        found: list[FloatArray] = []
        for i, row_indices in enumerate(by_input):
            if i in errors:
                found.append(np.zeros((0, self._dimensions), dtype=np.float32))
                continue
            tables = [present(outputs[k]) for k in row_indices]
            found.append(_finish(np.concatenate(tables), self._options))
        return found

    def _special_tokens(self, found: Answer) -> list[list[int]]:
        """By input, the places of its special tokens among its vectors; a long text's windows lie end to end."""
        places: list[list[int]] = [[] for _ in range(self.num_inputs)]
        starts = [0] * self.num_inputs
        for row in self.tokenized.rows:
            if row.input_index not in found.errors:
                places[row.input_index] += [starts[row.input_index] + place for place in row.specials]
                starts[row.input_index] += len(row.ids)
        return places


def _finish(vectors: FloatArray, options: EmbeddingOptions) -> FloatArray:
    """Cut to `dimensions`, then to unit length; vectors of zeros stay zeros."""
    if options.dimensions is not None:
        vectors = vectors[:, : options.dimensions]
    if options.normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, 1e-12)
    return np.ascontiguousarray(vectors, dtype=np.float32)
