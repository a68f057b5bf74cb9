"""What a loaded model is made to run before it counts as warm: its token budget is measured, memory is tried out.

The budgets live here: what was measured holds for all models of that shape and dtype as long as the process lives, so
that a new version of a model is warm at once; what was learned from running out of memory as long as the model is
loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import torch

from ondol.contract.model_spec import ModelSpec, PoolingMode
from workers.device.budget import CPU_BUDGETS, CUDA_BUDGETS, made_up_rows, measure_budget
from workers.device.checks import LAST_LAYER, Plan, plan_run
from workers.device.device_errors import release_batch_memory
from workers.device.encoding import encode
from workers.device.engine import RunSpec
from workers.device.halving import TokenBudget, packed_cost, padded_cost, run_halving
from workers.device.head_tasks import HEAD_TASKS
from workers.device.loading import LoadedModel
from workers.device.rows import Rows

log = structlog.get_logger(__name__)

_Shape = tuple[object, ...]
_OF_A_SHAPE = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""What the time of a pass depends on beside its rows; heads and weights do not matter."""


class Budgets:
    """Token budgets by model key. One thread uses it."""

    def __init__(self, device: torch.device, *, batch_tokens: int, measures: bool) -> None:
        self._device = device
        self._batch_tokens = batch_tokens
        self._measures = measures
        self._measured: dict[str, int] = {}
        self._by_shape: dict[_Shape, int] = {}
        self._open: dict[str, TokenBudget] = {}

    def of(self, key: str) -> TokenBudget:
        """The budget of a loaded model."""
        return self._open.setdefault(key, TokenBudget(self._measured.get(key, self._batch_tokens)))

    def forget(self, key: str) -> None:
        """The model has gone; what was measured of it stays true."""
        self._open.pop(key, None)

    def set(self, key: str, max_batch_tokens: int) -> None:
        """The model has gone over to another engine, for which this was measured; a fixed budget stays as it is."""
        if self._measures:
            self._open[key] = TokenBudget(max_batch_tokens)

    def warm_up(self, loaded: LoadedModel) -> None:
        """Settle the budget of a model that was just loaded; OutOfDeviceMemory if nothing fits.

        On a GPU the full budget is run once: memory that runs out halves it now, not under the first real batch.
        """
        key = loaded.handle.key
        if self._measures and key not in self._measured:
            shape = _shape_of(loaded)
            if shape not in self._by_shape:
                self._by_shape[shape] = self._measure(loaded)
            self._measured[key] = self._by_shape[shape]
        if self._device.type == "cuda":
            self._try_out(loaded, self.of(key))

    def _measure(self, loaded: LoadedModel) -> int:
        plan = plain_plan(loaded)

        def run(rows: Rows) -> None:
            encode(loaded, rows, plan)  # gives arrays on the host: it has waited for the device

        rows_of, budgets = rows_for(loaded), CPU_BUDGETS if self._device.type == "cpu" else CUDA_BUDGETS
        if self._device.type == "cuda":
            run(
                rows_of(budgets[0])
            )  # the first of all passes also loads the kernels, which takes a hundred times as long
        found = measure_budget(budgets, rows_of, run, clock=_clock(self._device))
        release_batch_memory(self._device)
        log.info(
            "budget.measured",
            key=loaded.handle.key,
            max_batch_tokens=found.max_batch_tokens,
            tokens_per_s=round(found.tokens_per_s),
        )
        return found.max_batch_tokens

    def _try_out(self, loaded: LoadedModel, budget: TokenBudget) -> None:
        plan, rows = plain_plan(loaded), rows_for(loaded)(budget.max_batch_tokens)
        run = run_halving(
            rows.lengths.tolist(),
            lambda start, end: encode(loaded, rows.part(start, end), plan),
            budget=budget,
            cost_of=packed_cost if loaded.is_packed else padded_cost,
            release=lambda: release_batch_memory(self._device),
        )
        if not run.pieces:
            raise run.errors[0]


def plain_plan(loaded: LoadedModel) -> Plan:
    """What such a model is asked most: its head's logits, or vectors by its own pooling."""
    spec = loaded.spec
    return plan_run(RunSpec(spec.task, None, LAST_LAYER), spec) if spec.task in HEAD_TASKS else embedding_plan(spec)


def embedding_plan(spec: ModelSpec) -> Plan:
    """One vector a row, by the model's own pooling and modules; the mean where it has none."""
    modes = (PoolingMode.MEAN,) if spec.pooling.modes == (PoolingMode.NONE,) else spec.pooling.modes
    return Plan(LAST_LAYER, modes, has_modules=True)


def rows_for(loaded: LoadedModel) -> Callable[[int], Rows]:
    """Made-up rows of a number of tokens, laid out as the worker would for this model."""
    num_embeddings = count_embeddings(loaded)
    return lambda num_tokens: made_up_rows(num_tokens, loaded.spec, num_embeddings, is_packed=loaded.wants_packed)


def count_embeddings(loaded: LoadedModel) -> int:
    """Token ids that the model knows."""
    embeddings = loaded.model.get_input_embeddings()  # type: ignore[operator]  # a method of every transformers model
    return int(embeddings.num_embeddings)


def _shape_of(loaded: LoadedModel) -> _Shape:
    config = loaded.model.config
    return (*(getattr(config, name, None) for name in _OF_A_SHAPE), loaded.handle.dtype, loaded.wants_packed)


def _clock(device: torch.device) -> Callable[[], float]:
    """A clock that neighbours on the same cores do not disturb, where there is one."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
