"""A text file line by line: UTF-8 only, byte order mark left out, nothing decoded twice or held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from workers.training.data.problems import CellProblem

MAX_LINE_BYTES = 16 * 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_ENCODING_ADVICE = "the file is not UTF-8 (Korean files from Windows often are CP949); save it as UTF-8"


class LineProblem(CellProblem):
    """A line that is no text; nothing after it can be relied on."""

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(message)
        self.line = line


def decoded_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of `file` from its beginning, with their ends (LF); one reader at a time.

    LineProblem at the first that is not UTF-8, too long, or has a NUL.
    """
    file.seek(0)
    number, offset = 0, 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise LineProblem(f"the line is longer than {MAX_LINE_BYTES:,} bytes; is this the right file?", line=number)
        text = decode(line, line=number, offset=offset)
        offset += len(line)
        yield text


def decode(data: bytes, *, line: int, offset: int) -> str:
    """`data`, which begins at `offset` bytes of the file, as text; LineProblem names the byte that is wrong."""
    begin = len(BYTE_ORDER_MARK) if offset == 0 and data.startswith(BYTE_ORDER_MARK) else 0
    if b"\0" in data:
        place = data.index(b"\0")
        line += data.count(b"\n", 0, place)
        raise LineProblem(f"byte {offset + place:,} of the file is NUL, which is no text; remove it", line=line)
    try:
        return data[begin:].decode()
    except UnicodeDecodeError as exc:
        place = begin + exc.start
        value = data[place]
        line += data.count(b"\n", 0, place)
        message = f"byte {offset + place:,} of the file is 0x{value:02x}: {_ENCODING_ADVICE}"
        raise LineProblem(message, line=line) from exc
