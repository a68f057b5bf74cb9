"""The sentence-transformers part of a folder, in both dialects: before 5.x, and with 6.x's module paths and keys."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondol.contract.errors import ModelRefused
from ondol.contract.model_spec import ModuleSpec, PoolingMode, PoolingSpec
from workers.importing.prompts import PROMPTS_FILE, Prompts, read_prompts
from workers.importing.source import SourceFolder
from workers.importing.weights import StagedWeights, stage_weights

MODULES_FILE = "modules.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
_TRANSFORMER_FILES = (
    TRANSFORMER_FILE,
    *(f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")),
)
_KNOWN = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
_TYPE = re.compile(r"sentence_transformers(\.[A-Za-z_][A-Za-z0-9_]*)+")
# In the order in which sentence-transformers concatenates the modes that its old flags switch on.
_OLD_FLAGS = {
    "pooling_mode_cls_token": PoolingMode.CLS,
    "pooling_mode_max_tokens": PoolingMode.MAX,
    "pooling_mode_mean_tokens": PoolingMode.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": PoolingMode.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": PoolingMode.LAST,
}
_MODES = {
    "cls": PoolingMode.CLS,
    "max": PoolingMode.MAX,
    "mean": PoolingMode.MEAN,
    "mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT_LEN,
    "weightedmean": PoolingMode.WEIGHTED_MEAN,
    "lasttoken": PoolingMode.LAST,
}
# By torch's class name; the device process knows them by these words.
_ACTIVATIONS = {
    name: name.lower()
    for name in (
        *("Identity", "Tanh", "ReLU", "ReLU6", "GELU", "Sigmoid", "SiLU", "Mish", "ELU", "SELU", "CELU", "Hardtanh"),
        *("Hardswish", "Hardsigmoid", "Softplus", "Softsign", "LogSigmoid", "Tanhshrink"),
    )
} | {"LeakyReLU": "leaky_relu"}
_HARMLESS_KWARGS = frozenset({"trust_remote_code", "attn_implementation", "torch_dtype", "dtype"})


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    type: str
    path: str


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What a folder states besides the transformer; `chain` are the modules behind the transformer, in order."""

    transformer_path: str
    transformer: dict[str, Any]
    chain: tuple[_Module, ...]
    transformer_type: str
    prompts: Prompts
    max_seq_length: int | None
    has_lower_case: bool


@dataclass(frozen=True, slots=True)
class StagedModules:
    """Pooling and modules as they were staged; `dimensions` is the length of the vectors that come out."""

    pooling: PoolingSpec
    modules: tuple[ModuleSpec, ...]
    dimensions: int


