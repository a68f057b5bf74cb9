"""Text classification: from a job's or call's texts and pairs to rows, and from their logits to scores.

`N` inputs, `C` labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ondol.contract.jobs import Pair
from ondol.contract.model_spec import ModelSpec
from ondol.contract.payloads import TextClassificationOptions
from workers.inference_task import Answer, InferenceTask, present
from workers.model_library import ServedVersion
from workers.rows import BatchKey, DeviceModel, FloatArray
from workers.scores import check_width, not_finite, sigmoid, softmax
from workers.text_pairs import tokenize_pairs
from workers.tokenizer_facts import takes_type_ids, tokenizer_facts

Function = Literal["sigmoid", "softmax", "none"]

MULTI_LABEL = "multi_label_classification"
DEFAULT_THRESHOLD = 0.5


class TextClassificationTask(InferenceTask):
    """Texts and pairs that became one row each."""

    def __init__(
        self,
        version: ServedVersion,
        model: DeviceModel,
        options: TextClassificationOptions,
        inputs: Sequence[str | Pair],
    ) -> None:
        spec = version.spec
        tokenized = tokenize_pairs(
            inputs,
            version.tokenizer,
            limit=min(options.max_length or spec.max_length, spec.max_length),
            truncate=options.truncate,
            has_type_ids=takes_type_ids(spec, tokenizer_facts(version.path)),
        )
        super().__init__(version, model, tokenized, num_inputs=len(inputs))
        self._labels = spec.labels
        self._function: Function = options.function_to_apply or default_function(spec)
        self._threshold = shown_threshold(options, spec)
        self._top_k = options.top_k

    def key(self) -> BatchKey:
        """All text classifications by the model share batches."""
        return BatchKey(self.model, "text-classification", None, -1)

    def answer(self) -> Answer:
        """Scores [N, C], zeros where an item failed."""
        errors = self.errors()
        logits = self._logits(set(errors))
        for i in np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist():
            errors[i] = not_finite(self.ref)
            logits[i] = 0
        scores = apply_function(logits, self._function)
        scores[list(errors)] = 0
        return Answer(scores, self.tokenized.tokens, self.tokenized.truncated, errors, about=self._about())

    def how_to_read(self, found: Answer) -> dict[str, Any]:
        """Scores [N, C]: their labels, and what became of the logits."""
        return {"kind": "text-classification", "shape": [self.num_inputs, len(self._labels)], **found.about}

    def _about(self) -> dict[str, Any]:
        return {
            "labels": list(self._labels),
            "top_k": self._top_k,
            "function": self._function,
            "threshold": self._threshold,
        }

    def _logits(self, failed: set[int]) -> FloatArray:
        """Float32 [N, C], zeros where an item failed."""
        logits = np.zeros((self.num_inputs, len(self._labels)), dtype=np.float32)
        for row, output in zip(self.tokenized.rows, self.work.outputs, strict=True):
            if row.input_index not in failed:
                answered = present(output)
                check_width(len(answered), len(self._labels), self.ref)
                logits[row.input_index] = answered
        return logits


def default_function(spec: ModelSpec) -> Function:
    """What the Hugging Face pipeline applies to the logits of such a model."""
    if spec.problem_type == "regression":
        return "none"
    if spec.problem_type == MULTI_LABEL or len(spec.labels) == 1:
        return "sigmoid"
    return "softmax"


def shown_threshold(options: TextClassificationOptions, spec: ModelSpec) -> float | None:
    """The score from which a label counts as predicted; None where only scores are shown."""
    if options.threshold is not None:
        return options.threshold
    if spec.problem_type != MULTI_LABEL:
        return None
    return DEFAULT_THRESHOLD if spec.threshold is None else spec.threshold


def apply_function(logits: FloatArray, function: Function) -> FloatArray:
    """Scores [N, C] of logits [N, C], a new array."""
    if function == "sigmoid":
        return sigmoid(logits)
    return softmax(logits) if function == "softmax" else logits.copy()
