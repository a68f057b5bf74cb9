"""Token classification: from a job's or call's texts to windows, and from their tokens' logits to entities.

`T` tokens of a row, `K` of them the text's own, `C` labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ondol.contract.errors import OndolError
from ondol.contract.payloads import TokenClassificationOptions
from workers.entities import WORD_STRATEGIES, Entity, EntityReader, LabelledWindow, LabelTable, to_utf16
from workers.inference_task import Answer, InferenceTask, present
from workers.model_library import ServedVersion
from workers.rows import BatchKey, DeviceModel, FloatArray
from workers.scores import check_width, not_finite
from workers.token_windows import Window, token_windows
from workers.tokenizer_facts import tokenizer_facts


class TokenClassificationTask(InferenceTask):
    """Texts that became windows, one row each."""

    def __init__(
        self,
        version: ServedVersion,
        model: DeviceModel,
        options: TokenClassificationOptions,
        inputs: Sequence[str],
    ) -> None:
        spec, tokenizer = version.spec, version.tokenizer
        unknown = tokenizer_facts(version.path).unknown_token
        unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
        found = token_windows(
            inputs,
            tokenizer,
            limit=min(options.max_length or spec.max_length, spec.max_length),
            stride=options.stride,
            unknown_id=unknown_id,
            has_subwords=options.aggregation_strategy in WORD_STRATEGIES,
        )
        super().__init__(version, model, found.tokenized, num_inputs=len(inputs))
        self._texts = inputs
        self._windows = found.windows
        self._num_labels = len(spec.labels)
        labels = LabelTable.of(spec.labels, options.ignore_labels)
        self._reader = EntityReader(labels, options.aggregation_strategy, tokenizer, unknown_id)
        self._is_utf16 = options.offset_unit == "utf16"

    def refuse(self, errors: dict[int, OndolError]) -> None:
        """Report these inputs with these errors; they have neither rows nor windows from now on."""
        rows = zip(self.tokenized.rows, self._windows, strict=True)
        self._windows = [window for row, window in rows if row.input_index not in errors]
        super().refuse(errors)

    def key(self) -> BatchKey:
        """All token classifications by the model share batches."""
        return BatchKey(self.model, "token-classification", None, -1)

    def answer(self) -> Answer:
        """One list of entities an input, empty where it failed."""
        errors = self.errors()
        labelled: list[LabelledWindow] = []
        owners: list[int] = []
        for row, window, output in zip(self.tokenized.rows, self._windows, self.work.outputs, strict=True):
            if row.input_index not in errors:
                logits = self._own(window, present(output))
                if not np.isfinite(logits).all():
                    errors[row.input_index] = not_finite(self.ref)
                    continue
                labelled.append(LabelledWindow(self._texts[row.input_index], window, logits))
                owners.append(row.input_index)
        by_input: list[list[list[Entity]]] = [[] for _ in range(self.num_inputs)]
        for owner, entities in zip(owners, self._reader.read(labelled), strict=True):
            by_input[owner].append(entities)
        outputs = [[] if i in errors else self._merged(i, parts) for i, parts in enumerate(by_input)]
        nothing = np.zeros((self.num_inputs, 0), dtype=np.float32)
        return Answer(nothing, self.tokenized.tokens, self.tokenized.truncated, errors, outputs=outputs)

    def how_to_read(self, found: Answer) -> dict[str, Any]:  # noqa: ARG002  # every answer is read alike
        """JSON."""
        return {"kind": "token-classification", "format": "json", "shape": None}

    def data(self, found: Answer) -> bytes:
        """The lists of entities as UTF-8 JSON."""
        return json.dumps(found.outputs, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def _own(self, window: Window, logits: FloatArray) -> FloatArray:
        """The logits [K, C] of the text's own tokens among those [T, C] of the row."""
        check_width(logits.shape[1], self._num_labels, self.ref)
        return logits[window.begin : window.begin + len(window)]

    def _merged(self, index: int, of_windows: list[list[Entity]]) -> list[Entity]:
        found = self._reader.merged(of_windows)
        if self._is_utf16:
            to_utf16(found, self._texts[index])
        return found
