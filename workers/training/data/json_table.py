"""JSON: one object a line (JSONL), or one list of objects. Numbers are kept as they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from workers.training.data.examples import Source
from workers.training.data.problems import CellProblem, Problems, file_error
from workers.training.data.table import JSON_DECODER, Row, check_surrogates, load_json, type_name
from workers.training.data.text_lines import LineProblem, decode, decoded_lines

_SPACES = " \t\r\n"


class JsonLinesTable:
    """The rows of a JSONL file; blank lines are no rows. A broken line is a problem of that row alone."""

    def __init__(self, file: BinaryIO, source: Source, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        seen = Problems(source)
        self.columns = _columns(self._parsed(seen), seen)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:  # noqa: ARG002  # an object is parsed whole
        """All rows that are objects; InvalidPayload where the file cannot be read any further."""
        return self._parsed(self._problems)

    def _parsed(self, problems: Problems) -> Iterator[Row]:
        number = line_number = 0
        lines = decoded_lines(self._file)
        while True:
            try:
                line = next(lines, None)
            except LineProblem as exc:
                raise problems.stop(number + 1, exc.line, exc) from exc
            if line is None:
                return
            line_number += 1
            if not line.strip(_SPACES):
                continue
            number += 1
            try:
                yield Row(number, line_number, _object(load_json(line)))
            except CellProblem as exc:
                problems.add(number, line_number, exc)


class JsonListTable:
    """The rows of a file that is one JSON list; its text is held in memory, its objects are parsed one by one."""

    def __init__(self, path: Path, source: Source, problems: Problems) -> None:
        self._problems = problems
        try:
            self._text = decode(path.read_bytes(), line=1, offset=0)
        except LineProblem as exc:
            raise file_error(source, f"is not readable: line {exc.line:,}: {exc.message}") from exc
        seen = Problems(source)
        self.columns = _columns(self._parsed(seen), seen)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:  # noqa: ARG002  # an object is parsed whole
        """All elements that are objects; InvalidPayload where the file cannot be read any further."""
        return self._parsed(self._problems)

    def _parsed(self, problems: Problems) -> Iterator[Row]:
        place = self._skip(self._text.index("[") + 1)
        number, line, counted = 0, 1, 0
        while self._text[place : place + 1] != "]":
            number += 1
            line += self._text.count("\n", counted, place)
            counted = place
            value, end = self._element(place, number, line, problems)
            try:
                check_surrogates(self._text[place:end])
                yield Row(number, line, _object(value))
            except CellProblem as exc:
                problems.add(number, line, exc)
            place = self._after_element(end, number, line, problems)
        if self._skip(place + 1) != len(self._text):
            raise problems.stop(number, None, CellProblem("text stands behind the end of the list; remove it"))

    def _element(self, place: int, number: int, line: int, problems: Problems) -> tuple[Any, int]:
        try:
            return JSON_DECODER.raw_decode(self._text, place)
        except json.JSONDecodeError as exc:
            problem = CellProblem(f"not JSON: {exc.msg} at line {exc.lineno:,}, character {exc.colno:,}")
            raise problems.stop(number, line, problem) from exc
        except RecursionError as exc:
            raise problems.stop(number, line, CellProblem("nested too deeply")) from exc
        except CellProblem as exc:
            raise problems.stop(number, line, exc) from exc

    def _after_element(self, place: int, number: int, line: int, problems: Problems) -> int:
        """The place of the next element or of the closing bracket."""
        place = self._skip(place)
        mark = self._text[place : place + 1]
        if mark == "]":
            return place
        following = self._skip(place + 1)
        if mark != "," or self._text[following : following + 1] == "]":
            raise problems.stop(number, line, CellProblem("a comma and a further object, or ], must follow this row"))
        return following

    def _skip(self, place: int) -> int:
        while place < len(self._text) and self._text[place] in _SPACES:
            place += 1
        return place


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CellProblem(f'is {type_name(value)}, not an object; write {{"column": "cell", …}}')
    return value


def _columns(rows: Iterator[Row], problems: Problems) -> tuple[str, ...]:
    """The keys of the first readable row; `problems` are those of `rows`, up to there."""
    first = next(rows, None)
    if first is None:
        problems.raise_if_any()
        raise file_error(problems.source, "has no row; write one JSON object a line")
    return tuple(first.cells)
