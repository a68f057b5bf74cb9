"""Tiny random models with a tokenizer trained in the process: real folders, made in a second, that fit in a few MB.

Weights are drawn with a wide spread, so that wrong attention, positions or pooling shows in the first decimals.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Dialect = Literal["old", "new"]

MODEL_TYPES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "albert",
    "modernbert",
    "nomic_bert",
    "mpnet",
    "deberta-v2",
)
PADDED_TYPES = frozenset({"mpnet", "deberta-v2"})
MAX_LENGTH = 64
LABELS = ("no", "yes", "maybe")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

_ROBERTA_LIKE = frozenset({"roberta", "xlm-roberta", "mpnet"})
_ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CORPUS = (
    "The fire burns below and the whole house stays warm.",
    "How do I reset the password of my account?",
    "A queue remembers what a server forgets when it dies.",
    "Embedding, classification and fine-tune jobs run on warm devices.",
    "온돌은 불을 아래에서 때어 집 전체를 따뜻하게 한다.",
    "오늘 날씨가 참 좋네요. 내일은 비가 온다고 합니다.",
)
_MODULE_TYPES: dict[Dialect, dict[str, str]] = {
    "old": {
        name: f"sentence_transformers.models.{name}"
        for name in ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    },
    "new": {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    },
}
_OLD_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True, slots=True)
class TinyModules:
    """What stands behind the transformer; pooling names are sentence-transformers' own."""

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    dense: int | None = None
    """Output width of a Dense module; None: no such module."""
    activation: str = "torch.nn.modules.activation.Tanh"
    has_layer_norm: bool = False
    has_normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


def make_tiny_model(
    folder: Path,
    model_type: str = "bert",
    *,
    hidden: int = 32,
    layers: int = 2,
    vocab: int = 400,
    seed: int = 0,
    config: dict[str, Any] | None = None,
) -> Path:
    """A plain save_pretrained folder (config, safetensors, tokenizer) of random weights; `config` overrides keys.

    Texts may have 64 tokens, special tokens counted (256 for modernbert and nomic_bert).
    """
    keys = _config_keys(model_type, hidden=hidden, layers=layers, vocab=vocab) | (config or {})
    return _write_random_model(folder, "AutoModel", model_type, keys, seed)


def make_tiny_head(
    folder: Path,
    model_type: str = "bert",
    *,
    task: Literal["text-classification", "token-classification"] = "text-classification",
    labels: tuple[str, ...] | None = None,
    problem_type: str | None = None,
    vocab: int = 400,
    seed: int = 0,
    config: dict[str, Any] | None = None,
) -> Path:
    """A folder as `make_tiny_model` writes it, with a head for `task` over `labels` (three classes, or five tags)."""
    names = labels or (LABELS if task == "text-classification" else TAGS)
    keys = _config_keys(model_type, hidden=32, layers=2, vocab=vocab) | (config or {})
    keys |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if problem_type is not None:
        keys |= {"problem_type": problem_type}
    kind = "Sequence" if task == "text-classification" else "Token"
    return _write_random_model(folder, f"AutoModelFor{kind}Classification", model_type, keys, seed)


def make_tiny_sentence_transformer(
    folder: Path,
    model_type: str = "bert",
    *,
    dialect: Dialect = "new",
    modules: TinyModules = TinyModules(),
    hidden: int = 32,
    layers: int = 2,
    vocab: int = 400,
    seed: int = 0,
) -> Path:
    """A tiny model with sentence-transformers' own files: `old` as written before 5.x, `new` as 6.x writes them."""
    make_tiny_model(folder, model_type, hidden=hidden, layers=layers, vocab=vocab, seed=seed)
    names = ["Transformer", "Pooling"]
    width = hidden * len(modules.pooling)
    _write_pooling(folder / "1_Pooling", modules, hidden, dialect)
    if modules.dense is not None:
        names.append("Dense")
        _write_dense(folder / f"{len(names) - 1}_Dense", modules, width, seed)
        width = modules.dense
    if modules.has_layer_norm:
        names.append("LayerNorm")
        _write_layer_norm(folder / f"{len(names) - 1}_LayerNorm", width, seed)
    if modules.has_normalize:
        names.append("Normalize")
        if dialect == "new":
            keys = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
            _write_json(folder / f"{len(names) - 1}_Normalize" / "config.json", keys)
    _write_json(folder / "modules.json", _modules_json(names, dialect))
    _write_json(folder / "sentence_bert_config.json", _transformer_json(dialect))
    prompts = {"prompts": modules.prompts, "default_prompt_name": modules.default_prompt_name}
    _write_json(folder / "config_sentence_transformers.json", prompts | {"similarity_fn_name": "cosine"})
    return folder


