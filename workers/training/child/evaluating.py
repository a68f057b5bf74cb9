"""Evaluation on the validation rows. It draws no random number, so that training does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.training.child.losses import IGNORED, TaskLoss
from workers.training.child.metrics import Metrics, row_metrics, tag_metrics
from workers.training.child.rows import Batch, Collator, EncodedRows

TOKEN_TASK = "token-classification"


class Evaluator:
    """Loss and metrics of a model on `rows`, in batches of like length."""

    def __init__(
        self,
        rows: EncodedRows,
        *,
        problem: str,
        labels: list[str],
        loss: TaskLoss,
        collate: Collator,
        batch_size: int,
        autocast: torch.dtype | None,
        before_batch: Callable[[], bool],
    ) -> None:
        """`before_batch` is asked before each batch and may wait; False breaks the evaluation off."""
        self._rows = rows
        self._problem = problem
        self._labels = labels
        self._loss = loss
        self._collate = collate
        self._autocast = autocast
        self._before_batch = before_batch
        lengths = rows.lengths
        order = sorted(range(len(rows)), key=lambda index: lengths[index], reverse=True)
        self._batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def evaluate(self, model: nn.Module) -> Metrics | None:
        """Metrics of `model`, left in eval mode; None if it was broken off."""
        model.eval()
        device = next(model.parameters()).device
        total, num_items = 0.0, 0
        found: list[tuple[Any, Any]] = []
        for indices in self._batches:
            if not self._before_batch():
                return None
            batch = {key: value.to(device) for key, value in self._collate([self._rows[i] for i in indices]).items()}
            logits, labels = self._logits(model, batch), batch["labels"]
            scored = self._loss.count(labels)
            total += float(self._loss(logits, labels, 1)) if scored else 0.0
            num_items += scored
            found += self._compared(logits, labels)
        return self._metrics(found) | {"loss": total / max(num_items, 1)}

    def _logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        device_type = batch["labels"].device.type
        with torch.no_grad(), torch.autocast(device_type, dtype=self._autocast, enabled=self._autocast is not None):
            logits: torch.Tensor = model(**inputs).logits
        return logits.float()

    def _compared(self, logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[Any, Any]]:
        """What the metrics need of a batch: logits and labels, or tag names by row."""
        if self._problem != TOKEN_TASK:
            return [(logits.cpu().numpy(), labels.cpu().numpy())]
        names = np.asarray(self._labels, dtype=object)
        predicted, expected = logits.argmax(dim=-1).cpu().numpy(), labels.cpu().numpy()
        scored = expected != IGNORED
        return [(names[predicted[i][scored[i]]], names[expected[i][scored[i]]]) for i in range(len(expected))]

    def _metrics(self, found: list[tuple[Any, Any]]) -> Metrics:
        if self._problem == TOKEN_TASK:
            return tag_metrics([predicted for predicted, _ in found], [expected for _, expected in found])
        logits = np.concatenate([pair[0] for pair in found])
        return row_metrics(self._problem, logits, np.concatenate([pair[1] for pair in found]))
