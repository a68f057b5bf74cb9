"""Twins: rows that ask for the very same computation while one of them waits or is on the device are computed once.

The first of them goes through the model, the others get its output, which nobody may write to. A row that must be
alone, or that was on a device when it died, shares with nobody that comes after it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from workers.rows import BatchKey, Row, is_wanted


class Twins:
    """The rows that others may share, by what they ask. Used under the batcher's lock."""

    def __init__(self) -> None:
        self._firsts: dict[BatchKey, dict[Hashable, Row]] = {}

    def __len__(self) -> int:
        """Rows that others may share: no more than wait or are on the device."""
        return sum(map(len, self._firsts.values()))

    def join(self, key: BatchKey, rows: Sequence[Row], asked: Iterable[Hashable]) -> tuple[list[Row], int]:
        """Those of a work's rows that must be queued, and the tokens of queued rows that need not be run any more."""
        firsts = self._firsts.get(key)
        if firsts is None:
            firsts = self._firsts[key] = {}
        queued, spared_tokens = [], 0
        for row, what in zip(rows, asked, strict=True):
            first = firsts.setdefault(what, row)
            if first is row:
                row.asked = what
                queued.append(row)
            elif not first.is_in_line or first.work.rank <= row.work.rank:
                row.is_twin = True
                first.twins.append(row)
            else:  # the later one goes first: it must not wait for a row of a class behind its own
                firsts[what] = row
                _hand_over(first, row)
                queued.append(row)
                spared_tokens += first.num_tokens
        return queued, spared_tokens

    def forget(self, key: BatchKey, rows: Iterable[Row]) -> None:
        """Nobody shares these any more; whoever does now gets what they get."""
        firsts = self._firsts.get(key)
        if firsts is None:
            return
        for row in rows:
            if row.asked is not None:
                firsts.pop(row.asked, None)
                row.asked = None
        if not firsts:
            del self._firsts[key]

    def heir_of(self, row: Row) -> Row | None:
        """The row that takes the place of one that nobody wants; None when none of its twins is wanted either."""
        wanted = [twin for twin in row.twins if is_wanted(twin)]
        row.twins = []
        if not wanted:
            self.forget(row.work.key, (row,))
            return None
        heir = min(wanted, key=lambda twin: (twin.work.rank, twin.work.enqueued_at))
        heir.is_twin, heir.is_suspect, heir.num_losses = False, row.is_suspect, row.num_losses
        heir.twins = [twin for twin in wanted if twin is not heir]
        if row.asked is not None:
            self._firsts[row.work.key][row.asked] = heir
            heir.asked, row.asked = row.asked, None
        return heir


def asked_by(row: Row) -> Hashable:
    """What the row asks of its model; equal for twins alone."""
    if row.type_ids is None and row.skip == 0:
        return row.ids.tobytes()
    return row.ids.tobytes(), row.skip, None if row.type_ids is None else row.type_ids.tobytes()


def may_share(row: Row) -> bool:
    """Whether the row's computation may be another's too."""
    return not (row.work.is_alone or row.is_suspect or row.num_losses)


def _hand_over(first: Row, row: Row) -> None:
    """Make `row` the one that is computed; `first` stays where it stands and is passed over there."""
    row.twins = [first, *first.twins]
    row.asked, first.asked = first.asked, None
    first.twins, first.is_twin = [], True
