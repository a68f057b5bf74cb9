"""Progress of a fine-tune on stderr: a bar below its evaluations and checkpoints on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ondol.client.records import JobEvent, JobFields
from ondol.client.training_progress import TrainingProgress

if TYPE_CHECKING:
    from ondol.client.training_bar import TrainingBar

_STEPS_EVERY_S = 5.0
_TIME_CHARS = len("00:00:00 ")


class TrainingReport:
    """A context in which the events of one job are shown as they are taken.

    Elsewhere than on a terminal, how many steps are done is said every few seconds at most; states, evaluations,
    checkpoints and warnings have a line each.
    """

    def __init__(self, job: JobFields) -> None:
        self._progress = TrainingProgress(job)
        self._bar: TrainingBar | None = None
        self._said_at = -_STEPS_EVERY_S

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from ondol.client.training_bar import TrainingBar

            self._bar = TrainingBar()
            self._bar.show(self._progress)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def take(self, event: JobEvent) -> None:
        """Show the next event."""
        columns = None if self._bar is None else self._bar.columns - _TIME_CHARS
        line = self._progress.take(event, columns=columns)
        if line is not None:
            self._say(f"{event.created_at.astimezone():%H:%M:%S} {line}")
        elif self._bar is None and event.type == "metrics":
            self._say_steps(event)
        if self._bar is not None:
            self._bar.show(self._progress)

    def see(self, job: JobFields) -> None:
        """Show the job as it is now."""
        self._progress.see(job)
        if self._bar is not None:
            self._bar.show(self._progress)

    def _say_steps(self, event: JobEvent) -> None:
        now = time.monotonic()
        if now - self._said_at >= _STEPS_EVERY_S or self._progress.step == self._progress.max_steps:
            self._said_at = now
            self._say(f"{event.created_at.astimezone():%H:%M:%S} {self._progress.describe()}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.say(line, indent=_TIME_CHARS)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
