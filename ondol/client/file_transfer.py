"""What goes between a local file and the server: in pieces, with the SHA-256 taken on the way."""

from __future__ import annotations

import hashlib
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ondol.client.inputs import Inputs
from ondol.contract.errors import InvalidPayload
from ondol.contract.files import check_filename

PIECE_BYTES = 256 * 1024


class FormUpload(ABC):
    """A file's content as the form that `POST /v1/files` takes, read while it is sent, with its digest taken.

    `filename` is what the server calls it; `size_bytes` is None where it is not known before all is read.
    """

    def __init__(
        self, filename: str, purpose: str, *, size_bytes: int | None, expires_after_s: int | None = None
    ) -> None:
        self.filename = check_filename(filename)
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()
        boundary = f"ondol-{uuid.uuid4().hex}"
        fields = {"purpose": purpose}
        if expires_after_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(int(expires_after_s))}
        self._head = _form_head(boundary, fields, self.filename)
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._content_type = f"multipart/form-data; boundary={boundary}"

    @property
    def headers(self) -> Mapping[str, str]:
        """Content type and, where it is known, length."""
        if self._size_bytes is None:
            return {"content-type": self._content_type}
        length = len(self._head) + self._size_bytes + len(self._tail)
        return {"content-type": self._content_type, "content-length": str(length)}

    @property
    def sha256(self) -> str:
        """Digest in hex of what was read last."""
        return self._digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        """The form from its beginning; InvalidPayload if the content cannot be read."""
        self._digest = hashlib.sha256()
        yield self._head
        for piece in self.content():
            self._digest.update(piece)
            yield piece
        yield self._tail

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """The content from its beginning, in pieces that are not empty."""


class FileUpload(FormUpload):
    """A local file as a form. InvalidPayload if it is no file.

    `filename` is what the server calls it (default: its own name); the server's digest is compared with what was read.
    """

    def __init__(
        self, path: str | Path, purpose: str, *, filename: str | None = None, expires_after_s: int | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        self._num_bytes = _size_of(self.path)
        name = filename if filename is not None else self.path.name
        super().__init__(name, purpose, size_bytes=self._num_bytes, expires_after_s=expires_after_s)

    def content(self) -> Iterator[bytes]:
        """The file; InvalidPayload if it cannot be read or changes meanwhile."""
        left = self._num_bytes
        try:
            with self.path.open("rb") as file:
                while left > 0 and (piece := file.read(min(PIECE_BYTES, left))):
                    left -= len(piece)
                    yield piece
        except OSError as exc:
            raise _unreadable(self.path, exc) from exc
        if left > 0:
            raise InvalidPayload(f"{self.path} became shorter while it was sent; upload it again", param="file")


class InputsUpload(FormUpload):
    """Inputs as a file of JSON lines that never exists here: they are written while they are sent."""

    def __init__(self, inputs: Inputs, *, expires_after_s: int | None = None) -> None:
        super().__init__("inputs.jsonl", "batch", size_bytes=None, expires_after_s=expires_after_s)
        self.num_inputs = 0
        self._inputs = inputs

    def content(self) -> Iterator[bytes]:
        """One line an input; InvalidPayload for what is none."""
        self.num_inputs = 0
        waiting: list[bytes] = []
        num_bytes = 0
        for line in self._inputs.lines():
            waiting.append(line)
            num_bytes += len(line)
            self.num_inputs += 1
            if num_bytes >= PIECE_BYTES:
                yield b"".join(waiting)
                waiting, num_bytes = [], 0
        if waiting:
            yield b"".join(waiting)


class HashedSink:
    """Takes an answer's body into an open file, and its digest. A second try begins where the first one did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = file.tell() if file.seekable() else None
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    @property
    def sha256(self) -> str:
        """Digest in hex of what came."""
        return self._digest.hexdigest()

    def begin(self) -> None:
        """Forget what a broken answer brought; InvalidPayload if the file is a pipe, which forgets nothing."""
        if self._num_bytes:
            if self._start is None:
                raise InvalidPayload("the download broke off, and a pipe cannot begin again; run the command again")
            self._file.seek(self._start)
            self._file.truncate()
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        """Take the next piece; OSError if the file does not."""
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)


@contextmanager
def appearing_file(target: str | Path) -> Iterator[HashedSink]:
    """A sink whose content appears at the local path `target` when the block ends well, and not at all otherwise."""
    path = local_path(target)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            with staging.open("xb") as file:
                yield HashedSink(file)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as exc:
        raise InvalidPayload(f"cannot write {path}: {exc.strerror or exc}", param="path") from exc


def local_path(target: str | Path) -> Path:
    """The path that `target` names, with `~` as the home folder."""
    return Path(target).expanduser()


def _size_of(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> InvalidPayload:
    return InvalidPayload(f"cannot read {path}: {exc.strerror or exc}", param="file")


def _form_head(boundary: str, fields: Mapping[str, str], filename: str) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    quoted = filename.replace('"', '\\"')
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return "".join(parts).encode()
