"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere. Written to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ondol.client.job_bar import JobBar
    from ondol.client.records import JobFields

_LINE_EVERY_S = 5.0
_NARROWEST_BAR, _WIDEST_BAR = 5, 20


class ProgressReport:
    """A context in which `update` may be called as often as one likes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: JobBar | None = None
        self._last_line = ""
        self._last_at = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from ondol.client.job_bar import JobBar

            self._bar = JobBar(self._what)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if self._bar is not None:
            self._bar.show(done, total, note)
        else:
            self._print_line(done, total, note)

    def update_job(self, job: JobFields) -> None:
        """Show where a job stands."""
        progress = job.progress
        self.update(progress.done if progress else 0, progress.total if progress else None, job.status)

    def _print_line(self, done: int, total: int | None, note: str) -> None:
        line = " ".join(part for part in (self._what, note, f"{done}/{total}" if total else "") if part)
        is_end = total is not None and done >= total
        if line != self._last_line and (is_end or time.monotonic() - self._last_at >= _LINE_EVERY_S):
            print(line, file=sys.stderr, flush=True)
            self._last_line, self._last_at = line, time.monotonic()


@contextmanager
def reporting(what: str | None) -> Iterator[Callable[[int, int], None] | None]:
    """Who is to be told (done, total) of `what` while the block runs; None, and nothing is shown, without a `what`."""
    if what is None:
        yield None
        return
    with ProgressReport(what) as report:
        yield report.update


def bar_chars(columns: int, others: Sequence[str]) -> int | None:
    """How wide a bar beside the other texts may be, 5 to 20 characters; None if they leave no room for it."""
    room = columns - sum(len(text) + 1 for text in others) - 1
    return min(room, _WIDEST_BAR) if room >= _NARROWEST_BAR else None