def _write_random_model(folder: Path, auto_class: str, model_type: str, keys: dict[str, Any], seed: int) -> Path:
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(model_type, **keys)
        model = getattr(transformers, auto_class).from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _write_tokenizer(folder, model_type, keys["vocab_size"])
    return folder


def _config_keys(model_type: str, *, hidden: int, layers: int, vocab: int) -> dict[str, Any]:
    heads = 4
    roberta_like = model_type in _ROBERTA_LIKE
    positions = MAX_LENGTH + 2 if roberta_like else MAX_LENGTH
    keys: dict[str, Any] = {
        "vocab_size": vocab,
        "pad_token_id": 1 if roberta_like else 0,
        "max_position_embeddings": positions,
        "initializer_range": 0.2,
    }
    if model_type == "distilbert":
        return keys | {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * hidden}
    keys |= {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
    }
    if model_type in ("albert", "electra"):
        keys |= {"embedding_size": hidden // 2}
    if model_type == "modernbert":
        specials = {"bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
        keys |= {"local_attention": 16, "max_position_embeddings": 256, "embedding_dropout": 0.0} | specials
    if model_type == "nomic_bert":
        keys |= {"max_position_embeddings": 256}
    if model_type == "deberta-v2":
        keys |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
        keys |= {"position_biased_input": False, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    return keys


def _write_tokenizer(folder: Path, model_type: str, vocab: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    roberta_like = model_type in _ROBERTA_LIKE
    specials = _ROBERTA_SPECIALS if roberta_like else _BERT_SPECIALS
    cls, sep = (specials[0], specials[2]) if roberta_like else (specials[2], specials[3])
    pad, unk = (specials[1], specials[3]) if roberta_like else (specials[0], specials[1])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    pair = f"{cls} $A {sep} {sep} $B {sep}" if roberta_like else f"{cls} $A {sep} $B:1 {sep}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=pair, special_tokens=[(t, tokenizer.token_to_id(t)) for t in (cls, sep)]
    )
    names = {"cls_token": cls, "sep_token": sep, "pad_token": pad, "unk_token": unk, "mask_token": specials[4]}
    inputs = ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, model_input_names=inputs, **names
    )
    fast.save_pretrained(folder)


def _write_pooling(folder: Path, modules: TinyModules, hidden: int, dialect: Dialect) -> None:
    if dialect == "old":
        flags = {key: mode in modules.pooling for mode, key in _OLD_POOLING_KEYS.items()}
        keys: dict[str, Any] = {"word_embedding_dimension": hidden, **flags}
    else:
        mode: str | list[str] = modules.pooling[0] if len(modules.pooling) == 1 else list(modules.pooling)
        keys = {"embedding_dimension": hidden, "pooling_mode": mode}
    _write_json(folder / "config.json", keys | {"include_prompt": modules.include_prompt})


def _write_dense(folder: Path, modules: TinyModules, width: int, seed: int) -> None:
    assert modules.dense is not None
    keys = {"in_features": width, "out_features": modules.dense, "bias": True}
    _write_json(folder / "config.json", keys | {"activation_function": modules.activation})
    _write_random(folder, {"linear.weight": (modules.dense, width), "linear.bias": (modules.dense,)}, seed + 1)


def _write_layer_norm(folder: Path, width: int, seed: int) -> None:
    _write_json(folder / "config.json", {"dimension": width})
    _write_random(folder, {"norm.weight": (width,), "norm.bias": (width,)}, seed + 2)


def _write_random(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")


def _modules_json(names: list[str], dialect: Dialect) -> list[dict[str, Any]]:
    types = _MODULE_TYPES[dialect]
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": types[name]}
        for i, name in enumerate(names)
    ]


def _transformer_json(dialect: Dialect) -> dict[str, Any]:
    if dialect == "old":
        return {"max_seq_length": MAX_LENGTH, "do_lower_case": False}
    modality = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    names = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    return {**names, "modality_config": modality}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
