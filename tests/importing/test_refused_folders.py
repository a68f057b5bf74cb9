"""A folder that is damaged, hostile or unsupported is refused, with the file's name and what to do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ondol.contract.errors import ModelRefused
from tests.importing.conftest import Import
from tests.importing.folders import change_json, move_weights_to_bin, read_json

pytestmark = pytest.mark.integration

Change = Callable[[Path], object]


class RunsCode:
    """What a hostile pickle holds: reading it makes a file."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


def _pickle(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"weight": RunsCode()}, protocol=2))


def _write(folder: Path, name: str, data: bytes | str) -> None:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def _set_value(folder: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][3] = value
    save_file(tensors, folder / "model.safetensors")


def _drop_weights(folder: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if part not in name}
    save_file(tensors, folder / "model.safetensors")


def _add_token(folder: Path) -> None:
    content = read_json(folder / "tokenizer.json")
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "[NEW]"})
    _write(folder, "tokenizer.json", json.dumps(content))


def _header(folder: Path, content: object) -> None:
    data = json.dumps(content).encode()
    _write(folder, "model.safetensors", struct.pack("<Q", len(data)) + data + bytes(8))


def _link_outside(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    outside.write_text((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(outside)


def _shards_outside(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.LayerNorm.bias": "../model.safetensors"}}
    _write(folder, "model.safetensors.index.json", json.dumps(index))


def _index_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _write(folder, "model.safetensors.index.json", "{}")


def _drop(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


PLAIN: dict[str, tuple[Change, str]] = {
    "no config": (_drop("config.json"), "config.json is missing"),
    "config that is no JSON": (lambda f: _write(f, "config.json", "{"), "config.json is not JSON"),
    "config that is a list": (lambda f: _write(f, "config.json", "[]"), "config.json is not a JSON object"),
    "config of deep brackets": (lambda f: _write(f, "config.json", "[" * 100_000), "config.json is not JSON"),
    "config that is no text": (lambda f: _write(f, "config.json", b"\xff\xfe"), "not UTF-8"),
    "remote code": (lambda f: change_json(f / "config.json", auto_map={"AutoModel": "m.M"}), "auto_map"),
    "remote tokenizer code": (
        lambda f: change_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["m.M", None]}),
        "tokenizer_config.json has an auto_map",
    ),
    "unknown model type": (lambda f: change_json(f / "config.json", model_type="frobnicator"), "'frobnicator'"),
    "no model type": (lambda f: change_json(f / "config.json", model_type=None), "model_type None"),
    "unknown architecture": (lambda f: change_json(f / "config.json", architectures=["BortModel"]), "'BortModel'"),
    "a decoder's twin": (lambda f: change_json(f / "config.json", is_encoder_decoder=True), "is_encoder_decoder"),
    "quantised": (lambda f: change_json(f / "config.json", quantization_config={"bits": 4}), "quantization_config"),
    "absurd size": (lambda f: change_json(f / "config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "size of a wrong type": (lambda f: change_json(f / "config.json", hidden_size="32"), "hidden_size"),
    "more layers than weights": (lambda f: change_json(f / "config.json", num_hidden_layers=3), "the weights lack"),
    "another width": (lambda f: change_json(f / "config.json", intermediate_size=96), "has shape"),
    "fewer words than weights": (lambda f: change_json(f / "config.json", vocab_size=390), "has shape"),
    "a model that is no text encoder": (lambda f: change_json(f / "config.json", model_type="vit"), "."),
    "tokenizer with more words": (_add_token, "ids up to 400"),
    "no tokenizer": (_drop("tokenizer.json"), "there is no tokenizer"),
    "damaged tokenizer": (lambda f: _write(f, "tokenizer.json", '{"version": "1.0"}'), "tokenizer"),
    "tokenizer of another library": (
        lambda f: (f / "tokenizer.json").rename(f / "sentencepiece.bpe.model"),
        "save_pretrained",
    ),
    "no weights": (_drop("model.safetensors"), "model.safetensors is missing"),
    "pickle of torch": (lambda f: _pickle(f, "pytorch_model.bin"), "--convert-bin"),
    "other pickle": (lambda f: _pickle(f, "weights.pkl"), "weights.pkl is a pickle"),
    "pickle renamed": (lambda f: _pickle(f, "model.safetensors"), "pickle renamed to .safetensors"),
    "torch file renamed": (
        lambda f: move_weights_to_bin(f).rename(f / "model.safetensors"),
        "pickle renamed to .safetensors",
    ),
    "weights of TensorFlow": (lambda f: (f / "model.safetensors").rename(f / "tf_model.h5"), "from_tf"),
    "weights of Flax": (lambda f: (f / "model.safetensors").rename(f / "flax_model.msgpack"), "from_flax"),
    "an adapter": (lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"), "merge_and_unload"),
    "ONNX only": (lambda f: (f / "model.safetensors").rename(f / "model.onnx"), "PyTorch weights"),
    "empty weights file": (lambda f: _write(f, "model.safetensors", b""), "not a whole safetensors file"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5_000), "not a whole safetensors file"),
    "weights with bytes at the end": (
        lambda f: _write(f, "model.safetensors", (f / "model.safetensors").read_bytes() + b"x"),
        "not a whole safetensors file",
    ),
    "header of 10^18 bytes": (lambda f: _write(f, "model.safetensors", struct.pack("<Q", 10**18)), "states a header"),
    "header that is a list": (lambda f: _header(f, []), "not a JSON object"),
    "offsets outside": (
        lambda f: _header(f, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
        "overlap or leave a gap",
    ),
    "negative shape": (
        lambda f: _header(f, {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}),
        "describes tensor 'a' wrongly",
    ),
    "NaN": (lambda f: _set_value(f, float("nan")), "NaN or infinite"),
    "infinite": (lambda f: _set_value(f, float("-inf")), "NaN or infinite"),
    "weights without an encoder": (lambda f: _drop_weights(f, "encoder.layer.1"), "the weights lack"),
    "link to another place": (_link_outside, "config.json is a link"),
    "shards outside": (_shards_outside, "paths may not lead out"),
    "index without shards": (
        _index_only,
        "no weight_map",
    ),
}


def _change_module(folder: Path, index: int, **changes: object) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))


def _keep_modules(folder: Path, *indices: int) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[index] for index in indices]))


SENTENCE: dict[str, tuple[Change, str]] = {
    "foreign module": (lambda f: _change_module(f, 4, type="os.system"), "has the module os.system"),
    "module of a repository": (lambda f: _change_module(f, 0, type="custom_st.Transformer"), "custom_st.Transformer"),
    "unsupported module": (
        lambda f: _change_module(f, 4, type="sentence_transformers.models.CNN"),
        "sentence_transformers.models.CNN",
    ),
    "path outside": (lambda f: _change_module(f, 2, path="../2_Dense"), "paths may not lead out"),
    "absolute path": (lambda f: _change_module(f, 1, path="/etc"), "paths may not lead out"),
    "module folder missing": (lambda f: shutil.rmtree(f / "2_Dense"), "2_Dense is missing"),
    "no pooling": (lambda f: _keep_modules(f, 0), "then one Pooling"),
    "pooling behind Dense": (lambda f: _keep_modules(f, 0, 2, 1), "then one Pooling"),
    "modules that are no list": (lambda f: _write(f, "modules.json", "{}"), "not a list of modules"),
    "unknown pooling": (lambda f: change_json(f / "1_Pooling/config.json", pooling_mode="median"), "median"),
    "pooling of another width": (
        lambda f: change_json(f / "1_Pooling/config.json", embedding_dimension=99),
        "pools 99 numbers",
    ),
    "Dense of another width": (lambda f: change_json(f / "2_Dense/config.json", in_features=99), "goes from 99"),
    "Dense with other weights": (lambda f: change_json(f / "2_Dense/config.json", bias=False), "asks for weights"),
    "activation that is code": (
        lambda f: change_json(f / "2_Dense/config.json", activation_function="os.system"),
        "activation os.system",
    ),
    "Dense on tokens": (
        lambda f: change_json(f / "2_Dense/config.json", module_input_name="token_embeddings"),
        "sentence_embedding",
    ),
    "sparse encoder": (
        lambda f: change_json(f / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "SparseEncoder",
    ),
    "images": (
        lambda f: change_json(f / "sentence_bert_config.json", modality_config={"image": {"method": "forward"}}),
        "feature-extraction from text",
    ),
    "prompts that are no texts": (
        lambda f: change_json(f / "config_sentence_transformers.json", prompts={"query": 3}),
        "prompts is not",
    ),
    "default prompt that is not there": (
        lambda f: change_json(f / "config_sentence_transformers.json", default_prompt_name="query"),
        "default prompt 'query'",
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_bad_plain_folder_is_refused(plain: Path, run_here: Import, name: str) -> None:
    change, words = PLAIN[name]
    change(plain)
    with pytest.raises(ModelRefused) as caught:
        run_here(plain)
    assert words in caught.value.message
    assert not Path("pickle-was-run").exists()


@pytest.mark.parametrize("name", SENTENCE)
def test_a_bad_sentence_transformers_folder_is_refused(sentence: Path, run_here: Import, name: str) -> None:
    change, words = SENTENCE[name]
    change(sentence)
    with pytest.raises(ModelRefused) as caught:
        run_here(sentence)
    assert words in caught.value.message


def test_a_hostile_pickle_is_not_run_when_conversion_is_asked_for(plain: Path, run_here: Import) -> None:
    _pickle(plain, "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="not a file of tensors only"):
        run_here(plain, convert_bin=True)
    assert not Path("pickle-was-run").exists()


def test_a_pickle_of_more_than_tensors_is_refused_when_converted(plain: Path, run_here: Import) -> None:
    import torch

    (plain / "model.safetensors").unlink()
    torch.save({"epoch": 3, "state_dict": {}}, plain / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="more than named tensors"):
        run_here(plain, convert_bin=True)


@pytest.mark.parametrize("place", ["nowhere", "plain/config.json"])
def test_what_is_no_folder_is_refused(plain: Path, run_here: Import, place: str) -> None:
    with pytest.raises(ModelRefused, match="is not a folder"):
        run_here(plain.parent / place)
