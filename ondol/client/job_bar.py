"""Inputs on a terminal: a bar with how many are done, how many a second, and the remaining time. Written to stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from ondol.client.progress import bar_chars

_RATE_CHARS = len("99,999/s")
_ETA_CHARS = len("00:00:00")


class JobBar:
    """Draws from `__init__` until `close`; never wider than the terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._console = Console(stderr=True, highlight=False)
        self._bar = BarColumn()
        self._shown = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            self._bar,
            TextColumn("{task.fields[count]}", markup=False),
            _Rate(Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
        )
        self._task = self._shown.add_task(what, total=None, count="", note="")
        self._shown.start()

    def show(self, done: int, total: int | None, note: str) -> None:
        """Show that `done` of `total` (None: not known) are done."""
        count = f"{done}/{total}" if total else str(done)
        others = [self._what, count, " " * _RATE_CHARS, " " * _ETA_CHARS, note]
        self._bar.bar_width = bar_chars(self._console.width, others) or 0
        self._shown.update(self._task, completed=done, total=total, count=count, note=note)

    def close(self) -> None:
        """Leave the bar as it is, and draw no more."""
        self._shown.stop()


class _Rate(ProgressColumn):
    """Inputs a second, once there is something to divide."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.finished_time or task.elapsed
        # Over all the time: inputs are done by the hundred, and the speed of the last moment would be nothing or huge.
        speed = task.completed / elapsed_s if elapsed_s else 0.0
        return Text("" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")
