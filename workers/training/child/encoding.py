"""From examples to rows: the base's own tokenizer, cut to the maximum length, labels where they are scored."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from ondol.contract.errors import ModelRefused
from ondol.contract.model_spec import ModelSpec
from workers.training.child.losses import IGNORED
from workers.training.child.rows import EncodedRows, IntArray, Label, Row
from workers.training.data.examples import Dataset, TextExample, TokenExample

TOKENIZER_FILE = "tokenizer.json"
_NUM_AT_ONCE = 1_000


class Encoder:
    """Encodes examples for the model of `spec`; ModelRefused if its tokenizer cannot be read."""

    def __init__(self, folder: Path, spec: ModelSpec, *, max_length: int, ref: str) -> None:
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as exc:  # tokenizers raises nothing narrower; translated here, at its only call
            raise ModelRefused(f"{ref}: {TOKENIZER_FILE} cannot be read: {exc}") from exc
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        self._takes_types = spec.type_vocab_size > 1

    def rows(self, examples: Sequence[TextExample] | Sequence[TokenExample], dataset: Dataset) -> EncodedRows:
        """The examples of one split of `dataset` as rows."""
        rows: list[Row] = []
        for start in range(0, len(examples), _NUM_AT_ONCE):
            rows += self._encode(examples[start : start + _NUM_AT_ONCE], dataset)
        return EncodedRows(rows)

    def texts(self, texts: Sequence[str], *, is_tagging: bool) -> list[Row]:
        """Rows of plain texts, with labels that mean nothing."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return [self._row(encoding, [IGNORED] * len(encoding.ids) if is_tagging else 0) for encoding in encodings]

    def _encode(self, examples: Sequence[TextExample | TokenExample], dataset: Dataset) -> list[Row]:
        encodings = self._tokenizer.encode_batch([_input(example) for example in examples])
        return [
            self._row(encoding, _label(example, encoding, dataset))
            for example, encoding in zip(examples, encodings, strict=True)
        ]

    def _row(self, encoding: Encoding, label: Label) -> Row:
        return Row(_array(encoding.ids), _array(encoding.type_ids) if self._takes_types else None, label)


def _input(example: TextExample | TokenExample) -> str | tuple[str, str]:
    if isinstance(example, TokenExample):
        return _text_and_spans(example)[0]
    return example.text if example.text_pair is None else (example.text, example.text_pair)


def _label(example: TextExample | TokenExample, encoding: Encoding, dataset: Dataset) -> Label:
    if isinstance(example, TokenExample):
        return _tags_of_tokens(encoding, _text_and_spans(example)[1], example.tags)
    if isinstance(example.label, list):
        vector = [0.0] * len(dataset.labels)
        for index in example.label:
            vector[index] = 1.0
        return vector
    return float(example.label) if dataset.problem_type == "regression" else int(example.label)


def _text_and_spans(example: TokenExample) -> tuple[str, list[tuple[int, int]]]:
    """The text that the model reads, as it will when it serves, and where each word stands in it."""
    if example.text is not None and example.spans is not None:
        return example.text, example.spans
    spans, end = [], 0
    for token in example.tokens:
        spans.append((end, end + len(token)))
        end += len(token) + 1
    return " ".join(example.tokens), spans


def _tags_of_tokens(encoding: Encoding, spans: list[tuple[int, int]], tags: list[int]) -> list[int]:
    """One tag a token: a word's own on the first token that begins in it, IGNORED on all others."""
    starts = [start for start, _ in spans]
    is_tagged = [False] * len(spans)
    labels = []
    for (start, end), is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        word = -1 if is_special or start == end else _word_at(start, end, spans, starts)
        if word < 0 or is_tagged[word]:
            labels.append(IGNORED)
        else:
            is_tagged[word] = True
            labels.append(tags[word])
    return labels


def _word_at(start: int, end: int, spans: list[tuple[int, int]], starts: list[int]) -> int:
    """The first word that shares a character with [start, end), or -1; a token may begin with the space before it."""
    word = max(bisect.bisect_right(starts, start) - 1, 0)
    while word < len(spans) and spans[word][1] <= start:
        word += 1
    return word if word < len(spans) and spans[word][0] < end else -1


def _array(values: list[int]) -> IntArray:
    return np.asarray(values, dtype=np.int32)
