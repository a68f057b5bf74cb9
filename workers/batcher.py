"""The batcher: rows of all jobs and calls in flight, cut into batches by tokens.

Rows wait in one line a key and class. Each row has a virtual start, its arrival plus a grace by class; the earliest
virtual start goes first. So interactive rows overtake, and no row of any class waits for ever (ageing).

A row may be struck out or pass its deadline at any moment, also while a batch is formed: a row that was wanted when
its line was looked at is never looked at twice.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from ondol.contract.errors import DeadlineExceeded
from ondol.contract.states import Priority
from workers.rows import Batch, BatchKey, Row, Work

CLASS_GRACE_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 1.0, Priority.BULK: 5.0}
SORT_WINDOW_BUDGETS = 16


class Batcher:
    """Thread-safe. Rows of models lie end to end unless `set_packed` said that they must be padded."""

    def __init__(self, *, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._budgets: dict[str, int] = {}
        self._padded: set[str] = set()
        self._lines: dict[BatchKey, dict[Priority, deque[Row]]] = {}
        self._suspects: deque[Batch] = deque()
        self._num_tokens = 0
        self._changed = threading.Condition()

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of all rows that wait, those that nobody wants any more and suspects apart."""
        return self._num_tokens

    def set_packed(self, model_key: str, *, is_packed: bool) -> None:
        """Say how rows of a model are laid out."""
        with self._changed:
            (self._padded.discard if is_packed else self._padded.add)(model_key)

    def set_budget(self, model_key: str, max_batch_tokens: int) -> None:
        """Take over what the device process learned from running out of memory."""
        with self._changed:
            self._budgets[model_key] = max_batch_tokens

    def add(self, works: Iterable[Work]) -> None:
        """Queue all rows of the works."""
        with self._changed:
            for work in works:
                self._line(work.key, work.priority).extend(work.rows)
                self._num_tokens += sum(row.num_tokens for row in work.rows)
            self._changed.notify_all()

    def add_suspects(self, batches: Iterable[Batch]) -> None:
        """Queue batches that must have the device for themselves; they go before everything else."""
        with self._changed:
            self._suspects.extend(batches)
            self._changed.notify_all()

    def put_back(self, batch: Batch) -> None:
        """Queue a batch's rows again, at the head: it was sent and not begun."""
        with self._changed:
            if batch.is_exclusive and batch.rows and batch.rows[0].is_suspect:
                self._suspects.appendleft(batch)
            else:
                self._return_rows(batch.key, batch.rows)
            self._changed.notify_all()

    def next_batch(self, timeout_s: float, *, is_idle: bool) -> Batch | None:
        """The next batch, or None after the time. An exclusive batch is given out only when the device is idle."""
        limit = time.monotonic() + timeout_s
        with self._changed:
            while True:
                batch, is_blocked = self._form(is_idle)
                if batch is not None:
                    return batch
                left_s = limit - time.monotonic()
                if left_s <= 0 or is_blocked:
                    return None
                self._changed.wait(left_s)

    def _form(self, is_idle: bool) -> tuple[Batch | None, bool]:
        """A batch if one can be formed; and whether one waits for the device to become idle."""
        while self._suspects:
            if not is_idle:
                return None, True
            batch = self._suspects.popleft()
            batch.rows = [row for row in batch.rows if _is_wanted(row)]
            if batch.rows:
                return batch, False
        while (head := self._earliest()) is not None:
            key = head.work.key
            if head.work.is_alone:
                if not is_idle:
                    return None, True
                return Batch(key, [self._pop(head)], is_exclusive=True), False
            budget = self._budgets.get(key.model.key, self._max_batch_tokens)
            is_padded = key.model.key in self._padded
            rows = self._take_padded(key, budget) if is_padded else self._take(key, budget)
            if rows:  # none: all of them were struck out a moment ago
                return Batch(key, rows, release="drained" if self._head(key) is None else "full"), False
        return None, False

    def _earliest(self) -> Row | None:
        """The row that goes first of all; lines that have become empty are forgotten on the way."""
        best: Row | None = None
        for key in list(self._lines):
            head = self._head(key)
            if head is None:
                del self._lines[key]
            elif best is None or _virtual_start(head) < _virtual_start(best):
                best = head
        return best

    def _head(self, key: BatchKey) -> Row | None:
        """The row of the key that goes first; rows that nobody wants are dropped on the way."""
        heads = []
        for line in self._lines[key].values():
            while line and not _is_wanted(line[0]):
                self._num_tokens -= line.popleft().num_tokens
            if line:
                heads.append(line[0])
        return min(heads, key=_virtual_start) if heads else None

    def _pop(self, head: Row) -> Row:
        """Take a row that stands at the head of its line."""
        row = self._lines[head.work.key][head.work.priority].popleft()
        assert row is head, "only the forming thread takes rows, and it holds the lock"
        self._num_tokens -= row.num_tokens
        return row

    def _take(self, key: BatchKey, budget: int) -> list[Row]:
        taken: list[Row] = []
        tokens = 0
        while (row := self._head(key)) is not None and not row.work.is_alone:
            if taken and tokens + row.num_tokens > budget:
                break
            taken.append(self._pop(row))
            tokens += row.num_tokens
        return taken

    def _take_padded(self, key: BatchKey, budget: int) -> list[Row]:
        """Rows of like length around the head: padded size within the budget, padding small."""
        window = self._take(key, budget * SORT_WINDOW_BUDGETS)
        if not window:
            return []
        by_length = sorted(window, key=lambda row: row.num_tokens)
        first = last = by_length.index(window[0])
        while True:
            grow_up = last + 1 < len(by_length) and by_length[last + 1].num_tokens * (last + 2 - first) <= budget
            grow_down = first > 0 and by_length[last].num_tokens * (last + 2 - first) <= budget
            if grow_up:
                last += 1
            elif grow_down:
                first -= 1
            else:
                break
        chosen = by_length[first : last + 1]
        kept = set(map(id, chosen))
        self._return_rows(key, [row for row in window if id(row) not in kept])
        return chosen

    def _return_rows(self, key: BatchKey, rows: Sequence[Row]) -> None:
        for row in reversed(rows):
            self._line(key, row.work.priority).appendleft(row)
            self._num_tokens += row.num_tokens

    def _line(self, key: BatchKey, priority: Priority) -> deque[Row]:
        lines = self._lines.get(key)
        if lines is None:
            lines = self._lines[key] = {each: deque() for each in Priority}
        return lines[priority]


def _virtual_start(row: Row) -> float:
    return row.work.enqueued_at + CLASS_GRACE_S[row.work.priority]


def _is_wanted(row: Row) -> bool:
    work = row.work
    if work.is_struck:
        return False
    if work.deadline_at is not None and time.time() > work.deadline_at:
        work.settle(row, None, DeadlineExceeded("the deadline passed before the text reached the device"))
        return False
    return True
