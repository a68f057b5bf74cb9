"""The batcher: rows of all jobs and calls in flight, cut into batches by tokens.

Rows wait in one line a key and class. The classes go in their order, so an interactive row waits for the batches that
are formed already and for no others. Each row has a virtual start, its arrival plus a grace by class (ageing): when
`MAX_OVERTAKING` batches in a row went before one whose virtual start is the earliest, it is its turn, so no class
starves. Rows that ask for the very same are computed once (`workers.twins`).

A row may be struck out or pass its deadline at any moment, also while a batch is formed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from ondol.contract.states import Priority
from workers.rows import Batch, BatchKey, Row, Work, is_wanted
from workers.twins import Twins, asked_by, may_share

SORT_WINDOW_BUDGETS = 16
MAX_OVERTAKING = 4
CALL_FILL_PARTS = 4
"""A batch that an interactive row leads is filled up with rows of other classes to this part of the budget only: calls
wait for it, and a whole one took them as long again as the batch before it."""
CALLS_RECENT_S = 1.0
"""While an interactive row has come so recently, batches of other classes are not sent ahead: the next one would have
to wait for them too."""

Lines = dict[Priority, deque[Row]]


class Batcher:
    """Thread-safe. Rows of models lie end to end unless `set_packed` said that they must be padded."""

    def __init__(self, *, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._budgets: dict[str, int] = {}
        self._padded: set[str] = set()
        self._lines: dict[BatchKey, Lines] = {}
        self._twins = Twins()
        self._suspects: deque[Batch] = deque()
        self._num_tokens = 0
        self._interactive_at = -float("inf")
        self._num_overtaking = 0
        self._changed = threading.Condition()

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of all rows that wait, those that nobody wants any more, suspects and twins apart."""
        return self._num_tokens

    @property
    def num_shared(self) -> int:
        """Rows that wait or are on the device and whose computation others may share."""
        with self._changed:
            return len(self._twins)

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
        asked = [
            (work, [asked_by(row) for row in work.rows] if work.rows and may_share(work.rows[0]) else None)
            for work in works
        ]
        with self._changed:
            for work, whats in asked:
                rows = work.rows
                if whats is not None:
                    rows, spared_tokens = self._twins.join(work.key, rows, whats)
                    self._num_tokens -= spared_tokens
                if work.priority is Priority.INTERACTIVE:
                    self._interactive_at = time.monotonic()
                self._queue(self._lines_of(work.key)[work.priority], rows)
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
                self._return_rows(self._lines_of(batch.key), batch.rows)
            self._changed.notify_all()

    def forget(self, batch: Batch) -> None:
        """The batch's rows are to be settled: whoever asks for the same from now on has it computed anew."""
        with self._changed:
            self._twins.forget(batch.key, batch.rows)

    def next_batch(self, timeout_s: float, *, is_idle: bool) -> Batch | None:
        """The next batch, or None after the time.

        Given out only when the device is idle: an exclusive batch, and while calls come one without interactive rows.
        """
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
            batch.rows = [row for each in batch.rows if (row := self._wanted_or_heir(each)) is not None]
            if batch.rows:
                return batch, False
        while heads := self._heads():
            head, is_aged = self._choose(heads)
            if not is_idle and (head.work.is_alone or self._must_not_be_ahead(head)):
                return None, True
            key, lines = head.work.key, self._lines[head.work.key]
            if head.work.is_alone:
                self._num_tokens -= _pop(lines[head.work.priority]).num_tokens
                return Batch(key, [head], is_exclusive=True), False
            budget = self._budgets.get(key.model.key, self._max_batch_tokens)
            take = self._take_padded if key.model.key in self._padded else self._take
            is_call = head.work.priority is Priority.INTERACTIVE
            rows = take(lines, budget, is_aged=is_aged, fill=budget // CALL_FILL_PARTS if is_call else None)
            if rows:  # none: all of them were struck out a moment ago
                self._num_overtaking = self._num_overtaking + 1 if _overtakes(head, heads) else 0
                return Batch(key, rows, release="full" if any(lines.values()) else "drained"), False
        return None, False

    def _must_not_be_ahead(self, head: Row) -> bool:
        is_call = head.work.priority is Priority.INTERACTIVE
        return not is_call and time.monotonic() - self._interactive_at < CALLS_RECENT_S

    def _choose(self, heads: Sequence[Row]) -> tuple[Row, bool]:
        """The row that leads the next batch, and whether it does for its age."""
        if self._num_overtaking >= MAX_OVERTAKING:
            return min(heads, key=_virtual_start), True
        return min(heads, key=_by_class), False

    def _heads(self) -> list[Row]:
        """The head of each line; lines of keys that have become empty are forgotten on the way."""
        heads = []
        for key, lines in list(self._lines.items()):
            found = [line[0] for line in self._clean(lines)]
            if found:
                heads += found
            else:
                del self._lines[key]
        return heads

    def _clean(self, lines: Lines) -> list[deque[Row]]:
        """The lines that have rows, each with one at its head that is wanted; in the order of the classes."""
        for line in reversed(lines.values()):  # an heir may go to another line, whose head is wanted then
            if line:
                self._clean_head(line, lines)
        return [line for line in lines.values() if line]

    def _clean_head(self, line: deque[Row], lines: Lines) -> None:
        """Drop rows at the head that nobody wants, or that are computed elsewhere; heirs take their places."""
        while line:
            row = line[0]
            if row.is_twin:
                _pop(line)
            elif is_wanted(row):
                return
            else:
                self._num_tokens -= _pop(line).num_tokens
                heir = self._twins.heir_of(row)
                if heir is not None:
                    self._num_tokens += heir.num_tokens
                    if not heir.is_in_line:
                        heir.is_in_line = True
                        lines[heir.work.priority].appendleft(heir)

    def _wanted_or_heir(self, row: Row) -> Row | None:
        """The suspect, or the one that takes its place in its batch and in no line."""
        if is_wanted(row):
            return row
        heir = self._twins.heir_of(row)
        if heir is not None and heir.is_in_line:
            self._lines_of(heir.work.key)[heir.work.priority].remove(heir)
            heir.is_in_line = False
        return heir

    def _take(self, lines: Lines, budget: int, *, is_aged: bool, fill: int | None) -> list[Row]:
        """Rows up to the budget; with `fill`, those of other classes than interactive up to so many tokens in all."""
        taken: list[Row] = []
        tokens = 0
        while found := self._clean(lines):
            line = min(found, key=_start_of) if is_aged else found[0]
            work = line[0].work
            if work.is_alone:
                break
            limit = budget if fill is None or work.priority is Priority.INTERACTIVE else fill
            # A work's rows stand together and start at one time: whether it is wanted is asked once for all of them.
            while line and (row := line[0]).work is work:
                num_tokens = len(row.ids)
                if not row.is_twin:
                    if taken and tokens + num_tokens > limit:
                        self._num_tokens -= tokens
                        return taken
                    taken.append(row)
                    tokens += num_tokens
                _pop(line)
        self._num_tokens -= tokens
        return taken

    def _take_padded(self, lines: Lines, budget: int, *, is_aged: bool, fill: int | None) -> list[Row]:
        """Rows of like length around the head: padded size within the budget, padding small."""
        window = self._take(lines, budget * SORT_WINDOW_BUDGETS, is_aged=is_aged, fill=fill)
        if not window:
            return []
        by_length = sorted(window, key=_num_tokens)
        lengths = [len(row.ids) for row in by_length]
        first = last = by_length.index(window[0])
        while True:
            if last + 1 < len(lengths) and lengths[last + 1] * (last + 2 - first) <= budget:
                last += 1
            elif first > 0 and lengths[last] * (last + 2 - first) <= budget:
                first -= 1
            else:
                break
        chosen = by_length[first : last + 1]
        kept = set(map(id, chosen))
        self._return_rows(lines, [row for row in window if id(row) not in kept])
        return chosen

    def _return_rows(self, lines: Lines, rows: Sequence[Row]) -> None:
        tokens = 0
        for row in reversed(rows):
            row.is_in_line = True
            lines[row.work.priority].appendleft(row)
            tokens += len(row.ids)
        self._num_tokens += tokens

    def _queue(self, line: deque[Row], rows: Sequence[Row]) -> None:
        tokens = 0
        for row in rows:
            row.is_in_line = True
            tokens += len(row.ids)
        line.extend(rows)
        self._num_tokens += tokens

    def _lines_of(self, key: BatchKey) -> Lines:
        lines = self._lines.get(key)
        if lines is None:
            lines = self._lines[key] = {each: deque() for each in Priority}
        return lines


def _pop(line: deque[Row]) -> Row:
    """Take the row at the head of its line; only the forming thread takes rows, and it holds the lock."""
    row = line.popleft()
    row.is_in_line = False
    return row


def _overtakes(head: Row, heads: Iterable[Row]) -> bool:
    return any(other.work.virtual_start < head.work.virtual_start for other in heads)


def _virtual_start(row: Row) -> float:
    return row.work.virtual_start


def _start_of(line: deque[Row]) -> float:
    return line[0].work.virtual_start


def _by_class(row: Row) -> tuple[int, float]:
    return row.work.rank, row.work.enqueued_at


def _num_tokens(row: Row) -> int:
    return len(row.ids)
