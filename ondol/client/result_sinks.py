"""Results as they arrive: npy straight into its array, JSON lines item by item. N inputs, H hidden."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ondol.client.errors import BadAnswer, ItemError
from ondol.client.flow import Json
from ondol.client.records import parse_item_error
from ondol.client.vectors import FAILED_ROW, Vectors, decode_vector
from ondol.contract.errors import InvalidPayload

_MAGIC = b"\x93NUMPY"
_LEAD_BYTES = 12
"""Magic, version and, in every version, the length of the header."""
_MAX_HEADER_BYTES = 64 * 1024


class NpySink:
    """Takes an npy file into one array, allocated when its header has come; BadAnswer for anything else."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what a broken answer brought."""
        self._head = bytearray()
        self._array: np.ndarray[Any, Any] | None = None
        self._room = memoryview(b"")
        self._num_bytes = 0

    def write(self, data: bytes, /) -> None:
        """Take the next piece."""
        if self._array is None:
            self._head += data
            begun = _begin_array(self._head)
            if begun is None:
                return
            self._array, header_bytes = begun
            self._room = self._array.reshape(-1).view(np.uint8).data
            data = bytes(self._head[header_bytes:])
            self._head.clear()
        end = self._num_bytes + len(data)
        if end > len(self._room):
            raise BadAnswer("the server sent more than the npy file that it began")
        self._room[self._num_bytes : end] = data
        self._num_bytes = end

    def vectors(self) -> Vectors:
        """Float32 [N, H]; BadAnswer if not all of it came."""
        if self._array is None or self._num_bytes < len(self._room):
            raise BadAnswer("the server's answer is not a whole npy file")
        return np.asarray(self._array, dtype=np.float32)


class ItemLines:
    """Takes a result as JSON lines and hands each item to `take`, which `restart` has forget all after a broken try."""

    def __init__(self, take: Callable[[Json], None], restart: Callable[[], None]) -> None:
        self._take = take
        self._restart = restart
        self._part: list[bytes] = []

    def begin(self) -> None:
        """Forget what a broken answer brought."""
        self._part = []
        self._restart()

    def write(self, data: bytes, /) -> None:
        """Take the next piece."""
        first, *lines = data.split(b"\n")
        self._part.append(first)
        if lines:
            self._read(b"".join(self._part))
            for line in lines[:-1]:
                self._read(line)
            self._part = [lines[-1]]

    def end(self) -> None:
        """Take what stands behind the last line feed."""
        self._read(b"".join(self._part))
        self._part = []

    def _read(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            item = json.loads(line)
        except ValueError as exc:
            raise BadAnswer(f"the server sent an item that is not JSON: {line[:80]!r}") from exc
        if not isinstance(item, dict) or not isinstance(item.get("index"), int):
            raise BadAnswer(f"this is not an item of a result: {line[:80]!r}")
        self._take(item)


class VectorItems:
    """Items of an embedding job with errors, into one array as they come."""

    def __init__(self) -> None:
        self.errors: dict[int, ItemError] = {}
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self.errors.clear()
        self._num_items = 0
        self._rows = np.empty((0, 0), dtype=np.float32)

    def take(self, item: Json) -> None:
        """The next item; InvalidPayload if it holds no vector."""
        index = item["index"]
        self._num_items = max(self._num_items, index + 1)
        error = parse_item_error(item.get("error"))
        if error is not None:
            self.errors[index] = error
            return
        vector = _vector_of(item.get("output"))
        if self._rows.shape[1] != len(vector) and self._rows.size:
            raise BadAnswer("the server sent vectors of different lengths")
        self._make_room(index, len(vector))
        self._rows[index] = vector

    def vectors(self) -> Vectors:
        """Float32 [N, H] with NaN in the rows that failed; [N, 0] if all did."""
        self._make_room(self._num_items - 1, self._rows.shape[1])
        return self._rows[: self._num_items]

    def _make_room(self, index: int, width: int) -> None:
        """Rows up to `index`, NaN where nothing was written; grown by half, so that growing costs little."""
        if index < len(self._rows) and self._rows.shape[1] == width:
            return
        grown = np.full((max(index + 1, len(self._rows) * 3 // 2, 64), width), FAILED_ROW, dtype=np.float32)
        if self._rows.shape[1] == width:
            grown[: len(self._rows)] = self._rows
        self._rows = grown


def _begin_array(head: bytearray) -> tuple[np.ndarray[Any, Any], int] | None:
    """The array that the header describes and where its bytes begin; None while the header is not whole."""
    if len(head) < _LEAD_BYTES:
        return None
    if not head.startswith(_MAGIC):
        raise BadAnswer(f"the server's answer is not an npy file: {bytes(head[:20])!r}")
    is_short = head[6] == 1
    length = int.from_bytes(head[8:10] if is_short else head[8:12], "little")
    if length > _MAX_HEADER_BYTES:
        raise BadAnswer("the server's answer is not an npy file: its header is too long")
    header_bytes = (10 if is_short else 12) + length
    if len(head) < header_bytes:
        return None
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if is_fortran or dtype.hasobject:
            raise ValueError(f"its layout is none of ours ({dtype})")
        return np.empty(shape, dtype), header_bytes
    except (ValueError, MemoryError) as exc:
        raise BadAnswer(f"the server's answer is not an npy file that can be read: {exc}") from exc


def _vector_of(output: Any) -> Vectors:
    if isinstance(output, list) and any(isinstance(value, Mapping) for value in output):
        raise InvalidPayload("the job's result holds labels or entities, not vectors; take it as JSON")
    vector = decode_vector(output)
    if vector.ndim != 1:
        raise InvalidPayload("the job's result has one vector a token, which is no [N, H] array; take it as JSON")
    return vector
