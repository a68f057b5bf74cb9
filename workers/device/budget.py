"""Which token budget gives the most tokens a second on this device: measured once a model, on made-up rows.

Larger batches keep a GPU busy and fall out of a CPU's caches, and where that turns depends on both. The full budget is
run before a model counts as warm, so that memory that runs out does so at load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ondol.contract.errors import OutOfDeviceMemory
from ondol.contract.model_spec import ModelSpec
from workers.device.rows import Rows

CPU_BUDGETS = (256, 512, 1_024, 2_048, 4_096)
CUDA_BUDGETS = (2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
LIMIT_S = 1.5
"""Time for one model's measurement; what would take longer is not tried."""
_LENGTHS = (22, 9, 36, 58, 13, 95, 17, 28, 7, 125, 31, 19)
"""Tokens of one text after the other: the skew of real ones, median 22 and mean 38."""
_NEAR = 0.97
"""A smaller budget as good as this is better: whoever waits, waits for whole batches."""
_PASS_S = 0.001
"""What a batch costs outside of the device: its frame, its dispatch, its reply."""
_NUM_ROUNDS = 3
_FIRST_ID = 1
_SEED = 21

Run = Callable[[Rows], None]
"""Runs rows on the device and waits for them; OutOfDeviceMemory."""


def made_up_rows(num_tokens: int, spec: ModelSpec, num_embeddings: int, *, is_packed: bool) -> Rows:
    """Rows of mixed lengths that fill the budget; for padded models of one length, as the worker cuts them."""
    longest = max(1, min(spec.max_length, spec.max_positions - spec.position_offset))
    lengths: list[int] = []
    left = num_tokens
    typical = min(int(np.mean(_LENGTHS)), longest)
    while left > 0:
        length = min(_LENGTHS[len(lengths) % len(_LENGTHS)] if is_packed else typical, longest, left)
        lengths.append(length)
        left -= length
    ids = np.random.default_rng(_SEED).integers(min(_FIRST_ID, num_embeddings - 1), num_embeddings, num_tokens)
    ids[ids == spec.pad_token_id] = (spec.pad_token_id + 1) % num_embeddings
    return Rows(np.asarray(lengths, dtype=np.int64), ids.astype(np.int32))


@dataclass(frozen=True, slots=True)
class Measured:
    """A token budget, and the tokens a second at which it was run."""

    max_batch_tokens: int
    tokens_per_s: float


def measure_budget(
    budgets: Sequence[int],
    rows_of: Callable[[int], Rows],
    run: Run,
    *,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """The smallest budget that is nearly as fast as the fastest one; what does not fit in memory is left out.

    The fastest of some rounds counts, in seconds of `clock`. OutOfDeviceMemory if even the smallest does not fit.
    """
    best_s: dict[int, float] = {}
    ends_at = time.perf_counter() + limit_s
    for is_first in [True] + [False] * (_NUM_ROUNDS - 1):
        for budget in list(budgets) if is_first else list(best_s):
            expected_s = _expected_s(budget, best_s)
            if best_s and time.perf_counter() + expected_s > ends_at:
                break
            try:
                took_s = _time(run, rows_of(budget), clock)
            except OutOfDeviceMemory:
                if not best_s:
                    raise
                break
            best_s[budget] = min(took_s, best_s.get(budget, took_s))
    return choose(best_s)


def choose(best_s: Mapping[int, float]) -> Measured:
    """The smallest of the measured budgets whose tokens a second are near to the best; `best_s` are seconds a pass."""
    rates = {budget: budget / (took_s + _PASS_S) for budget, took_s in best_s.items()}
    enough = _NEAR * max(rates.values())
    chosen = min(budget for budget, rate in rates.items() if rate >= enough)
    return Measured(chosen, rates[chosen])


def _expected_s(budget: int, best_s: Mapping[int, float]) -> float:
    """Seconds that a budget will about take, by the rate of the largest that was measured."""
    if not best_s:
        return 0.0
    largest = max(best_s)
    return best_s[largest] * budget / largest


def _time(run: Run, rows: Rows, clock: Callable[[], float]) -> float:
    started = clock()
    run(rows)
    return max(clock() - started, 1e-9)
