"""What dtype `auto` stands for: bfloat16 where the device has it and all answers stay what float32 makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ondol.contract.errors import ModelRefused
from ondol.contract.model_spec import ModelSpec
from workers.device.engine import Fidelity, FloatArray
from workers.device.rows import Rows

MIN_MEAN_COSINE = 0.9999
MIN_COSINE = 0.9998
TOKENIZER_FILE = "tokenizer.json"

SENTENCES = (
    "Hello.",
    "안녕하세요.",
    "How do I reset my password?",
    "비밀번호를 어떻게 바꾸나요?",
    "The train to the coast leaves at seven and arrives before noon.",
    "오늘은 하늘이 맑고 바람이 조금 불어서 산책하기 좋은 날씨입니다.",
    "Prices rose by 3.4 % in March, the third month in a row, while wages stood still.",
    "서울에서 부산까지 고속 열차로 두 시간 반쯤 걸립니다.",
    "def area(width, height): return width * height  # in square metres",
    "환불은 상품을 받은 날부터 7일 안에 신청할 수 있으며, 포장을 뜯은 경우에는 제한될 수 있습니다.",
    "She put the letter back into the drawer, locked it, and for many years told nobody what it had said about the "
    "house, the garden, and the brother who had never come home from the war.",
    "온돌은 아궁이에 불을 때면 더운 연기가 방바닥 밑의 구들장을 지나며 방 전체를 데우는 난방 방식으로, 한 번 "
    "데워진 돌이 오랫동안 열을 품고 있어 밤새 따뜻하다.",
    "A queue that forgets is not a queue. When a worker dies in the middle of a batch, the rows it held must come "
    "back, run once more on another device, and end up in the result once, in the order in which they were sent. "
    "Nobody who waits for the answer should be able to tell that anything has happened, except by the clock.",
)
"""Short and long, English and Korean, prose and code: what vectors are compared on."""


def fidelity_rows(folder: Path, spec: ModelSpec, *, ref: str) -> Rows:
    """The built-in sentences as the model's own tokenizer cuts them, special tokens included, at most its maximum."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as exc:  # tokenizers raises nothing narrower; translated here, at its only call
        raise ModelRefused(f"{ref}: {TOKENIZER_FILE} cannot be read: {exc}") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(list(SENTENCES), add_special_tokens=True)
    return Rows.of_lists([encoding.ids[: spec.max_length] for encoding in encodings])


def compare(vectors: FloatArray, reference: FloatArray) -> Fidelity:
    """Mean and smallest cosine between rows of [B, H] and their float32 reference; 0.0 where one is not a number."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = np.nan_to_num((vectors * reference).sum(axis=1) / np.maximum(norms, 1e-12), nan=0.0)
    return Fidelity(mean_cosine=float(cosines.mean()), min_cosine=float(cosines.min()))


def compare_logits(logits: FloatArray, reference: FloatArray) -> Fidelity:
    """Like `compare`, for logits [B, C]; one class alone has no direction, so its relative difference is taken.

    A difference r, in units of the largest reference, counts as the cosine of vectors that differ by as much: no less
    than -1, however large, so that every measure is a number that JSON has.
    """
    if logits.shape[1] > 1:
        return compare(logits, reference)
    relative = np.abs(logits - reference)[:, 0] / max(float(np.abs(reference).max()), 1e-12)
    closeness = np.nan_to_num(1.0 - np.minimum(relative, 2.0) ** 2 / 2, nan=0.0)
    return Fidelity(mean_cosine=float(closeness.mean()), min_cosine=float(closeness.min()))


def worse(one: Fidelity, other: Fidelity) -> Fidelity:
    """The smaller of both in each measure: a dtype must be faithful in all that a version gives."""
    return Fidelity(min(one.mean_cosine, other.mean_cosine), min(one.min_cosine, other.min_cosine))


def is_faithful(fidelity: Fidelity) -> bool:
    """Whether `auto` may choose this dtype."""
    return fidelity.mean_cosine >= MIN_MEAN_COSINE and fidelity.min_cosine >= MIN_COSINE
