"""What is wrong with a file, named so that its owner can mend it: file, row, line, column, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from ondol.contract.errors import InvalidPayload
from workers.training.data.examples import Source

NUM_NAMED = 5
_SHOWN_CHARS = 60


class CellProblem(Exception):
    """One cell or row cannot be used; the message says why and what to do. Caught where the row is known."""

    def __init__(self, message: str, *, column: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.column = column


@dataclass(slots=True)
class Problems:
    """Broken rows of one file: all are counted, the first five are named."""

    source: Source
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, row: int, line: int | None, problem: CellProblem) -> None:
        """Count a broken row (from 1, without the header) that begins at `line` (from 1, with the header)."""
        self.count += 1
        if len(self.named) < NUM_NAMED:
            column = f", column {problem.column!r}" if problem.column is not None else ""
            self.named.append(f"{place(row, line)}{column}: {problem.message}")

    def stop(self, row: int, line: int | None, problem: CellProblem) -> InvalidPayload:
        """The error of a file that cannot be read any further."""
        self.add(row, line, problem)
        return self._error()

    def raise_if_any(self) -> None:
        """InvalidPayload that names the first broken rows, if there is one."""
        if self.count:
            raise self._error()

    def _error(self) -> InvalidPayload:
        name = self.source.filename
        if self.count == 1:
            return InvalidPayload(f"{name}, {self.named[0]}", param=self.source.param)
        first = f"; the first {NUM_NAMED}" if self.count > NUM_NAMED else ""
        lines = "\n".join(f"- {text}" for text in self.named)
        return InvalidPayload(f"{name} has {self.count:,} broken rows{first}:\n{lines}", param=self.source.param)


def place(row: int, line: int | None) -> str:
    """Where a row is, in words."""
    return f"row {row:,}" if line is None else f"row {row:,} (line {line:,})"


def file_error(source: Source, message: str, *, param: str | None = None) -> InvalidPayload:
    """An error of a whole file."""
    return InvalidPayload(f"{source.filename} {message}", param=param or source.param)


def shown(value: object) -> str:
    """`value` for a message, cut to what a person reads."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def listed(names: list[str], limit: int = 10) -> str:
    """Names for a message: the first ones, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
