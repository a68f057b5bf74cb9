"""Lanes: how many deliveries one receiver gets at a time, so that a slow or dead one holds up nobody else."""

from __future__ import annotations

import asyncio
import random

MAX_AT_A_TIME = 4
"""Tries that one receiver gets side by side."""
HORIZON_S = 5.0
"""A receiver holds no more than what it takes in this time."""
MAX_HELD = 64

_FIRST_GUESS_S = 1.0
_SLOW_S = 1.0
_PAUSE_S = 60.0
_MAX_PAUSE_S = 900.0
_WEIGHT = 0.3
_MAX_IDLE_LANES = 1_000


class Lane:
    """What is under way to one receiver, and how long it takes for an answer."""

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(MAX_AT_A_TIME)
        self.num_held = 0
        self._answer_s = _FIRST_GUESS_S

    @property
    def has_room(self) -> bool:
        """Whether one more would be tried soon."""
        soon = int(MAX_AT_A_TIME * HORIZON_S / max(self._answer_s, 1e-3))
        return self.num_held < min(MAX_HELD, max(MAX_AT_A_TIME, soon))

    def answered(self, in_s: float) -> None:
        """A try has ended, with an answer or without one."""
        self._answer_s += _WEIGHT * (in_s - self._answer_s)

    def pause_s(self, age_s: float) -> float:
        """For how long to put back one that finds no room after `age_s`.

        Spread, so that a long backlog is not read again at once; and the longer it has waited for a slow receiver, the
        rarer it is looked at: a backlog of days must not keep SQL busy.
        """
        if self._answer_s < _SLOW_S:
            return random.uniform(1.0, 5.0)
        longest_s = min(max(_PAUSE_S, age_s), _MAX_PAUSE_S)
        return random.uniform(longest_s / 10, longest_s)


class Lanes:
    """The lanes by receiver, host and port."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def of(self, receiver: str) -> Lane:
        """The receiver's lane; idle ones are forgotten when there are many."""
        lane = self._lanes.get(receiver)
        if lane is None:
            if len(self._lanes) >= _MAX_IDLE_LANES:
                self._lanes = {name: each for name, each in self._lanes.items() if each.num_held}
            lane = self._lanes[receiver] = Lane()
        return lane
