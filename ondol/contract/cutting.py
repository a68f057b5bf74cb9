"""Cutting the inputs of a job into shards: slices of consecutive inputs, bounded in estimated tokens and in number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_SHARD_INPUTS = 4_096
"""Most inputs of one shard, however short they are."""

MAX_JOB_SIZE = 2**31 - 1
"""Most inputs, and most estimated tokens, of one job: as many as its row has room for."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Inputs from `first_input` to before `first_input + num_inputs`."""

    first_input: int
    num_inputs: int
    estimated_tokens: int


def cut(tokens: Iterable[int], *, max_tokens: int, max_inputs: int = MAX_SHARD_INPUTS) -> Iterator[Slice]:
    """Slices of inputs whose estimated tokens are `tokens`, in order, in one pass.

    A slice is over `max_tokens` only if it is one input alone. No input: no slice.
    """
    first = num = total = 0
    for one in tokens:
        if num and (total + one > max_tokens or num == max_inputs):
            yield Slice(first, num, total)
            first, num, total = first + num, 0, 0
        num += 1
        total += one
    if num:
        yield Slice(first, num, total)
