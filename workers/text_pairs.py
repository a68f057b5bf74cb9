"""From texts and text pairs to one row each: special tokens, type ids, cutting the longest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from tokenizers import Encoding, Tokenizer

from ondol.contract.jobs import Pair
from ondol.contract.payloads import Truncate
from workers.rows import IntArray
from workers.texts import Tokenized, TokenRow, check_room, no_token, too_long


def tokenize_pairs(
    inputs: Sequence[str | Pair], tokenizer: Tokenizer, *, limit: int, truncate: Truncate, has_type_ids: bool
) -> Tokenized:
    """One row an input, cut to `limit` tokens. An input that cannot be run gets an error; no other is touched by it.

    `has_type_ids`: rows of pairs carry type ids. InvalidPayload when `limit` leaves no room for a text.
    """
    for is_pair in {isinstance(item, dict) for item in inputs}:
        check_room(limit, tokenizer.num_special_tokens_to_add(is_pair))
    found = Tokenized()
    texts = [item if isinstance(item, str) else (item["text"], item["text_pair"]) for item in inputs]
    for i, encoding in enumerate(tokenizer.encode_batch_fast(texts)):
        ids = encoding.ids
        if not ids:
            found.refuse(i, no_token(i), num_tokens=0)
        elif len(ids) > limit and truncate == "error":
            found.refuse(i, too_long(i, len(ids), limit), num_tokens=len(ids))
        else:
            kept = kept_tokens(encoding, limit, truncate) if len(ids) > limit else None
            type_ids = encoding.type_ids if has_type_ids and isinstance(texts[i], tuple) else None
            found.add([_row(i, ids, type_ids, kept)], is_cut=kept is not None)
    return found


def kept_tokens(encoding: Encoding, limit: int, truncate: Truncate) -> IntArray:
    """Places of the tokens that stay when a text or pair is cut to `limit`: all special ones, and of each text a part.

    `truncate` is `left` where the last tokens of a text stay, else its first ones do.
    """
    owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids], dtype=np.int32)
    owners[np.array(encoding.special_tokens_mask, dtype=bool)] = -1
    parts = [np.flatnonzero(owners == number) for number in range(encoding.n_sequences)]
    lengths = [len(part) for part in parts]
    room = limit - (len(owners) - sum(lengths))
    wanted = longest_first(lengths[0], lengths[1], room) if len(parts) > 1 else (room,)
    is_kept = owners == -1
    for part, num_kept in zip(parts, wanted, strict=True):
        is_kept[part[len(part) - num_kept :] if truncate == "left" else part[:num_kept]] = True
    return cast(IntArray, np.flatnonzero(is_kept))


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay where `room` tokens fit, as the tokenizers library's `longest_first` decides.

    The longer text is cut to what the shorter one leaves; where even that is too much, each gets one half.
    """
    shorter = min(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)


def _row(index: int, ids: list[int], type_ids: list[int] | None, kept: IntArray | None) -> TokenRow:
    token_ids = np.array(ids, dtype=np.int32)
    types = None if type_ids is None else np.array(type_ids, dtype=np.int32)
    if kept is not None:
        token_ids = token_ids[kept]
        types = None if types is None else types[kept]
    return TokenRow(token_ids, index, type_ids=types if types is not None and types.any() else None)
