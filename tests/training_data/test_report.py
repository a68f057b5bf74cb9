"""The report of a check: what will be trained, with every open option settled, and what its owner should look at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ondol.contract.errors import InvalidPayload, ModelStoreError
from tests.training_data.conftest import Load, MakePlan, csv_of, json_lines, message_of
from workers.training.data.dataset import load_dataset
from workers.training.data.resolving import resolve_steps
from workers.training.plan import dump_plan, parse_plan, parse_report, report_as_dict

pytestmark = pytest.mark.unit

TRAIN = ("train.csv", csv_of(*((f"one two {'three ' * (i % 10)}", "xy"[i % 2]) for i in range(40))))
DEV = ("dev.csv", csv_of(("only here", "x"), ("nor there", "y")))


def unlike(number: int) -> str:
    return csv_of(*((f"text {i} {'word ' * (i % 10)}", "xy"[i % 2]) for i in range(number)))


def test_everything_open_is_settled(load: Load) -> None:
    report = load(("train.csv", unlike(100))).report
    assert report_as_dict(report) == {
        "task": "text-classification",
        "problem_type": "single_label_classification",
        "labels": ["x", "y"],
        "columns": {"text": "text", "label": "label"},
        "num_train": 90,
        "num_validation": 10,
        "class_counts": {"train": {"x": 45, "y": 45}, "validation": {"x": 5, "y": 5}},
        "lengths": {"p50": 8, "p95": 13, "max": 13, "num_cut": 0},
        "max_length": 512,
        "metric": "f1_macro",
        "learning_rate": 2e-5,
        "steps_per_epoch": 6,
        "max_steps": 18,
        "warnings": [],
    }


def test_what_is_given_stands(load: Load) -> None:
    hyperparameters = {
        "learning_rate": 1e-4,
        "metric_for_best_model": "accuracy",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 0.5,
    }
    report = load(("train.csv", unlike(40)), DEV, hyperparameters=hyperparameters, max_length=5).report
    assert (report.num_train, report.num_validation) == (40, 2)
    assert (report.learning_rate, report.metric) == (1e-4, "accuracy")
    assert (report.steps_per_epoch, report.max_steps) == (5, 3)
    assert (report.max_length, report.lengths.num_cut) == (5, 32)
    assert report.warnings == ["32 of 42 rows (76.2 %) are cut to max_length 5 tokens"]


def test_defaults_follow_backbone_and_base(load: Load) -> None:
    report = load(TRAIN, backbone="frozen", base={"max_length": 64}).report
    assert (report.learning_rate, report.max_length) == (1e-3, 64)


def test_steps_are_counted_in_whole_batches(make_plan: MakePlan) -> None:
    options = make_plan(TRAIN, hyperparameters={"per_device_train_batch_size": 8, "max_steps": 7}).options
    assert resolve_steps(options, 33) == (5, 7)


def test_duplicates_across_files_and_contradictions_are_warned_about_by_row(load: Load) -> None:
    train = csv_of(("same", "x"), ("other", "y"), ("twice", "x"), ("twice", "y"), ("more", "x"))
    dev = csv_of(("same", "x"), ("other", "x"), ("new", "y"))
    warnings = load(("train.csv", train), ("dev.csv", dev)).report.warnings
    assert warnings == [
        "2 validation rows are also in training, which makes the metrics look better than they are: row 1 of train.csv "
        "= row 1 of dev.csv, row 2 of train.csv = row 2 of dev.csv",
        "2 texts have different labels in different rows, of which one must be wrong: row 3 of train.csv and row 4 of "
        "train.csv, row 2 of train.csv and row 2 of dev.csv",
    ]


def test_labels_without_validation_rows_and_no_validation_at_all_are_warned_about(load: Load) -> None:
    train = csv_of(("a", "x"), ("b", "y"), ("c", "z"))
    warnings = load(("train.csv", train), ("dev.csv", csv_of(("q", "x")))).report.warnings
    assert warnings == ["2 of 3 labels have no validation row: 'y', 'z'"]
    data = load(("train.csv", train), validation_split=0)
    assert (data.validation, data.report.num_validation) == ([], 0)
    assert "the last step is published" in data.report.warnings[0]


def test_tags_of_single_words_and_system_messages_are_warned_about(load: Load) -> None:
    words = json_lines({"tokens": ["a", "b"], "tags": ["NOUN", "VERB"]}, {"tokens": ["c"], "tags": ["NOUN"]})
    [warning, *_] = load(("train.jsonl", words), validation_split=0).report.warnings
    assert "tags 'NOUN', 'VERB' are not BIO" in warning
    chats = [
        {
            "messages": [
                {"role": "system", "content": "Rate it."},
                {"role": "user", "content": text},
                {"role": "assistant", "content": label},
            ]
        }
        for text, label in (("a", "x"), ("b", "y"))
    ]
    report = load(("chat.jsonl", json_lines(*chats)), validation_split=0).report
    assert "2 rows have a system message, which is not trained on" in report.warnings


def test_words_are_measured_as_a_text_with_spaces_between_them(load: Load) -> None:
    rows = json_lines({"tokens": ["a b", "c"], "tags": ["B-X", "O"]})
    report = load(("train.jsonl", rows), validation_split=0).report
    assert (report.lengths.max, report.metric, report.problem_type) == (5, "f1", None)


def test_a_plan_and_a_report_survive_the_file(make_plan: MakePlan) -> None:
    plan = make_plan(TRAIN, DEV)
    data = load_dataset(plan)
    assert parse_report(report_as_dict(data.report)) == data.report
    whole = replace(plan, report=data.report, cores=[0, 1], lineage={"base": "base:1"})
    assert parse_plan(dump_plan(whole)) == whole
    with pytest.raises(ModelStoreError, match=r"plan.json is not readable: attempt"):
        parse_plan(dump_plan(plan).replace(b'"attempt": 1', b'"attempt": "no"'))


def test_the_training_child_gets_the_same_data_and_the_report_of_the_check(make_plan: MakePlan) -> None:
    plan = make_plan(TRAIN)
    checked = load_dataset(plan)
    frozen = replace(checked.report, learning_rate=3e-5, max_steps=99)
    again = load_dataset(replace(plan, report=frozen))
    assert again.report is frozen
    assert (again.train, again.validation, again.labels) == (checked.train, checked.validation, checked.labels)


def test_data_that_changed_since_the_check_are_refused(make_plan: MakePlan) -> None:
    report = load_dataset(make_plan(TRAIN)).report
    changed = replace(make_plan(("train.csv", unlike(41))), report=report)
    with pytest.raises(InvalidPayload) as caught:
        load_dataset(changed)
    assert caught.value.code == "training_data_changed"
    assert "num_train, class_counts differ" in message_of(caught)
