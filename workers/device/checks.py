"""What a run may ask of a model, checked before the device is touched: a bad index on a GPU would end the process."""

from __future__ import annotations

from dataclasses import dataclass

from ondol.contract.errors import InvalidPayload, ModelCannot
from ondol.contract.model_spec import ModelSpec, PoolingMode
from workers.device.engine import RunSpec
from workers.device.head_tasks import HEAD_TASKS, TOKEN_TASK
from workers.device.rows import Rows

LAST_LAYER = -1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compute: the layer as an index of hidden states (-1 last), pooling modes, and whether modules follow.

    With a `head_task` it is the logits of the version's head, and the rest says nothing.
    """

    layer: int
    modes: tuple[PoolingMode, ...]
    has_modules: bool
    head_task: str | None = None

    @property
    def gives_tokens(self) -> bool:
        """Whether every token has a vector, or logits, of its own."""
        if self.head_task is not None:
            return self.head_task == TOKEN_TASK
        return self.modes == (PoolingMode.NONE,)


def plan_run(run: RunSpec, spec: ModelSpec) -> Plan:
    """What `run` means for the model; InvalidPayload or ModelCannot say what it may ask instead."""
    if run.task in HEAD_TASKS:
        return _plan_head(run.task, spec)
    if run.task != "embedding":
        raise InvalidPayload(f"the device process does not know the task {run.task!r}", param="spec.task")
    layer = _resolve_layer(run.layer, spec.num_layers)
    modes = spec.pooling.modes if run.pooling is None else tuple(_parse_mode(name) for name in run.pooling)
    if not modes or (PoolingMode.NONE in modes and len(modes) > 1):
        raise InvalidPayload("pooling is one or more modes, or none alone", param="spec.pooling")
    if PoolingMode.POOLER in modes:
        _check_pooler(layer, spec)
    return Plan(layer, modes, has_modules=run.pooling is None and layer == LAST_LAYER)


def check_rows(rows: Rows, spec: ModelSpec, *, num_embeddings: int) -> None:
    """InvalidPayload for a token id, a type id or a length that the model has no vector for."""
    if rows.token_ids.min() < 0 or rows.token_ids.max() >= num_embeddings:
        raise InvalidPayload(f"a token id is outside the vocabulary of {num_embeddings}", param="token_ids")
    longest = spec.max_positions - spec.position_offset
    if rows.lengths.max() > longest:
        raise InvalidPayload(f"a row has {rows.lengths.max()} tokens; the model takes {longest}", param="lengths")
    if rows.type_ids is None:
        return
    if spec.type_vocab_size == 0:
        raise InvalidPayload("the model takes no type ids", param="type_ids")
    if rows.type_ids.min() < 0 or rows.type_ids.max() >= spec.type_vocab_size:
        raise InvalidPayload(f"a type id is not below {spec.type_vocab_size}", param="type_ids")


def _plan_head(task: str, spec: ModelSpec) -> Plan:
    if spec.task != task:
        raise ModelCannot(
            f"the model has no trained head for {task}; it can do "
            + (f"{spec.task} and embedding" if spec.task in HEAD_TASKS else "embedding"),
            param="spec.task",
        )
    return Plan(LAST_LAYER, (), has_modules=False, head_task=task)


def _resolve_layer(layer: int, num_layers: int) -> int:
    """The layer as an index from 0 (embeddings) on, and -1 for the last, however it was named."""
    num_states = num_layers + 1
    if not -num_states <= layer < num_states:
        raise InvalidPayload(f"layer {layer} is not between {-num_states} and {num_layers}", param="spec.layer")
    index = layer % num_states
    return LAST_LAYER if index == num_layers else index


def _parse_mode(name: str) -> PoolingMode:
    try:
        return PoolingMode(name)
    except ValueError as exc:
        known = ", ".join(PoolingMode)
        raise InvalidPayload(f"unknown pooling {name!r}; known are {known}", param="spec.pooling") from exc


def _check_pooler(layer: int, spec: ModelSpec) -> None:
    if not spec.has_pooler:
        raise ModelCannot(
            "the model has no trained pooler; use mean, cls, max or last",
            param="spec.pooling",
            code="model_has_no_pooler",
        )
    if layer != LAST_LAYER:
        raise InvalidPayload("the pooler belongs to the last layer", param="spec.layer")
