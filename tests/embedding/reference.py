"""What vectors must equal: sentence-transformers and transformers over the very folders that were imported.

`N` texts, `T` tokens, `H` hidden. Everything is float32 on the CPU, one text at a time, never padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.served import FloatArray

TOLERANCE = 1e-4
"""The promise to users; rounding of float32 stays far below."""


@cache
def sentence_transformer(folder: Path) -> Any:
    """The folder in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@cache
def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encode(folder: Path, texts: Sequence[str], **options: Any) -> FloatArray:
    """Vectors [N, H] as sentence-transformers gives them; `max_length` and `side` say how long texts are cut."""
    model = sentence_transformer(folder)
    length, side = model.max_seq_length, model.tokenizer.truncation_side
    model.max_seq_length = options.pop("max_length", length)
    model.tokenizer.truncation_side = options.pop("side", side)
    try:
        vectors = [model.encode(text, show_progress_bar=False, **options) for text in texts]
    finally:
        model.max_seq_length, model.tokenizer.truncation_side = length, side
    return np.stack(vectors)


def token_ids(folder: Path, text: str, **options: Any) -> list[int]:
    """Ids [T] with special tokens, uncut."""
    ids: list[int] = tokenizer_of(folder)(text, verbose=False, **options)["input_ids"]
    return ids


def num_tokens(folder: Path, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, special ones counted."""
    return [len(token_ids(folder, text)) for text in texts]


def run_transformer(folder: Path, ids: Sequence[int]) -> Any:
    """The model's output for one row of ids, with all hidden states."""
    import torch

    with torch.inference_mode():
        return sentence_transformer(folder)[0].auto_model(
            input_ids=torch.tensor([list(ids)]), output_hidden_states=True
        )


def states(folder: Path, ids: Sequence[int], layer: int = -1) -> FloatArray:
    """Hidden states [T, H] of one row of ids; layer 0 is the embeddings'."""
    found: FloatArray = run_transformer(folder, ids).hidden_states[layer][0].numpy()
    return found


POOLINGS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "mean": lambda table: table.mean(axis=0),
    "cls": lambda table: table[0],
    "max": lambda table: table.max(axis=0),
    "last": lambda table: table[-1],
    "mean_sqrt_len": lambda table: table.sum(axis=0) / np.float32(len(table)) ** 0.5,
    "weightedmean": lambda table: np.average(table, axis=0, weights=np.arange(1, len(table) + 1)),
}
"""From states [T, H] to one vector [H]."""


def assert_equal(found: FloatArray, expected: FloatArray, *, within: float = TOLERANCE) -> None:
    """Equal shapes, and no number further away than that."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=within)
