"""How fast the queue drains, measured between one count and the next while jobs waited."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ondol.sql.backlog import Amount, Backlog

WINDOW_S = 30.0
MIN_BUSY_S = 2.0
"""Less than so much time with waiting jobs says little: then the mean of the whole window is taken."""
ALL = ""
"""The scope of all projects together; others are projects' ids."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Jobs/s and tokens/s."""

    jobs: float
    tokens: float


@dataclass(frozen=True, slots=True)
class _Interval:
    """Between two counts, by scope: what ended, what left the queue, and whether jobs waited all the time."""

    end: float
    length_s: float
    ended: Mapping[str, Amount]
    left: Mapping[str, Amount]
    busy: frozenset[str]


class DrainRate:
    """Fed with counts in their order; times are the database's.

    What left the queue is reckoned from what this process recorded meanwhile, and so is too low where other processes
    record too; what has ended is not, but knows shards only with their job. The larger one is taken.
    """

    def __init__(self) -> None:
        self._intervals: deque[_Interval] = deque()
        self._last: tuple[Backlog, Mapping[str, Amount]] | None = None

    @property
    def since(self) -> float | None:
        """From when on the next count must count what ended; None before the first."""
        return None if self._last is None else self._last[0].now

    def add(self, backlog: Backlog, recorded: Mapping[str, Amount]) -> None:
        """Take a count, and how much of each project this process has recorded in its life until then."""
        ended = dict(backlog.ended) | {ALL: _sum(backlog.ended.values())}
        if self._last is None:
            self._intervals.append(_Interval(backlog.now, WINDOW_S, ended, {}, frozenset()))
        else:
            before, known = self._last
            was, is_now = by_scope(before), by_scope(backlog)
            new = {scope: recorded.get(scope, Amount()) - known.get(scope, Amount()) for scope in was}
            new[ALL] = _sum(recorded.values()) - _sum(known.values())
            left = {scope: amount + new[scope] - is_now.get(scope, Amount()) for scope, amount in was.items()}
            busy = frozenset(scope for scope, amount in was.items() if amount.num_jobs and _waits(is_now, scope))
            length_s = max(1e-6, backlog.now - before.now)
            self._intervals.append(_Interval(backlog.now, length_s, ended, left, busy))
        self._last = backlog, dict(recorded)
        while len(self._intervals) > 1 and self._intervals[0].end < backlog.now - WINDOW_S:
            self._intervals.popleft()

    def of(self, scope: str = ALL) -> Rate | None:
        """The rate over the last half minute; None if nothing has left the queue."""
        busy = [interval for interval in self._intervals if scope in interval.busy]
        busy_s = sum(interval.length_s for interval in busy)
        if busy_s >= MIN_BUSY_S:
            ended = _sum(one.ended.get(scope, Amount()) for one in busy)
            left = _sum(one.left[scope] for one in busy)
            return _rate(max(ended.num_jobs, left.num_jobs), max(ended.num_tokens, left.num_tokens), busy_s)
        ended = _sum(one.ended.get(scope, Amount()) for one in self._intervals)
        return _rate(ended.num_jobs, ended.num_tokens, sum(one.length_s for one in self._intervals))


def by_scope(backlog: Backlog) -> dict[str, Amount]:
    """What is queued by project, and of all."""
    found: dict[str, Amount] = {ALL: Amount()}
    for (project_id, _), amount in backlog.queued.items():
        found[project_id] = found.get(project_id, Amount()) + amount
        found[ALL] += amount
    return found


def _waits(queued: Mapping[str, Amount], scope: str) -> bool:
    return queued.get(scope, Amount()).num_jobs > 0


def _sum(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def _rate(num_jobs: int, num_tokens: int, length_s: float) -> Rate | None:
    if length_s <= 0 or (num_jobs <= 0 and num_tokens <= 0):
        return None
    return Rate(max(0, num_jobs) / length_s, max(0, num_tokens) / length_s)
