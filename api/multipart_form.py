"""Parsing `multipart/form-data` while it arrives: small fields and one file, of which only what just came is held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ondol.contract.errors import InvalidPayload

MAX_PARTS = 32
MAX_FIELD_BYTES = 4_096
_FORM_TYPE = b"multipart/form-data"

OnField = Callable[[str, str], None]
OnFilename = Callable[[str], None]


@dataclass(slots=True)
class _Part:
    """The part that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_name: bytes = b""
    header_value: bytes = b""
    name: str = ""
    is_file: bool = False
    value: bytearray = field(default_factory=bytearray)


class MultipartForm:
    """A form with the one file field `file_field`; feed it pieces of the body, take the file's bytes.

    `on_field(name, value)` and `on_filename(name)` are told at once, and may raise to refuse. Every method raises
    InvalidPayload for what is no such form.
    """

    def __init__(
        self, content_type: str | None, *, file_field: str, on_field: OnField, on_filename: OnFilename
    ) -> None:
        self.num_file_bytes = 0
        self.has_file = False
        self._file_field = file_field
        self._on_field = on_field
        self._on_filename = on_filename
        self._pending = bytearray()
        self._part = _Part()
        self._num_parts = 0
        self._has_ended = False
        self._parser = _make_parser(content_type, self)

    @property
    def num_pending(self) -> int:
        """Bytes of the file that `take` would give."""
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        """Parse the next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as exc:
            raise InvalidPayload(f"the body is not multipart/form-data: {exc}", code="invalid_form") from exc

    def take(self) -> bytes:
        """The file's bytes that came since the last time."""
        taken = bytes(self._pending)
        self._pending.clear()
        return taken

    def end(self) -> None:
        """The body is over; InvalidPayload if the form is not."""
        if not self._has_ended:
            raise InvalidPayload("the body ends before the last boundary of the form", code="invalid_form")

    def part_begins(self) -> None:
        """A part comes."""
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidPayload(f"the form has more than {MAX_PARTS} parts", code="invalid_form")
        self._part = _Part()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._part.header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._part.header_value += data[start:end]

    def header_ends(self) -> None:
        """A header is whole."""
        part = self._part
        part.headers[part.header_name.lower()] = part.header_value
        part.header_name = part.header_value = b""

    def headers_end(self) -> None:
        """All headers of the part are there: what is it?"""
        part = self._part
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise InvalidPayload("a part of the form has no name", code="invalid_form")
        part.name = _text(options[b"name"], "field name")
        part.is_file = part.name == self._file_field
        if not part.is_file:
            return
        if b"filename" not in options:
            raise InvalidPayload(f"the field {part.name} is a file and has a file name", param=part.name)
        if self.has_file:
            raise InvalidPayload("send one file at a time; the form has two", param=part.name)
        self.has_file = True
        self._on_filename(_text(options[b"filename"], "file name"))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the part."""
        part = self._part
        if part.is_file:
            self._pending += data[start:end]
            self.num_file_bytes += end - start
            return
        part.value += data[start:end]
        if len(part.value) > MAX_FIELD_BYTES:
            raise InvalidPayload(
                f"the field {part.name[:80]!r} is over {MAX_FIELD_BYTES} bytes; only {self._file_field} may be",
                param=part.name[:80],
            )

    def part_ends(self) -> None:
        """The part is whole."""
        part = self._part
        if not part.is_file:
            self._on_field(part.name, _text(bytes(part.value), f"field {part.name[:80]!r}"))

    def ends(self) -> None:
        """The last boundary has come."""
        self._has_ended = True


def _make_parser(content_type: str | None, form: MultipartForm) -> MultipartParser:
    media_type, options = parse_options_header(content_type)
    if media_type != _FORM_TYPE or not options.get(b"boundary"):
        raise InvalidPayload(
            f"send multipart/form-data with a boundary, not {(content_type or 'nothing')[:80]!r}", param="Content-Type"
        )
    make = partial(
        MultipartParser,
        callbacks={
            "on_part_begin": form.part_begins,
            "on_part_data": form.part_data,
            "on_part_end": form.part_ends,
            "on_header_field": form.header_name,
            "on_header_value": form.header_value,
            "on_header_end": form.header_ends,
            "on_headers_finished": form.headers_end,
            "on_end": form.ends,
        },
    )
    try:
        return make(options[b"boundary"])
    except FormParserError as exc:
        raise InvalidPayload(f"this is no boundary: {exc}", param="Content-Type") from exc


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidPayload(f"the {what} is not UTF-8", code="invalid_form") from exc
