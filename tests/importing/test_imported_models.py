"""An imported folder says what the model is, and gives the same numbers in the reference libraries as its source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from ondol.contract.model_spec import PoolingMode, PoolingSpec, parse_model_spec
from tests.importing.conftest import Import
from tests.importing.folders import change_json, make_kcbert, make_with_head, move_weights_to_bin, read_json
from tests.tiny_models import MODEL_TYPES, TinyModules, make_tiny_model, make_tiny_sentence_transformer
from workers.importing.sample_texts import SAMPLE_TEXTS

pytestmark = pytest.mark.integration

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def _encode(folder: Path, prompt: str = "") -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), local_files_only=True, device="cpu")
    return model.encode(list(SAMPLE_TEXTS), prompt=prompt)


def _hidden(folder: Path) -> Any:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = tokenizer(list(SAMPLE_TEXTS), padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder, local_files_only=True)(**rows).last_hidden_state.numpy()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_plain_folder_gives_the_same_hidden_states(tmp_path: Path, run_here: Import, model_type: str) -> None:
    source = make_tiny_model(tmp_path / "source", model_type)
    spec, target = run_here(source)
    np.testing.assert_array_equal(_hidden(target), _hidden(source))
    assert (spec.model_type, spec.hidden_size, spec.num_layers, spec.vocab_size) == (model_type, 32, 2, 400)
    assert (spec.task, spec.pooling, spec.modules, spec.dimensions) == ("embedding", PoolingSpec(), (), 32)
    assert parse_model_spec((target / "ondol.json").read_bytes(), ref="m:1") == spec
    assert not (target / "modules.json").exists()


@pytest.mark.parametrize(("model_type", "offset"), [("bert", 0), ("roberta", 2), ("xlm-roberta", 2), ("mpnet", 2)])
def test_positions_of_the_roberta_family_begin_behind_padding(
    tmp_path: Path, run_here: Import, model_type: str, offset: int
) -> None:
    spec, _ = run_here(make_tiny_model(tmp_path / "source", model_type))
    assert (spec.position_offset, spec.max_positions, spec.max_length) == (offset, 64 + offset, 64)


@pytest.mark.parametrize("dialect", ["old", "new"])
def test_both_dialects_give_the_same_vectors(tmp_path: Path, run_here: Import, dialect: Literal["old", "new"]) -> None:
    modules = TinyModules(
        pooling=("cls", "mean"),
        include_prompt=False,
        dense=8,
        has_layer_norm=True,
        has_normalize=True,
        prompts={"query": "query: ", "passage": "passage: "},
        default_prompt_name="query",
    )
    source = make_tiny_sentence_transformer(tmp_path / "source", dialect=dialect, modules=modules)
    spec, target = run_here(source)
    np.testing.assert_array_equal(_encode(target, "query: "), _encode(source, "query: "))
    assert spec.pooling == PoolingSpec((PoolingMode.CLS, PoolingMode.MEAN), include_prompt=False)
    assert [module.type for module in spec.modules] == ["dense", "layer_norm", "normalize"]
    assert (spec.modules[0].in_features, spec.modules[0].out_features, spec.modules[0].activation) == (64, 8, "tanh")
    assert all((target / module.path / "config.json").exists() for module in spec.modules)
    assert spec.dimensions == 8
    assert spec.prompts == modules.prompts
    names = (spec.default_prompt_name, spec.query_prompt_name, spec.document_prompt_name)
    assert names == ("query", "query", "passage")


@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize("mode", POOLINGS)
def test_every_pooling_is_read(tmp_path: Path, run_here: Import, dialect: Literal["old", "new"], mode: str) -> None:
    modules = TinyModules(pooling=(mode,))
    source = make_tiny_sentence_transformer(tmp_path / "source", dialect=dialect, modules=modules)
    spec, target = run_here(source)
    expected = {"lasttoken": PoolingMode.LAST, "mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT_LEN}
    assert spec.pooling.modes == (expected.get(mode) or PoolingMode(mode),)
    np.testing.assert_array_equal(_encode(target), _encode(source))


def test_pooling_modes_keep_the_order_of_the_new_dialect(tmp_path: Path, run_here: Import) -> None:
    modules = TinyModules(pooling=("mean", "cls"))
    spec, target = run_here(make_tiny_sentence_transformer(tmp_path / "source", modules=modules))
    assert spec.pooling.modes == (PoolingMode.MEAN, PoolingMode.CLS)
    np.testing.assert_array_equal(_encode(target), _encode(tmp_path / "source"))


def test_a_transformer_in_a_folder_of_its_own_is_found(sentence: Path, run_here: Import) -> None:
    before = _encode(sentence)
    inner = sentence / "0_Transformer"
    inner.mkdir()
    for path in [*sentence.glob("*.json"), sentence / "model.safetensors"]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(path, inner / path.name)
    modules = json.loads((sentence / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (sentence / "modules.json").write_text(json.dumps(modules))
    _, target = run_here(sentence)
    np.testing.assert_array_equal(_encode(target), before)


def test_lower_casing_before_the_tokenizer_is_kept(sentence: Path, run_here: Import) -> None:
    change_json(sentence / "sentence_bert_config.json", do_lower_case=True)
    _, target = run_here(sentence)
    np.testing.assert_array_equal(_encode(target), _encode(sentence))


@pytest.mark.parametrize(
    ("auto_class", "task", "labels"),
    [
        ("AutoModelForSequenceClassification", "text-classification", ("no", "yes")),
        ("AutoModelForTokenClassification", "token-classification", ("no", "yes")),
        ("AutoModelForQuestionAnswering", "question-answering", ()),
        ("AutoModelForMaskedLM", "fill-mask", ()),
    ],
)
def test_a_trained_head_gives_the_task(
    tmp_path: Path, run_here: Import, auto_class: str, task: str, labels: tuple[str, ...]
) -> None:
    source = make_with_head(tmp_path / "source", auto_class, id2label={0: "no", 1: "yes"})
    spec, _ = run_here(source)
    assert (spec.task, spec.labels) == (task, labels)
    assert spec.problem_type == ("single_label_classification" if task == "text-classification" else None)


def test_a_promised_head_without_weights_is_no_task(plain: Path, run_here: Import) -> None:
    change_json(plain / "config.json", architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "b"})
    spec, _ = run_here(plain)
    assert (spec.task, spec.labels) == ("embedding", ())
    assert "classifier.weight" in spec.missing_weights
    assert any("was not trained" in warning for warning in spec.warnings)


def test_a_missing_pooler_is_recorded(tmp_path: Path, run_here: Import) -> None:
    spec, _ = run_here(make_with_head(tmp_path / "source", "AutoModelForMaskedLM"))
    assert not spec.has_pooler
    assert set(spec.missing_weights) == {"pooler.dense.bias", "pooler.dense.weight"}


def test_a_pooler_is_recorded(plain: Path, run_here: Import) -> None:
    spec, _ = run_here(plain)
    assert (spec.has_pooler, spec.missing_weights, spec.warnings) == (True, (), ())


def test_a_kcbert_shaped_model_works(tmp_path: Path, run_here: Import) -> None:
    from tokenizers import Tokenizer

    spec, target = run_here(make_kcbert(tmp_path / "source"))
    assert (spec.max_length, spec.task, spec.has_pooler) == (300, "fill-mask", False)
    assert any("do_lower_case" in warning for warning in spec.warnings)
    tokens = Tokenizer.from_file(str(target / "tokenizer.json")).encode("안녕하세요 Seoul KBS!").tokens
    assert tokens == ["[CLS]", "안녕", "##하세요", "Seoul", "KBS", "!", "[SEP]"]


def test_a_lost_tokenizer_config_changes_neither_length_nor_case(tmp_path: Path, run_here: Import) -> None:
    from tokenizers import Tokenizer
    from transformers import BertTokenizer

    source = make_kcbert(tmp_path / "source")
    BertTokenizer.from_pretrained(source, do_lower_case=False).save_pretrained(source)
    (source / "vocab.txt").unlink()
    (source / "tokenizer_config.json").unlink()
    spec, target = run_here(source)
    assert spec.max_length == 300
    tokens = Tokenizer.from_file(str(target / "tokenizer.json")).encode("안녕하세요 Seoul").tokens
    assert tokens == ["[CLS]", "안녕", "##하세요", "Seoul", "[SEP]"]


def test_truncation_and_padding_are_not_part_of_the_tokenizer(plain: Path, run_here: Import) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(plain / "tokenizer.json"))
    _, target = run_here(plain)
    written = read_json(target / "tokenizer.json")
    assert (written["truncation"], written["padding"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"model_max_length": 40}, 40), ({"model_max_length": 10**30}, 64), ({"model_max_length": None}, 64)],
)
def test_the_effective_length_is_the_smallest_sane_one(
    plain: Path, run_here: Import, changes: dict[str, Any], expected: int
) -> None:
    change_json(plain / "tokenizer_config.json", **changes)
    spec, target = run_here(plain)
    assert spec.max_length == expected
    assert read_json(target / "tokenizer_config.json")["model_max_length"] == expected


def test_max_seq_length_bounds_the_length(tmp_path: Path, run_here: Import) -> None:
    source = make_tiny_sentence_transformer(tmp_path / "source", dialect="old")
    change_json(source / "sentence_bert_config.json", max_seq_length=20)
    assert run_here(source)[0].max_length == 20


def test_pickled_weights_are_converted_when_asked_for(plain: Path, run_here: Import) -> None:
    before = _hidden(plain)
    move_weights_to_bin(plain)
    spec, target = run_here(plain, convert_bin=True)
    assert [path.name for path in target.glob("*.bin")] == []
    np.testing.assert_array_equal(_hidden(target), before)
    assert spec.weights_dtype == "float32"


@pytest.mark.parametrize("is_bin", [False, True])
def test_weights_in_shards_stay_whole(plain: Path, run_here: Import, is_bin: bool) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel

    before = _hidden(plain)
    AutoModel.from_pretrained(plain).save_pretrained(plain, max_shard_size="50KB")
    (plain / "model.safetensors").unlink(missing_ok=True)
    if is_bin:
        index = read_json(plain / "model.safetensors.index.json")
        for path in plain.glob("model-*.safetensors"):
            torch.save(load_file(path), plain / f"pytorch_{path.stem}.bin")
            path.unlink()
        names = {key: f"pytorch_{Path(name).stem}.bin" for key, name in index["weight_map"].items()}
        (plain / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        (plain / "model.safetensors.index.json").unlink()
    _, target = run_here(plain, convert_bin=is_bin)
    assert len(list(target.glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(_hidden(target), before)


def test_the_dtype_of_the_weights_is_recorded(plain: Path, run_here: Import) -> None:
    import torch
    from transformers import AutoModel

    AutoModel.from_pretrained(plain).to(torch.float16).save_pretrained(plain)
    assert run_here(plain)[0].weights_dtype == "float16"


@pytest.mark.parametrize("hint", ["folder", "readme"])
def test_a_model_that_wants_prompts_and_states_none_warns(plain: Path, run_here: Import, hint: str) -> None:
    if hint == "folder":
        plain = plain.rename(plain.with_name("multilingual-e5-tiny"))
    else:
        (plain / "README.md").write_text('Each text starts with "query: " or "passage: ".')
    spec, target = run_here(plain)
    assert any("query: " in warning for warning in spec.warnings)
    assert "# " in (target / "README.md").read_text() or hint == "readme"


def test_empty_prompts_of_version_6_count_as_none(sentence: Path, run_here: Import) -> None:
    prompts = {"query": "q: ", "document": "", "passage": "p: "}
    change_json(sentence / "config_sentence_transformers.json", prompts=prompts)
    spec, _ = run_here(sentence)
    assert (spec.query_prompt_name, spec.document_prompt_name) == ("query", "passage")


def test_files_that_nobody_needs_are_left_out(plain: Path, run_here: Import) -> None:
    for name in ("training_args.bin", "modeling_bert.py", "pytorch_model.bin", "vocab.txt", ".gitattributes"):
        (plain / name).write_bytes(b"x")
    _, target = run_here(plain)
    names = {path.name for path in target.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "ondol.json"),
    }


def test_a_snapshot_of_the_hub_cache_is_read_through_its_links(plain: Path, run_here: Import, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(plain.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(i))
    assert run_here(snapshot)[0].hidden_size == 32


def test_activations_are_those_that_the_device_process_knows() -> None:
    from workers.device.modules import ACTIVATIONS
    from workers.importing.sentence_modules import _ACTIVATIONS

    assert set(_ACTIVATIONS.values()) == set(ACTIVATIONS)
