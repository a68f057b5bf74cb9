"""From texts to rows whose tokens are labelled: whole texts where they fit, else windows that overlap. Nothing is cut.

`T` tokens of a row, `K` of them the text's own (special tokens are not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from ondol.contract.errors import InvalidPayload
from workers.rows import IntArray
from workers.texts import Tokenized, TokenRow, check_room, no_token, own_bounds

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_TEXTS_AT_ONCE = 256
"""Texts whose encodings, an order of magnitude larger than their ids, are held at the same time."""
_SPACE = ord(" ")


@dataclass(frozen=True, slots=True)
class Window:
    """The text's own tokens in one row: ids [K], and offsets [K, 2] in the text, in code points.

    `begin`: place in the row of the first of them; `first`: how many of the text's tokens come before it;
    `is_subword` [K]: whether a token continues the word of the one before it, None where nobody asked.
    """

    ids: IntArray
    offsets: IntArray
    begin: int
    first: int
    is_subword: BoolArray | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class TokenWindows:
    """Rows of all texts, and beside each row its window."""

    tokenized: Tokenized = field(default_factory=Tokenized)
    windows: list[Window] = field(default_factory=list)


def token_windows(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    limit: int,
    stride: int | None,
    unknown_id: int | None,
    has_subwords: bool,
) -> TokenWindows:
    """Rows of at most `limit` tokens; neighbours share `stride` of the text's own (None: a quarter of what fits).

    InvalidPayload when `limit` leaves no room, or `stride` no way forward.
    """
    num_specials = tokenizer.num_special_tokens_to_add(False)
    check_room(limit, num_specials)
    room = limit - num_specials
    step = _step(room, stride)
    has_prefix = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
    found = TokenWindows()
    for index, text, encoding in _encoded(texts, tokenizer):
        begin, end = own_bounds(encoding)
        if not encoding.ids:
            found.tokenized.refuse(index, no_token(index), num_tokens=0)
            continue
        ids = np.array(encoding.ids, dtype=np.int32)
        whole = Window(ids[begin:end], _offsets(encoding)[begin:end], begin, 0, None)
        is_subword = _subwords(encoding, text, whole, has_prefix, unknown_id) if has_subwords else None
        rows = []
        for start in window_starts(end - begin, room, step):
            own = slice(start, min(start + room, end - begin))
            row = np.concatenate([ids[:begin], whole.ids[own], ids[end:]])
            rows.append(TokenRow(row, index))
            part = None if is_subword is None else is_subword[own]
            found.windows.append(Window(whole.ids[own], whole.offsets[own], begin, start, part))
        found.tokenized.add(rows, is_cut=False)
    return found


def window_starts(num_own: int, room: int, step: int) -> list[int]:
    """Where the windows over `num_own` tokens begin: every `step`, until one reaches the end."""
    return [0, *range(step, num_own - room + step, step)] if num_own > room else [0]


def _step(room: int, stride: int | None) -> int:
    shared = room // 4 if stride is None else stride
    if shared >= room:
        raise InvalidPayload(
            f"windows hold {room} tokens of the text; a stride of {shared} would not move them on",
            param="options.stride",
        )
    return room - shared


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[int, str, Encoding]]:
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        for i, encoding in enumerate(tokenizer.encode_batch(some)):
            yield start + i, some[i], encoding


def _offsets(encoding: Encoding) -> IntArray:
    """Offsets [T, 2] in code points."""
    return np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * len(encoding)).reshape(-1, 2)


def _subwords(encoding: Encoding, text: str, whole: Window, has_prefix: bool, unknown_id: int | None) -> BoolArray:
    """Whether each of the text's own tokens [K] continues a word, by the rules of the Hugging Face pipeline.

    With a vocabulary that marks the inside of words, a token whose name is longer than its text does; else one before
    which there is no space.
    """
    starts, ends = whole.offsets[:, 0], whole.offsets[:, 1]
    if has_prefix:
        own_names = encoding.tokens[whole.begin : whole.begin + len(whole)]
        found = np.fromiter(map(len, own_names), dtype=np.int32, count=len(whole)) != ends - starts
    else:
        is_space = np.append(_code_points(text) == _SPACE, [False])
        found = (starts > 0) & ~is_space[starts - 1] & ~is_space[starts]
    if unknown_id is not None:
        found &= whole.ids != unknown_id
    return np.asarray(found, dtype=bool)


def _code_points(text: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
