"""A fine-tune on a terminal: lines for what happened, and below them a bar for where it stands. Written to stderr."""

from __future__ import annotations

import textwrap
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from ondol.client.progress import bar_chars
from ondol.client.training_progress import TrainingProgress

_DIGITS = 3
"""One less than lines have: the bar fits 80 columns."""
_ETA_CHARS = len("ETA 10:00:00")


class TrainingBar:
    """Draws from `__init__` until `close`; never wider than the terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = BarColumn()
        self._shown = Progress(
            TextColumn("{task.description}", markup=False),
            self._bar,
            TextColumn("{task.fields[steps]}", markup=False),
            TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            _TimeLeft(Column(no_wrap=True)),
            console=self._console,
        )
        self._task = self._shown.add_task("", total=None, steps="", numbers="", ends_at=None)
        self._report: tuple[int, float | None] | None = None
        self._ends_at: float | None = None
        self._shown.start()

    @property
    def columns(self) -> int:
        """How wide the terminal is now."""
        return self._console.width

    def show(self, progress: TrainingProgress) -> None:
        """Show where the fine-tune stands."""
        report = (progress.num_reports, progress.eta_s)
        if report != self._report:
            self._report = report
            self._ends_at = None if progress.eta_s is None else time.monotonic() + progress.eta_s
        steps = f"{progress.step}/{progress.max_steps}" if progress.max_steps else ""
        numbers = progress.numbers(digits=_DIGITS)
        around = [progress.phase, steps, " " * _ETA_CHARS]
        fitting = [numbers, numbers[1:]]  # the epoch is the one to miss: the steps say as much
        room = [bar_chars(self.columns, [*around, *shown]) for shown in fitting]
        chosen = 0 if room[0] is not None else 1
        self._bar.bar_width = room[chosen] or 0
        self._shown.update(
            self._task,
            description=progress.phase,
            completed=progress.step,
            total=progress.max_steps,
            steps=steps,
            numbers=" ".join(fitting[chosen]),
            ends_at=self._ends_at,
        )

    def say(self, line: str, *, indent: int) -> None:
        """Print a line above the bar; what is too long for one goes on below, behind so many spaces."""
        folded = textwrap.wrap(line, self.columns, subsequent_indent=" " * indent, break_long_words=False)
        self._console.print("\n".join(folded), markup=False, soft_wrap=True)

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
