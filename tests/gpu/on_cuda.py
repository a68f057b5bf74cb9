"""An engine on the first GPU, and what Hugging Face's own padded forward gives there for the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.tiny_models import MODEL_TYPES, make_tiny_model
from tests.tiny_specs import model_spec_of, write_spec
from workers.device.engine import FloatArray
from workers.device.torch_engine import TorchEngine

DEVICE = torch.device("cuda", 0)
DECODERS: dict[str, dict[str, Any]] = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": None,
        "use_bidirectional_attention": True,
        "sliding_window_pattern": 2,
    },
    "mistral": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
}
"""Grouped-query attention: causal; to both sides with a sliding window in every other layer; causal with a window."""
_WINDOWS = {"gemma3_text": 9, "mistral": 16}
ALL_TYPES = (*MODEL_TYPES, *DECODERS)
_FIRST_ID, _NUM_IDS = 5, 400


def make_engine(memory_bytes: int = 2**32, batch_tokens: int = 16_384, *, measures_budget: bool = False) -> TorchEngine:
    """An engine on the GPU with an empty pool."""
    return TorchEngine(DEVICE, memory_bytes=memory_bytes, batch_tokens=batch_tokens, measures_budget=measures_budget)


def make_model(folder: Path, model_type: str) -> Path:
    """A tiny random model of that architecture with its `ondol.json`."""
    make_tiny_model(folder, model_type, config=DECODERS.get(model_type))
    return write_spec(folder, model_spec_of(folder, **spec_changes(model_type)))


def spec_changes(model_type: str) -> dict[str, int]:
    """What `model_spec_of` does not read in the configuration."""
    return {"sliding_window": _WINDOWS[model_type]} if model_type in _WINDOWS else {}


def random_rows(seed: int, num_rows: int = 12, longest: int = 64) -> list[list[int]]:
    """Rows of 1 to `longest` tokens in no order of length, none of them padding."""
    generator = np.random.default_rng(seed)
    lengths = [1, longest, 2, *generator.integers(1, longest, num_rows - 3)]
    return [generator.integers(_FIRST_ID, _NUM_IDS, length).tolist() for length in lengths]


class Padded:
    """A model as transformers loads and runs it, rows side by side with a mask, on the GPU."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, auto_class: str = "AutoModel") -> None:
        self._model = getattr(transformers, auto_class).from_pretrained(folder, dtype=dtype).eval().to(DEVICE)
        self._padding = self._model.config.pad_token_id or 0

    def states(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> list[FloatArray]:
        """Float32 token states [L, H] of each row, its padding cut off."""
        output = self._run(rows, types).last_hidden_state
        return [output[i, : len(row)].float().cpu().numpy() for i, row in enumerate(rows)]

    def logits(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> list[FloatArray]:
        """Float32 logits of each row: [C], or [L, C] from a head over tokens."""
        output = self._run(rows, types).logits.float().cpu().numpy()
        return [output[i, : len(row)] if output.ndim == 3 else output[i] for i, row in enumerate(rows)]

    def _run(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None) -> Any:
        width = max(len(row) for row in rows)
        inputs = {"input_ids": self._grid(rows, width, self._padding)}
        inputs["attention_mask"] = self._grid([[1] * len(row) for row in rows], width, 0)
        if types is not None:
            inputs["token_type_ids"] = self._grid(types, width, 0)
        with torch.inference_mode():
            return self._model(**inputs)

    @staticmethod
    def _grid(rows: Sequence[Sequence[int]], width: int, padding: int) -> torch.Tensor:
        return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], device=DEVICE)


def cosines(found: FloatArray, expected: FloatArray) -> FloatArray:
    """Cosine [B] between rows of [B, H]."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray((found * expected).sum(axis=1) / lengths, dtype=np.float32)
