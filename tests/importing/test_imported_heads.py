"""An imported model with a head says its labels and kind, and the device gives the logits that its source gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from ondol.contract.model_spec import ModelSpec
from tests.importing.conftest import Import
from tests.importing.folders import change_json, read_json
from tests.tiny_models import LABELS, TAGS, make_tiny_head
from workers.offline_models import RAMPART, offline_model_folders

pytestmark = pytest.mark.integration

Task = Literal["text-classification", "token-classification"]
TEXT_POOLERS = frozenset({"bert", "albert"})
"""Types whose sequence head reads the base model's own pooler; all others load the base without one."""
SENTENCES = (
    "My name is Maria Lopez, write to maria.lopez@example.com.",
    "Call 555-0134 before noon.",
    "I live at 12 Baker Street, London, and I was born there too, many years before the war began.",
    "Nothing to see.",
)


def _reference_logits(folder: Path, task: Task, rows: list[list[int]]) -> Any:
    """Logits of each row alone by transformers' own class, end to end."""
    import torch
    import transformers

    kind = "Sequence" if task == "text-classification" else "Token"
    model = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found = [model.eval()(input_ids=torch.tensor([row])).logits for row in rows]
    return torch.cat([logits[0] if task == "token-classification" else logits for logits in found]).numpy()


def _device_logits(folder: Path, task: Task, rows: list[list[int]]) -> Any:
    import torch

    from tests.equal_to_reference.engines import make_engine, vectors

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return vectors(make_engine(), folder, rows, task=task)
    finally:
        torch.set_num_threads(threads)


def _summary(spec: ModelSpec) -> tuple[object, ...]:
    return spec.task, spec.labels, spec.problem_type, spec.missing_weights, spec.warnings


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
@pytest.mark.parametrize(
    "model_type",
    ["bert", "distilbert", "roberta", "xlm-roberta", "albert", "electra", "mpnet", "deberta-v2", "modernbert"],
)
def test_a_head_is_imported_whole(tmp_path: Path, run_here: Import, model_type: str, task: Task) -> None:
    source = make_tiny_head(tmp_path / "source", model_type, task=task)
    spec, target = run_here(source)
    is_text = task == "text-classification"
    kind = "single_label_classification" if is_text else None
    assert _summary(spec) == (task, LABELS if is_text else TAGS, kind, (), ())
    assert spec.has_pooler == (is_text and model_type in TEXT_POOLERS)
    rows = [[7, 8, 9, 10, 11], [5, 6], [20] * 30]
    expected = _reference_logits(source, task, rows)
    np.testing.assert_allclose(_device_logits(target, task, rows), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "stated", "recorded"),
    [
        (("a", "b"), None, "single_label_classification"),
        (("a", "b"), "multi_label_classification", "multi_label_classification"),
        (("score",), "regression", "regression"),
        (("score",), None, "single_label_classification"),
    ],
)
def test_the_problem_type_is_the_one_that_the_libraries_take(
    tmp_path: Path, run_here: Import, labels: tuple[str, ...], stated: str | None, recorded: str
) -> None:
    spec, _ = run_here(make_tiny_head(tmp_path / "source", labels=labels, problem_type=stated))
    assert (spec.labels, spec.problem_type) == (labels, recorded)


def test_labels_come_in_the_order_of_their_ids(tmp_path: Path, run_here: Import) -> None:
    names = tuple(f"class {i}" for i in range(12))
    source = make_tiny_head(tmp_path / "source", labels=names)
    shuffled = {str(i): names[i] for i in (10, 2, 0, 1, 11, 3, 4, 5, 9, 8, 7, 6)}
    change_json(source / "config.json", id2label=shuffled)
    assert run_here(source)[0].labels == names


@pytest.mark.parametrize("id2label", [None, {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}])
def test_names_that_only_label2id_knows_are_used(
    tmp_path: Path, run_here: Import, id2label: dict[str, str] | None
) -> None:
    source = make_tiny_head(tmp_path / "source")
    change_json(source / "config.json", id2label=id2label, label2id={"no": 0, "yes": 1, "maybe": 2})
    spec, target = run_here(source)
    assert (spec.labels, spec.warnings) == (LABELS, ())
    assert read_json(target / "config.json")["id2label"] == {"0": "no", "1": "yes", "2": "maybe"}


@pytest.mark.parametrize("ids", [("0", "1", "2"), ("1", "2", "3")])
def test_generic_names_are_given_with_a_warning(tmp_path: Path, run_here: Import, ids: tuple[str, ...]) -> None:
    source = make_tiny_head(tmp_path / "source")
    change_json(source / "config.json", id2label={i: f"LABEL_{i}" for i in ids}, label2id=None)
    spec, _ = run_here(source)
    assert spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert any("id2label" in warning for warning in spec.warnings)


def test_a_head_without_its_weights_is_no_task(tmp_path: Path, run_here: Import) -> None:
    from safetensors.torch import load_file, save_file

    source = make_tiny_head(tmp_path / "source", "roberta")
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "out_proj" not in name}
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    spec, _ = run_here(source)
    assert (spec.task, spec.labels) == ("embedding", ())
    assert "classifier.out_proj.weight" in spec.missing_weights
    assert any("was not trained" in warning for warning in spec.warnings)


def test_rampart_finds_personal_data_as_the_reference_does(run_here: Import) -> None:
    from tokenizers import Tokenizer

    source = offline_model_folders().get(RAMPART)
    if source is None:
        pytest.skip(f"{RAMPART} is not prepared: make venv")
    spec, target = run_here(source)
    assert (spec.task, spec.problem_type, spec.has_pooler, spec.warnings) == ("token-classification", None, False, ())
    assert (len(spec.labels), spec.labels[:2], spec.max_length) == (35, ("O", "B-GIVEN_NAME"), 512)
    encodings = Tokenizer.from_file(str(target / "tokenizer.json")).encode_batch(list(SENTENCES))
    rows = [encoding.ids for encoding in encodings]
    together = _device_logits(target, "token-classification", rows)
    np.testing.assert_allclose(together, _reference_logits(source, "token-classification", rows), rtol=0, atol=1e-4)
    alone = _device_logits(target, "token-classification", rows[:1])
    np.testing.assert_allclose(together[: len(rows[0])], alone, rtol=0, atol=1e-5 * float(np.abs(alone).max()))
    tags = set(zip(encodings[0].tokens, (spec.labels[i] for i in alone.argmax(axis=1)), strict=True))
    assert {("my", "O"), ("maria", "B-GIVEN_NAME"), ("lopez", "B-SURNAME"), ("@", "B-EMAIL")} <= tags
