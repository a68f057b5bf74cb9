"""Holds rows out for validation: a function of seed, share and labels alone, the same in every process and version.

The number of rows is the share of all, rounded, at least one. Rows fall into strata: by label, or, where a row has
several, by its rarest. Each stratum gets seats in proportion to its rows by the method of the largest remainder (ties:
the larger stratum, then code points), and keeps at least one row for training. Within a stratum the rows come in the
order of the BLAKE2 digests of `seed:row`; a row that is the last one in training with one of its labels is passed over,
and seats that are left so go to other rows in the same order.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

Labels = tuple[str, ...]


def hold_out(label_sets: Sequence[Labels], *, share: float, seed: int) -> list[int]:
    """Ascending indices of the rows that are held out; fewer than the share where labels are too rare, even none.

    Rows without labels (as in regression) are one stratum.
    """
    if share <= 0:
        return []
    counts = Counter(label for labels in label_sets for label in labels)
    strata = _strata(label_sets, counts)
    wanted = max(1, math.floor(share * len(label_sets) + 0.5))
    seats = _seats({key: len(rows) for key, rows in strata.items()}, wanted)
    picked = _Picked(label_sets, counts)
    for key, rows in strata.items():
        picked.take(_drawn(rows, seed), seats[key])
    missing = sum(seats.values()) - len(picked.rows)
    if missing:
        left = [row for row in range(len(label_sets)) if row not in picked.rows]
        picked.take(_drawn(left, seed), missing)
    return sorted(picked.rows)


class _Picked:
    """Rows that are held out, and how many rows of each label are left to train on."""

    def __init__(self, label_sets: Sequence[Labels], counts: Counter[str]) -> None:
        self.rows: set[int] = set()
        self._label_sets = label_sets
        self._left = dict(counts)

    def take(self, rows: list[int], limit: int) -> None:
        """Take up to `limit` of the rows, in their order, none of which is the last of a label."""
        if not limit:
            return
        for row in rows:
            labels = self._label_sets[row]
            if any(self._left[label] < 2 for label in labels) or len(self.rows) + 1 >= len(self._label_sets):
                continue
            self.rows.add(row)
            for label in labels:
                self._left[label] -= 1
            limit -= 1
            if not limit:
                return


def _strata(label_sets: Sequence[Labels], counts: Counter[str]) -> dict[Labels, list[int]]:
    found: dict[Labels, list[int]] = {}
    for row, labels in enumerate(label_sets):
        rarest = labels if len(labels) < 2 else (min(labels, key=lambda label: (counts[label], label)),)
        found.setdefault(rarest, []).append(row)
    return dict(sorted(found.items()))


def _seats(sizes: dict[Labels, int], wanted: int) -> dict[Labels, int]:
    """Seats by stratum, all together `wanted`, or as many as can be given."""
    total = sum(sizes.values())
    wanted = min(wanted, sum(size - 1 for size in sizes.values()))
    seats = {key: min(wanted * size // total, size - 1) for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(wanted * sizes[key] % total), -sizes[key], key))
    left = wanted - sum(seats.values())
    while left:
        for key in by_remainder:
            if left and seats[key] < sizes[key] - 1:
                seats[key] += 1
                left -= 1
    return seats


def _drawn(rows: list[int], seed: int) -> list[int]:
    return sorted(rows, key=lambda row: hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=16).digest())