def read_sentence_modules(source: SourceFolder, warnings: list[str]) -> SentenceModules | None:
    """The modules of the folder; None for a plain folder and for cross-encoders, which have no modules of their own.

    ModelRefused for modules other than Transformer, Pooling, Dense, LayerNorm and Normalize, and for another order.
    """
    if not source.has(MODULES_FILE) or _is_cross_encoder(source):
        return None
    listed = source.read_json(MODULES_FILE)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ModelRefused(f"{MODULES_FILE} is not a list of modules")
    modules = [_module(entry) for entry in listed]
    names = [module.name for module in modules]
    if names[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(names[2:]):
        raise ModelRefused(
            f"{MODULES_FILE} lists {', '.join(names) or 'nothing'}; supported are one Transformer, then one Pooling, "
            "then Dense, LayerNorm and Normalize"
        )
    first = modules[0]
    transformer = _transformer_config(source.sub(first.path), warnings)
    length = transformer.get("max_seq_length")
    return SentenceModules(
        transformer_path=first.path,
        transformer=transformer,
        chain=tuple(modules[1:]),
        transformer_type=first.type,
        prompts=read_prompts(source),
        max_seq_length=length if isinstance(length, int) and length > 0 else None,
        has_lower_case=transformer.get("do_lower_case") is True,
    )


def stage_modules(
    source: SourceFolder, target: Path, found: SentenceModules, *, hidden_size: int, convert_bin: bool
) -> StagedModules:
    """Write the modules' folders and lists into `target`, so that sentence-transformers loads it as it did `source`."""
    pooling, keys = _pooling(source.sub(found.chain[0].path), hidden_size)
    width = hidden_size * len(pooling.modes)
    listed = [{"idx": 0, "name": "0", "path": "", "type": found.transformer_type}]
    specs: list[ModuleSpec] = []
    for idx, module in enumerate(found.chain, start=1):
        folder = target / f"{idx}_{module.name}"
        folder.mkdir()
        listed.append({"idx": idx, "name": str(idx), "path": folder.name, "type": module.type})
        if module.name != "Pooling":
            spec, keys = _stage_module(source, folder, module, width=width, convert_bin=convert_bin)
            specs.append(spec)
            width = spec.out_features
        _write(folder / "config.json", keys)
    _write(target / MODULES_FILE, listed)
    _write(target / TRANSFORMER_FILE, found.transformer)
    _write(
        target / PROMPTS_FILE,
        {"prompts": found.prompts.by_name, "default_prompt_name": found.prompts.default_name},
    )
    return StagedModules(pooling, tuple(specs), width)


def _is_cross_encoder(source: SourceFolder) -> bool:
    if not source.has(PROMPTS_FILE):
        return False
    kind = source.read_object(PROMPTS_FILE).get("model_type", "SentenceTransformer")
    if kind not in ("SentenceTransformer", "CrossEncoder"):
        raise ModelRefused(f"{PROMPTS_FILE} says that this is a {kind}, which is not supported")
    return bool(kind == "CrossEncoder")


def _module(entry: dict[str, Any]) -> _Module:
    type_name, path = str(entry.get("type")), str(entry.get("path", ""))
    name = type_name.rsplit(".", 1)[-1]
    if _TYPE.fullmatch(type_name) is None or name not in _KNOWN:
        raise ModelRefused(f"{MODULES_FILE} has the module {type_name}; supported are {', '.join(_KNOWN)}")
    return _Module(name, type_name, path.rstrip("/"))


def _transformer_config(folder: SourceFolder, warnings: list[str]) -> dict[str, Any]:
    name = next((name for name in _TRANSFORMER_FILES if folder.has(name)), None)
    if name is None:
        return {}
    content = folder.read_object(name)
    task = content.get("transformer_task", "feature-extraction")
    modalities = content.get("modality_config", {"text": {"method": "forward"}})
    if task != "feature-extraction" or not isinstance(modalities, dict) or "text" not in modalities:
        raise ModelRefused(f"{folder.shown(name)} says task {task!r}; supported is feature-extraction from text")
    for key, value in content.items():
        if key.endswith(("_args", "_kwargs")) and isinstance(value, dict) and set(value) - _HARMLESS_KWARGS:
            ignored = ", ".join(sorted(set(value) - _HARMLESS_KWARGS))
            warnings.append(f"{folder.shown(name)}: {key} is not used ({ignored})")
    return {key: value for key, value in content.items() if not key.endswith(("_args", "_kwargs"))}


def _pooling(folder: SourceFolder, hidden_size: int) -> tuple[PoolingSpec, dict[str, Any]]:
    """The pooling, and the keys to write again: the ones of the dialect that was read."""
    keys = folder.read_object("config.json")
    width = keys.get("embedding_dimension", keys.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ModelRefused(f"{folder.shown('config.json')} pools {width} numbers, the transformer gives {hidden_size}")
    if "pooling_mode" in keys:
        names = keys["pooling_mode"]
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(name in _MODES for name in names):
            raise ModelRefused(f"{folder.shown('config.json')} has pooling_mode {names!r}; known are {list(_MODES)}")
        modes = tuple(_MODES[name] for name in names)
    else:
        modes = tuple(mode for flag, mode in _OLD_FLAGS.items() if keys.get(flag) is True) or (PoolingMode.MEAN,)
    known = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_OLD_FLAGS}
    spec = PoolingSpec(modes, keys.get("include_prompt", True) is not False)
    return spec, {key: value for key, value in keys.items() if key in known}


def _stage_module(
    source: SourceFolder, folder: Path, module: _Module, *, width: int, convert_bin: bool
) -> tuple[ModuleSpec, dict[str, Any]]:
    if module.name == "Normalize":
        # Old versions write no folder for it.
        keys = source.sub(module.path).read_object("config.json") if source.has(module.path) else {}
        _check_place(f"{module.path}/config.json", keys)
        return ModuleSpec("normalize", folder.name, width, width), {}
    origin = source.sub(module.path)
    keys = origin.read_object("config.json")
    shown = origin.shown("config.json")
    weights = stage_weights(origin, folder, convert_bin=convert_bin)
    if module.name == "LayerNorm":
        _check_shapes(shown, weights, {"norm.weight": (width,), "norm.bias": (width,)})
        return ModuleSpec("layer_norm", folder.name, width, width), {"dimension": width}
    return _dense(shown, keys, weights, folder=folder.name, width=width)


def _dense(
    shown: str, keys: dict[str, Any], weights: StagedWeights, *, folder: str, width: int
) -> tuple[ModuleSpec, dict[str, Any]]:
    _check_place(shown, keys)
    activation = str(keys.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rsplit(".", 1)[-1]
    if not activation.startswith("torch.nn.modules.") or name not in _ACTIVATIONS:
        raise ModelRefused(f"{shown} has the activation {activation}; known are {', '.join(_ACTIVATIONS)}")
    out_features, has_bias = keys.get("out_features"), keys.get("bias", True) is not False
    if type(out_features) is not int or out_features < 1 or keys.get("in_features") != width:
        raise ModelRefused(f"{shown} goes from {keys.get('in_features')} to {out_features} numbers; {width} come in")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out_features, width)}
    if has_bias:
        shapes["linear.bias"] = (out_features,)
    _check_shapes(shown, weights, shapes)
    spec = ModuleSpec("dense", folder, width, out_features, has_bias, _ACTIVATIONS[name])
    written = {"in_features": width, "out_features": out_features, "bias": has_bias, "activation_function": activation}
    return spec, written


def _check_place(shown: str, keys: dict[str, Any]) -> None:
    names = {keys.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if names != {"sentence_embedding"} or keys.get("use_residual"):
        raise ModelRefused(f"{shown}: modules are supported on sentence_embedding and without a residual only")


def _check_shapes(shown: str, weights: StagedWeights, expected: dict[str, tuple[int, ...]]) -> None:
    actual = {name: tensor.shape for name, tensor in weights.tensors.items()}
    if actual != expected:
        raise ModelRefused(f"{shown} asks for weights {expected}, the folder holds {actual}")


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
