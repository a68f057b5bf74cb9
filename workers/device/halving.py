"""Out of memory: a batch is halved and run again until one row is left alone, and the token budget learns from it.

Torch-free: `forward` is whatever runs the rows from `start` to `end` and raises OutOfDeviceMemory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ondol.contract.errors import OutOfDeviceMemory

Piece = TypeVar("Piece")
CostOf = Callable[[Sequence[int]], int]
"""Tokens that rows of these lengths cost in one forward pass, padding included."""

_GOOD_RUNS_BEFORE_GROWTH = 64
_GROWTH = 1.25


def packed_cost(lengths: Sequence[int]) -> int:
    """Tokens of rows end to end."""
    return sum(lengths)


def padded_cost(lengths: Sequence[int]) -> int:
    """Tokens of rows padded to the longest."""
    return len(lengths) * max(lengths, default=0)


class TokenBudget:
    """The tokens a forward pass may have: less after memory ran out, growing back while runs succeed."""

    def __init__(self, configured: int) -> None:
        self._configured = configured
        self._learned: int | None = None
        self._num_good = 0

    @property
    def max_batch_tokens(self) -> int:
        """What the worker should keep to."""
        return self._configured if self._learned is None else min(self._learned, self._configured)

    @property
    def learned(self) -> int | None:
        """The bound that was learned from running out of memory; None: none so far."""
        return self._learned

    def ran_out(self, num_tokens: int) -> None:
        """A pass of this many tokens did not fit."""
        half = max(1, num_tokens // 2)
        self._learned = half if self._learned is None else min(half, self._learned)
        self._num_good = 0

    def succeeded(self, num_tokens: int) -> None:
        """A pass of this many tokens fitted."""
        if self._learned is None or num_tokens < self._learned // 2:
            return
        self._num_good += 1
        if self._num_good >= _GOOD_RUNS_BEFORE_GROWTH:
            # Memory may have been short only for a while (a neighbour, a larger model): no budget stays low for ever.
            self._num_good = 0
            grown = int(self._learned * _GROWTH) + 1
            self._learned = None if grown >= self._configured else grown


@dataclass(slots=True)
class HalvedRun(Generic[Piece]):
    """What became of a batch: `pieces` as (start, end, result) in row order, and the rows that did not fit alone."""

    pieces: list[tuple[int, int, Piece]] = field(default_factory=list)
    errors: dict[int, OutOfDeviceMemory] = field(default_factory=dict)
    num_halvings: int = 0


def run_halving(
    lengths: Sequence[int],
    forward: Callable[[int, int], Piece],
    *,
    budget: TokenBudget,
    cost_of: CostOf,
    release: Callable[[], None],
) -> HalvedRun[Piece]:
    """Run all rows, in as many pieces as memory needs; `release` gives cached memory back before a second try."""
    run: HalvedRun[Piece] = HalvedRun()
    waiting = list(reversed(_cut(lengths, budget.learned, cost_of)))
    while waiting:
        start, end = waiting.pop()
        try:
            piece = forward(start, end)
        except OutOfDeviceMemory as exc:
            # The traceback holds the tensors that filled the memory; only the words may outlive this block.
            message = exc.message
        else:
            budget.succeeded(cost_of(lengths[start:end]))
            run.pieces.append((start, end, piece))
            continue
        release()
        if end - start == 1:
            run.errors[start] = OutOfDeviceMemory(f"a row of {lengths[start]} tokens does not fit alone: {message}")
            continue
        budget.ran_out(cost_of(lengths[start:end]))
        run.num_halvings += 1
        middle = _middle(lengths, start, end)
        waiting += [(middle, end), (start, middle)]
    return run


def _middle(lengths: Sequence[int], start: int, end: int) -> int:
    """Where to cut so that both sides have about as many tokens and at least one row."""
    half, total = sum(lengths[start:end]) / 2, 0
    for row in range(start, end):
        total += lengths[row]
        if total >= half:
            return min(max(row + 1, start + 1), end - 1)
    return end - 1


def _cut(lengths: Sequence[int], bound: int | None, cost_of: CostOf) -> list[tuple[int, int]]:
    """Ranges of rows that each cost at most `bound` tokens, or are one row."""
    if bound is None or cost_of(lengths) <= bound:
        return [(0, len(lengths))]
    ranges, start = [], 0
    for row in range(1, len(lengths)):
        if cost_of(lengths[start : row + 1]) > bound:
            ranges.append((start, row))
            start = row
    return [*ranges, (start, len(lengths))]
