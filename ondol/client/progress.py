"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere. Written to stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

    from ondol.client.records import JobFields

_LINE_EVERY_S = 5.0


class ProgressReport:
    """A context in which `update` may be called as often as one likes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Progress | None = None
        self._last_line = ""
        self._last_at = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
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


def _new_bar() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
