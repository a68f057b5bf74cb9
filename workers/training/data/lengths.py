"""How long the rows are in tokens of the base, special tokens counted, and how many will be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ondol.contract.errors import InvalidPayload, ModelStoreError
from ondol.contract.model_spec import ModelSpec
from workers.training.data.examples import Examples
from workers.training.plan import TokenLengths

DEFAULT_MAX_LENGTH = 512
TOKENIZER_FILE = "tokenizer.json"

_BATCH_ROWS = 512
_BATCH_CHARS = 200_000


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the version in `folder`, which neither cuts nor pads; ModelStoreError if it is not readable."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as exc:  # the library raises bare Exception
        raise ModelStoreError(f"{TOKENIZER_FILE} of the base is not readable: {exc}") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def resolve_max_length(wanted: int | None, spec: ModelSpec, tokenizer: Tokenizer, *, has_pairs: bool) -> int:
    """Tokens to which rows are cut; InvalidPayload if the base takes fewer, or no text fits in."""
    if wanted is None:
        return min(spec.max_length, DEFAULT_MAX_LENGTH)
    num_specials = tokenizer.num_special_tokens_to_add(has_pairs)
    if wanted > spec.max_length:
        message = f"max_length {wanted:,} is more than the {spec.max_length:,} tokens that the base takes; lower it"
        raise InvalidPayload(message, param="options.max_length")
    if wanted <= num_specials:
        message = f"max_length {wanted} leaves no room for a text beside {num_specials} special tokens; raise it"
        raise InvalidPayload(message, param="options.max_length")
    return wanted


def measure(files: Sequence[Examples], tokenizer: Tokenizer, max_length: int) -> TokenLengths:
    """Lengths over all rows of the files (nearest rank), a few hundred rows at a time."""
    lengths = np.concatenate([np.fromiter(_lengths(rows, tokenizer), dtype=np.int64) for rows in files])
    lengths.sort()
    return TokenLengths(
        p50=_rank(lengths, 50),
        p95=_rank(lengths, 95),
        max=int(lengths[-1]),
        num_cut=int((lengths > max_length).sum()),
    )


def _rank(ascending: np.ndarray[Any, np.dtype[np.int64]], percent: int) -> int:
    return int(ascending[max(0, -(-len(ascending) * percent // 100) - 1)])


def _lengths(rows: Examples, tokenizer: Tokenizer) -> Iterator[int]:
    for batch in _batches(rows):
        for encoding in tokenizer.encode_batch_fast(batch):
            yield len(encoding.ids)


def _batches(rows: Examples) -> Iterator[list[Any]]:
    batch: list[str | tuple[str, ...]] = []
    num_chars = 0
    for index in range(len(rows)):
        piece = rows.pieces(index)
        batch.append(piece)
        num_chars += len(piece) if isinstance(piece, str) else sum(map(len, piece))
        if len(batch) >= _BATCH_ROWS or num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
