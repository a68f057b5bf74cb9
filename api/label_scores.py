"""Label scores as the outside sees them: best first, ties by id. N inputs, C labels; scores are float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from api.stored_items import StoredItems
from api.vectors import Array
from ondol.contract.errors import ModelStoreError
from ondol.sql.records import JsonObject

CHUNK_SCORES = 16 * 1024


@dataclass(frozen=True, slots=True)
class LabelView:
    """How scores are shown: the labels by id, at most `top_k` of them, and from which score one is predicted.

    `threshold` None: nothing is said of what is predicted.
    """

    labels: tuple[str, ...]
    top_k: int | None
    threshold: float | None

    @classmethod
    def of(cls, about: JsonObject) -> LabelView:
        """What a result's summary, or a reply's `about`, says of its scores; ModelStoreError if it says nothing."""
        try:
            return cls(tuple(about["labels"]), about.get("top_k"), about.get("threshold"))
        except (KeyError, TypeError) as exc:
            raise ModelStoreError("the result does not say which labels its scores belong to") from exc

    def show(self, scores: Array) -> list[list[dict[str, Any]]]:
        """By input, `{"label", "score"[, "predicted"]}` of the best labels, for scores [N, C]."""
        if scores.ndim != 2 or scores.shape[1] != len(self.labels):
            raise ModelStoreError(f"scores of shape {list(scores.shape)} do not fit {len(self.labels)} labels")
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k]
        best = np.take_along_axis(scores, order, axis=1)
        return [
            [self._shown(label, score) for label, score in zip(ids, row, strict=True)]
            for ids, row in zip(order.tolist(), best, strict=True)
        ]

    def _shown(self, label: int, score: np.float32) -> dict[str, Any]:
        shown: dict[str, Any] = {"label": self.labels[label], "score": score}
        if self.threshold is not None:
            shown["predicted"] = bool(score >= np.float32(self.threshold))
        return shown


@dataclass(frozen=True, slots=True)
class StoredScores(StoredItems):
    """A text classification's result: `scores` [N, C] and how they are shown."""

    summary: JsonObject
    scores: Array
    view: LabelView

    @classmethod
    def read(cls, summary: JsonObject, data: bytes) -> Self:
        """The result that a record holds; ModelStoreError if data and summary do not fit each other."""
        view = LabelView.of(summary)
        try:
            scores = np.frombuffer(data, dtype="<f4").reshape(summary["shape"])
        except (KeyError, ValueError, TypeError) as exc:
            raise ModelStoreError("the stored result does not have the shape that its record states") from exc
        if len(scores) != len(summary["tokens"]):
            raise ModelStoreError("the stored result does not have one row an input")
        view.show(scores[:0])  # labels that do not fit are told before the first byte leaves
        return cls(summary, scores, view)

    @property
    def size_bytes(self) -> int:
        """Bytes of all scores."""
        return self.scores.nbytes

    def outputs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Labels with their scores."""
        return [{"output": shown} for shown in self.view.show(self.scores[start:stop])]

    def chunk_inputs(self) -> int:
        """Inputs of about 16k scores."""
        return CHUNK_SCORES * len(self) // max(1, self.scores.size)
