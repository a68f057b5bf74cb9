"""What a run leaves: a version folder that plain transformers loads, with the head that the labels ask for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models_store.allowed_files import list_folder
from ondol.contract.errors import InvalidPayload, ModelCannot, OutOfDeviceMemory
from ondol.contract.model_spec import parse_model_spec
from tests.training.runs import Event, make_base, make_plan, tag_rows, text_rows, train_here
from workers.offline_models import offline_model_folders
from workers.training.child.run import is_out_of_memory
from workers.training.child.trainer import TrainingDiverged
from workers.training.plan import BaseVersion, TrainPlan

pytestmark = pytest.mark.integration

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def published(events: list[Event]) -> Path:
    assert events[-1]["event"] == "finished", events
    return Path(events[-1]["folder"])


def test_plain_transformers_gets_the_same_logits_and_label_names(tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    events = train_here(make_plan(tmp_path / "p", tiny_base, tag_rows(20), hyperparameters=SHORT))
    folder = published(events)
    texts = ["bper3 o1 bloc2", "온돌은 따뜻하다"]
    program = Path(__file__).with_name("plain_load.py")
    answer = subprocess.run(
        [sys.executable, "-I", str(program), str(folder), "AutoModelForTokenClassification", json.dumps(texts)],
        capture_output=True, check=True, cwd=tmp_path, env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    found = json.loads(answer.stdout)
    checkpoint = next(event["folder"] for event in events if event["event"] == "checkpoint" and event["is_best"])
    model = AutoModelForTokenClassification.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text, logits in zip(texts, found["logits"], strict=True):
        with torch.no_grad():
            wanted = model(**tokenizer(text, return_tensors="pt")).logits
        torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-5, rtol=0)
    assert found["labels"] == ["B-LOC", "B-PER", "I-PER", "O"]

    spec = parse_model_spec((folder / "ondol.json").read_bytes(), ref="tiny:1")
    assert (spec.task, list(spec.labels), spec.missing_weights) == ("token-classification", found["labels"], ())
    assert sorted(events[-1]["files"]) == list_folder(folder)
    assert {"README.md", "metrics.json", "training.json", "ondol.json"} <= set(events[-1]["files"])
    assert "base:1" in (folder / "README.md").read_text()
    assert json.loads((folder / "metrics.json").read_text())["best_step"] == events[-1]["best_step"]
    assert events[-1]["dtype"]["dtype"] in ("float32", "bfloat16")


def start(plan: TrainPlan) -> dict[str, Any]:
    """The weights with which a run of `plan` begins, by name."""
    from workers.training.child.base_model import base_for_training

    assert plan.report is not None
    spec = parse_model_spec((plan.base.path / "ondol.json").read_bytes(), ref="base:1")
    found = base_for_training(plan.base.path, spec, plan.options, plan.report, ref="base:1")
    return dict(found.model.named_parameters())


def test_a_classifier_of_the_same_labels_keeps_its_head_and_of_others_gets_a_new_one(
    tiny_base: Path, tmp_path: Path
) -> None:
    first = published(train_here(make_plan(tmp_path / "a", tiny_base, text_rows(20), hyperparameters=SHORT)))
    trained = tensors(first)["classifier.weight"]

    same = start(make_plan(tmp_path / "b", first, text_rows(20)))
    renamed = [row | {"label": f"new {row['label']}"} for row in text_rows(20)]
    other = [start(make_plan(tmp_path / name, first, renamed)) for name in ("c", "d")]

    assert same["classifier.weight"].equal(trained)
    assert not other[0]["classifier.weight"].equal(trained)
    assert other[0]["classifier.weight"].equal(other[1]["classifier.weight"])
    assert other[0]["bert.embeddings.word_embeddings.weight"].equal(same["bert.embeddings.word_embeddings.weight"])


def test_what_the_base_lacks_learns_even_with_a_frozen_backbone(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    stored = {name: value for name, value in tensors(base).items() if "pooler" not in name}
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    plan = make_plan(tmp_path / "p", base, text_rows(20), backbone="frozen", hyperparameters=SHORT)
    before = {name: value.detach().clone() for name, value in start(plan).items()}
    events = train_here(plan)

    after = tensors(published(events))
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    assert moved == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert events[0]["num_trainable"] == sum(before[name].numel() for name in moved)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_several_labels_and_numbers_are_learnt(problem: str, tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {"text": row["text"], "label": ["odd", row["label"]] if number % 2 else [row["label"]]}
        if problem.startswith("multi")
        else {"text": row["text"], "label": str(number / 7)}
        for number, row in enumerate(text_rows(40))
    ]
    hyper = SHORT | {"max_steps": 24, "logging_steps": 6, "learning_rate": 5e-3}
    extra = {"class_weights": "balanced"} if problem.startswith("multi") else {}
    events = train_here(make_plan(tmp_path, tiny_base, rows, problem_type=problem, hyperparameters=hyper, **extra))
    losses = [event["loss"] for event in events if event["event"] == "metrics"]
    assert losses[-1] < losses[0]
    assert events[-1]["spec"]["problem_type"] == problem
    assert {"f1_micro", "spearman"} & set(events[-1]["metrics"])


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_written(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    overflowing = tensors(base)
    overflowing["encoder.layer.0.output.dense.weight"] *= 1e38
    save_file(overflowing, base / "model.safetensors", {"format": "pt"})
    plan = make_plan(tmp_path / "p", base, text_rows(20), hyperparameters=SHORT)
    with pytest.raises(TrainingDiverged, match="lower the learning rate") as found:
        train_here(plan)
    assert found.value.code == "training_diverged"
    assert not list(plan.work_dir.glob("checkpoint-*"))


def test_options_that_the_base_cannot_follow_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, tiny_base, text_rows(20), hyperparameters=SHORT, config={"mlp_dropout": 0.3})
    with pytest.raises(InvalidPayload, match="mlp_dropout"):
        train_here(plan)


def test_an_architecture_without_the_head_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "p", tiny_base, tag_rows(20), hyperparameters=SHORT)
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    with pytest.raises(ModelCannot, match="no token-classification head"):
        start(replace(plan, base=BaseVersion("base:1", base)))


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert OutOfDeviceMemory.code == "out_of_device_memory"


def test_a_packaged_sentence_model_is_a_base(tmp_path: Path) -> None:
    folder = offline_model_folders().get("all-minilm-l6-v2")
    if folder is None:
        pytest.skip("all-minilm-l6-v2 is not installed")
    base = make_base(tmp_path / "base", folder)
    hyper = SHORT | {"max_steps": 1}
    plan = make_plan(tmp_path / "p", base, text_rows(12), freeze_word_embeddings=True, hyperparameters=hyper)
    events = train_here(plan)
    assert events[0]["num_trainable"] < events[0]["num_parameters"]
    assert list(events[-1]["spec"]["labels"]) == ["card", "money", "warm"]
