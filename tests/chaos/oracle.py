"""What a text must give: the tests' device program answers with a function of the token ids (`hash_vector`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tests.device_programs import hash_vector

DIMS = 32
TOLERANCE = 1e-5
"""The worker normalises what is of unit length already: float32 rounding."""


class Oracle:
    """Token counts and vectors of texts by the model's own tokenizer file.

    `is_hashing`: the device program is the tests' own; with a real one no vector is known, and any is right.
    """

    def __init__(self, version_folder: Path, *, is_hashing: bool = True) -> None:
        self._is_hashing = is_hashing
        self._tokenizer = Tokenizer.from_file(str(version_folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._ids = lru_cache(maxsize=None)(self._encode)

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Tokens of the texts together, special ones included."""
        return sum(len(self._ids(text)) for text in texts)

    def is_right(self, texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> bool:
        """Whether `vectors` [N, 32] are those of the texts."""
        if vectors.shape != (len(texts), DIMS):
            return False
        if not self._is_hashing:
            return True
        wanted = [hash_vector(np.asarray(self._ids(text), dtype=np.int32), DIMS) for text in texts]
        return bool(np.allclose(vectors, np.stack(wanted), atol=TOLERANCE))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text).ids)
