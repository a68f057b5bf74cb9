"""A fine-tune on a terminal: lines for what happened, and below them a bar for where it stands. Written to stderr."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from ondol.client.training_progress import TrainingProgress

_BAR_CHARS = 20
_DIGITS = 3
"""One less than lines have: the bar fits 80 columns."""


class TrainingBar:
    """Draws from `__init__` until `close`."""

    def __init__(self) -> None:
        self._shown = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_CHARS),
            TextColumn("{task.fields[steps]}", markup=False),
            TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            _TimeLeft(Column(no_wrap=True)),
            console=Console(stderr=True, highlight=False),
        )
        self._task = self._shown.add_task("", total=None, steps="", numbers="", ends_at=None)
        self._report: tuple[int, float | None] | None = None
        self._ends_at: float | None = None
        self._shown.start()

    def show(self, progress: TrainingProgress) -> None:
        """Show where the fine-tune stands."""
        report = (progress.num_reports, progress.eta_s)
        if report != self._report:
            self._report = report
            self._ends_at = None if progress.eta_s is None else time.monotonic() + progress.eta_s
        self._shown.update(
            self._task,
            description=progress.phase,
            completed=progress.step,
            total=progress.max_steps,
            steps=f"{progress.step}/{progress.max_steps}" if progress.max_steps else "",
            numbers=" ".join(progress.numbers(digits=_DIGITS)),
            ends_at=self._ends_at,
        )

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._shown.console.print(line, markup=False)

    def close(self) -> None:
        """Leave the bar as it is, and draw no more."""
        self._shown.stop()


class _TimeLeft(ProgressColumn):
    """Counts the trainer's own estimate down between its reports: it knows of evaluations, the bar does not."""

    def render(self, task: Task) -> Text:
        ends_at = task.fields["ends_at"]
        if ends_at is None or task.finished:
            return Text("")
        minutes, seconds = divmod(max(0, round(ends_at - time.monotonic())), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"ETA {hours}:{minutes:02}:{seconds:02}" if hours else f"ETA {minutes}:{seconds:02}")
