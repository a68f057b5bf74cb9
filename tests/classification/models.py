"""Tiny random models with task heads, and tokenizers of the three great families, each learned in the process.

Their folders are read by transformers and by workers alike: `ondol.json` is written by hand, no import is needed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ondol.contract.model_spec import ModelSpec
from tests.tiny_models import _config_keys
from tests.tiny_specs import model_spec_of, write_spec

TokenizerFamily = Literal["wordpiece", "unigram", "bytes"]

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "X-ODD")
MAX_LENGTH = 48
VOCAB = 400

_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CORPUS = (
    "The fire burns below and the whole house stays warm, says Minji Kim of Seoul.",
    "How do I reset the password of my account? Ask the people in Busan.",
    "A queue remembers what a server forgets when it dies in New York.",
    "온돌은 불을 아래에서 때어 집 전체를 따뜻하게 한다.",
    "오늘 서울 날씨가 참 좋네요. 내일은 부산에 비가 온다고 합니다.",
)


def make_tagger(folder: Path, family: TokenizerFamily, model_type: str = "bert", *, seed: int = 0) -> Path:
    """A token classification model with `TAGS`."""
    return _make(folder, "AutoModelForTokenClassification", family, model_type, TAGS, seed=seed, config={})


def make_classifier(
    folder: Path,
    labels: tuple[str, ...],
    *,
    model_type: str = "bert",
    problem_type: str | None = None,
    threshold: float | None = None,
    seed: int = 0,
) -> Path:
    """A text classification model over word pieces; pairs have type ids where the model takes them."""
    config = {"problem_type": problem_type} if problem_type is not None else {}
    auto_class = "AutoModelForSequenceClassification"
    _make(folder, auto_class, "wordpiece", model_type, labels, seed=seed, config=config)
    return write_spec(folder, replace(spec_of(folder), threshold=threshold))


def spec_of(folder: Path) -> ModelSpec:
    """What is served of the folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_tagger = config["architectures"][0].endswith("ForTokenClassification")
    return model_spec_of(
        folder,
        task="token-classification" if is_tagger else "text-classification",
        labels=tuple(label for _, label in sorted(config["id2label"].items(), key=lambda pair: int(pair[0]))),
        problem_type=config.get("problem_type"),
        max_length=MAX_LENGTH,
        # A head has the pooler that its class gives it; the base model's own is another matter.
        has_pooler=False,
    )


def _make(
    folder: Path,
    auto_class: str,
    family: TokenizerFamily,
    model_type: str,
    labels: tuple[str, ...],
    *,
    seed: int,
    config: dict[str, Any],
) -> Path:
    import torch
    import transformers

    keys = _config_keys(model_type, hidden=32, layers=2, vocab=VOCAB) | config
    keys |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, auto_class).from_config(transformers.AutoConfig.for_model(model_type, **keys))
        with torch.no_grad():
            model.classifier.weight.normal_(std=1.0)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _write_tokenizer(folder, family, has_type_ids=bool(getattr(model.config, "type_vocab_size", 0)))
    return write_spec(folder, spec_of(folder))


def _write_tokenizer(folder: Path, family: TokenizerFamily, *, has_type_ids: bool) -> None:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _trained(family)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if has_type_ids else []), "attention_mask"],
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def _trained(family: TokenizerFamily) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    options: dict[str, Any] = {"vocab_size": VOCAB, "special_tokens": list(_SPECIALS), "show_progress": False}
    trainer: Any
    tokenizer: Any
    if family == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(continuing_subword_prefix="##", **options)
    elif family == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **options)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer
