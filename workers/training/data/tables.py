"""Opens a file by its name's suffix, and looks at its first bytes where the two might differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from workers.training.data.csv_table import CsvTable
from workers.training.data.examples import Source
from workers.training.data.json_table import JsonLinesTable, JsonListTable
from workers.training.data.parquet_table import ParquetTable
from workers.training.data.problems import Problems, file_error
from workers.training.data.table import Table
from workers.training.data.text_lines import BYTE_ORDER_MARK

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

_PARQUET_MARK = b"PAR1"
_FOREIGN_MARKS = {
    b"\x1f\x8b": "is compressed with gzip; decompress it first",
    b"PK\x03\x04": "is a zip or an Excel file; save it as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "is an Excel file; save it as CSV (UTF-8)",
    b"\xff\xfe": "is UTF-16, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8; save it as UTF-8",
}
_LOOKED_AT_BYTES = 4_096


@contextmanager
def open_table(path: Path, source: Source, problems: Problems) -> Iterator[Table]:
    """The rows of `path`, to be read inside the block; InvalidPayload if that cannot be done.

    The file is closed at the block's end, also when a reader of its rows was left in the middle.
    """
    suffix = PurePath(source.filename).suffix.lower()
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT_BYTES)
        _check_head(head, suffix, source)
        if suffix == ".parquet":
            yield ParquetTable(path, source, problems)
        elif suffix in (".csv", ".tsv"):
            yield CsvTable(file, source, problems, delimiter="," if suffix == ".csv" else "\t")
        elif head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
            yield JsonListTable(path, source, problems)
        else:
            yield JsonLinesTable(file, source, problems)


def _check_head(head: bytes, suffix: str, source: Source) -> None:
    if suffix not in SUFFIXES:
        ending = f"ends in {suffix!r}" if suffix else "has no ending"
        raise file_error(source, f"has a name that {ending}; use {', '.join(SUFFIXES)}, which says the format")
    if not head.removeprefix(BYTE_ORDER_MARK).strip():
        raise file_error(source, "is empty; upload a file with rows")
    for mark, message in _FOREIGN_MARKS.items():
        if head.startswith(mark):
            raise file_error(source, message)
    if head.startswith(_PARQUET_MARK) != (suffix == ".parquet"):
        is_parquet = (
            "is a Parquet file, but its name ends in"
            if suffix != ".parquet"
            else "is no Parquet file, but its name ends in"
        )
        raise file_error(source, f"{is_parquet} {suffix}; give it the right ending")
