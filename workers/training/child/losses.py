"""Losses as sums over what is scored, divided by how much of that an optimizer step has: accumulation changes nothing.

The models' own losses are means of a batch, which the Trainer of transformers 5.23 takes for such sums: with
accumulation over n batches its gradients come out n times too large. Shapes: `B` rows, `T` tokens, `C` labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from ondol.contract.errors import InvalidPayload

IGNORED = -100
"""Label of tokens that are not scored."""
_PARAM = "options.class_weights"


class TaskLoss:
    """The loss of `problem` (a problem type, or `token-classification`); `weights` [C] float32 on the device."""

    def __init__(self, problem: str, *, weights: torch.Tensor | None, label_smoothing: float) -> None:
        self._problem = problem
        self._weights = weights
        self._label_smoothing = label_smoothing

    def count(self, labels: torch.Tensor) -> int:
        """How many numbers of `labels` are scored."""
        if self._is_categorical:
            return int(labels.ne(IGNORED).sum())
        return labels.numel()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, num_items: int | torch.Tensor) -> torch.Tensor:
        """Scalar float32 loss of logits [B, C] or [B, T, C], as its share of `num_items`."""
        # A step whose rows have no scored token at all has loss 0, not 0 / 0.
        return self._each(logits.float(), labels).sum() / max(int(num_items), 1)

    @property
    def _is_categorical(self) -> bool:
        return self._problem in ("single_label_classification", "token-classification")

    def _each(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._problem == "regression":
            return nn.functional.mse_loss(logits.reshape(-1), labels.float(), reduction="none")
        if self._problem == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(
                logits, labels.float(), reduction="none", pos_weight=self._weights
            )
        flat = labels.reshape(-1)
        losses = nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            flat,
            reduction="none",
            ignore_index=IGNORED,
            label_smoothing=self._label_smoothing,
        )
        return losses if self._weights is None else losses * self._weights[flat.clamp(min=0)]


def class_weights(
    wanted: Literal["balanced"] | Mapping[str, float] | None,
    *,
    labels: list[str],
    counts: Mapping[str, int],
    num_rows: int,
    problem: str,
) -> list[float] | None:
    """Weight of each label, of mean 1 over the training data so that the learning rate keeps its meaning.

    `balanced`: inverse to `counts` (how often each label occurs). For multi-label the weights are those of the rows
    that have the label, `balanced` being rows without it to rows with it. InvalidPayload where they have no meaning.
    """
    if wanted is None:
        return None
    if problem == "regression":
        raise InvalidPayload("class_weights belong to classes; a regression has none, leave them out", param=_PARAM)
    if not isinstance(wanted, str):
        unknown = sorted(set(wanted) - set(labels))
        if unknown:
            raise InvalidPayload(
                f"class_weights names {', '.join(unknown[:5])}; the labels are {', '.join(labels[:20])}", param=_PARAM
            )
    known = [max(counts.get(label, 0), 1) for label in labels]
    if problem == "multi_label_classification":
        if isinstance(wanted, str):
            return [max(num_rows - count, 1) / count for count in known]
        return [wanted.get(label, 1.0) for label in labels]
    raw = [1 / count for count in known] if isinstance(wanted, str) else [wanted.get(label, 1.0) for label in labels]
    mean = sum(weight * count for weight, count in zip(raw, known, strict=True)) / sum(known)
    return [weight / mean for weight in raw]
