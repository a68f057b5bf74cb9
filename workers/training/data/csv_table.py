"""CSV and TSV as RFC 4180 has them: a header, quoted cells, doubled quotation marks, line ends inside quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from workers.training.data.examples import Source
from workers.training.data.problems import CellProblem, Problems, file_error, listed
from workers.training.data.table import MAX_CELL_CHARS, Row
from workers.training.data.text_lines import LineProblem, decoded_lines

if TYPE_CHECKING:
    from _csv import Reader

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}


class CsvTable:
    """The rows of one file; blank lines are no rows."""

    def __init__(self, file: BinaryIO, source: Source, problems: Problems, *, delimiter: str) -> None:
        self._file = file
        self._source = source
        self._problems = problems
        self._delimiter = delimiter
        self.columns = self._header(self._reader())

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Rows that have as many cells as the header; InvalidPayload where the file cannot be read any further."""
        places = [(name, self.columns.index(name)) for name in columns]
        reader = self._reader()
        self._header(reader)
        number = 0
        while (found := self._next(reader, number + 1)) is not None:
            line, cells = found
            number += 1
            if len(cells) == len(self.columns):
                yield Row(number, line, {name: cells[place] for name, place in places})
            else:
                self._problems.add(number, line, self._wrong_width(len(cells)))

    def _reader(self) -> Reader:
        # The module's limit is one for the whole process; everything that reads CSV here wants this one.
        csv.field_size_limit(MAX_CELL_CHARS)
        return csv.reader(decoded_lines(self._file), delimiter=self._delimiter, strict=True)

    def _header(self, reader: Reader) -> tuple[str, ...]:
        found = self._next(reader, 0)
        if found is None:
            raise file_error(self._source, "is empty; its first line must be the header, then one row a line")
        header = found[1]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise file_error(self._source, f"has more than one column {listed(twice)} in its header; rename one")
        if len(header) == 1:
            self._check_separator(header[0])
        return tuple(header)

    def _check_separator(self, header: str) -> None:
        other = next((mark for mark in _OTHER_SEPARATORS if mark in header), None)
        if other is not None:
            used = _OTHER_SEPARATORS[self._delimiter]
            message = (
                f"has its cells separated by {_OTHER_SEPARATORS[other]}, not by {used}; "
                "use commas and a name that ends in .csv, or tabs and .tsv"
            )
            raise file_error(self._source, message)

    def _next(self, reader: Reader, row: int) -> tuple[int, list[str]] | None:
        """The next row that is not a blank line and the line at which it begins; None at the end."""
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return None
            except LineProblem as exc:
                raise self._stopped(row, exc.line, exc) from exc
            except csv.Error as exc:
                raise self._stopped(row, line, CellProblem(_in_words(str(exc)))) from exc
            if cells:
                return line, cells

    def _stopped(self, row: int, line: int, problem: CellProblem) -> Exception:
        if row == 0:
            return file_error(self._source, f"has an unreadable header (line {line:,}): {problem.message}")
        return self._problems.stop(row, line, problem)

    def _wrong_width(self, num_cells: int) -> CellProblem:
        too = "few" if num_cells < len(self.columns) else "many"
        mark = "comma" if self._delimiter == "," else "tab"
        advice = f"put a cell that holds a {mark} into quotation marks, and leave no cell out"
        cells = "1 cell" if num_cells == 1 else f"{num_cells:,} cells"
        return CellProblem(f"too {too} cells: {cells}, but the header has {len(self.columns):,} columns; {advice}")


def _in_words(message: str) -> str:
    if "field limit" in message:
        return f"a cell has more than {MAX_CELL_CHARS:,} characters; a quotation mark may never have been closed"
    if "end of data" in message:
        return "a quotation mark is opened and never closed; close it, and double quotation marks inside a quoted cell"
    if "expected after" in message:
        return 'text stands behind a closing quotation mark; double each quotation mark inside a quoted cell ("")'
    if "new-line character" in message:
        return "a carriage return stands alone; save the file with line ends LF or CRLF"
    return f"not readable as CSV ({message})"
