"""Model folders for import tests: tiny ones with heads, and a kcbert-shaped one of nothing but vocab.txt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny_models import make_tiny_model

KCBERT_PIECES = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(
        "안녕",
        "##하세요",
        "하세요",
        "오늘",
        "날씨",
        "가",
        "##가",
        "좋",
        "##다",
        "Seoul",
        "KBS",
        "ㅋ",
        "##ㅋ",
        ".",
        ",",
        "!",
    ),
)


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes the key."""
    content = read_json(path) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def make_with_head(folder: Path, auto_class: str, model_type: str = "bert", **config: Any) -> Path:
    """A tiny model with a head of the library's own; `config` as `id2label`."""
    import torch
    import transformers

    make_tiny_model(folder, model_type)
    keys = transformers.AutoConfig.from_pretrained(folder)
    keys.update(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        getattr(transformers, auto_class).from_config(keys).save_pretrained(folder)
    return folder


def make_kcbert(folder: Path) -> Path:
    """Cased BERT, 300 positions, a masked-language head, vocab.txt and no other tokenizer file."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(KCBERT_PIECES),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=300,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(KCBERT_PIECES) + "\n", encoding="utf-8")
    return folder


def move_weights_to_bin(folder: Path) -> Path:
    """Replace model.safetensors by pytorch_model.bin, as torch saves it; tied weights share memory in it."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    words = next((name for name in tensors if name.endswith("word_embeddings.weight")), None)
    if words is not None:
        tensors["cls.predictions.decoder.weight"] = tensors[words]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"
