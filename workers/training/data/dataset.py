"""The data of a plan, ready to train from: read, checked, split, labelled by id, and reported on.

The same plan and files give the same data set in every process, so that the training child reads what was checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ondol.contract.errors import InvalidPayload, ModelStoreError
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, parse_model_spec
from workers.training.data.duplicates import Part, duplicate_warnings
from workers.training.data.examples import (
    REGRESSION,
    TEXT_TASK,
    TOKEN_TASK,
    Dataset,
    Examples,
    TextExample,
    TextRows,
    TokenExample,
    TokenRows,
)
from workers.training.data.labels import check_known, count_labels, label_names, label_warnings
from workers.training.data.lengths import measure, read_tokenizer, resolve_max_length
from workers.training.data.problems import file_error, listed
from workers.training.data.reading import read_examples
from workers.training.data.resolving import (
    DEFAULT_SHARE,
    check_options,
    resolve_learning_rate,
    resolve_metric,
    resolve_steps,
)
from workers.training.data.split import hold_out
from workers.training.plan import ClassCounts, TokenLengths, TrainPlan, TrainReport

_FROZEN_FIELDS = ("task", "problem_type", "labels", "columns", "num_train", "num_validation", "class_counts")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is trained on and what is validated with; `files` are the files that were read, each once."""

    train: Part
    validation: Part
    labels: list[str]
    files: list[Examples]

    @property
    def task(self) -> str:
        return TEXT_TASK if isinstance(self.train.rows, TextRows) else TOKEN_TASK

    @property
    def problem_type(self) -> str | None:
        return self.train.rows.problem_type if isinstance(self.train.rows, TextRows) else None

    @property
    def trained(self) -> str:
        """The key of the metrics' table."""
        return self.problem_type or self.task


def load_dataset(plan: TrainPlan) -> Dataset:
    """Read the files of `plan`, and report on them; InvalidPayload says what is wrong and what to do.

    With a report in the plan (the training child has one) that report holds: it is returned as it is, and the data must
    be what it says (`training_data_changed` otherwise).
    """
    spec = _read_spec(plan.base.path, plan.base.ref)
    parts = _read_parts(plan, spec)
    counts = ClassCounts(
        *(count_labels(part.rows, part.indices, parts.labels) for part in (parts.train, parts.validation))
    )
    if plan.report is None:
        report = _report(plan, parts, counts, spec)
    else:
        report = plan.report
        _check_unchanged(report, parts, counts)
    return Dataset(
        task=parts.task,
        problem_type=parts.problem_type,
        labels=parts.labels,
        train=_encode(parts.train, parts.labels),
        validation=_encode(parts.validation, parts.labels),
        report=report,
    )


def _read_spec(folder: Path, ref: str) -> ModelSpec:
    try:
        data = (folder / SPEC_FILE).read_bytes()
    except OSError as exc:
        raise ModelStoreError(f"{SPEC_FILE} of {ref} is not readable: {exc.strerror}") from exc
    return parse_model_spec(data, ref=ref)


def _read_parts(plan: TrainPlan, spec: ModelSpec) -> _Parts:
    file = plan.files.train
    train = read_examples(file.path, filename=file.filename, options=plan.options)
    labels = label_names(train, spec.labels)
    if plan.files.validation is None:
        held_out = _hold_out(train, plan)
        taken = set(held_out)
        kept = [index for index in range(len(train)) if index not in taken] if taken else range(len(train))
        return _Parts(Part(train, kept), Part(train, held_out), labels, [train])
    validation = _read_validation(plan, train)
    if not _is_regression(train):
        check_known(validation, labels, train_filename=file.filename)
    return _Parts(Part(train, range(len(train))), Part(validation, range(len(validation))), labels, [train, validation])


def _read_validation(plan: TrainPlan, train: Examples) -> Examples:
    file = plan.files.validation
    assert file is not None
    is_text = isinstance(train, TextRows)
    validation = read_examples(
        file.path,
        filename=file.filename,
        options=plan.options,
        task=TEXT_TASK if is_text else TOKEN_TASK,
        problem_type=train.problem_type if isinstance(train, TextRows) else None,
        param="options.validation_file",
    )
    if ("text_pair" in train.columns) != ("text_pair" in validation.columns):
        has, lacks = (train, validation) if "text_pair" in train.columns else (validation, train)
        message = f"has no text_pair, but {has.source.filename} has one; give both files the same columns"
        raise file_error(lacks.source, message)
    return validation


def _hold_out(rows: Examples, plan: TrainPlan) -> list[int]:
    share = plan.options.validation_split
    share = DEFAULT_SHARE if share is None else share
    label_sets: Sequence[tuple[str, ...]] = [()] * len(rows) if _is_regression(rows) else rows.label_sets()
    held_out = hold_out(label_sets, share=share, seed=plan.options.seed)
    if share > 0 and not held_out:
        message = (
            f"has too few rows ({len(rows):,}) to hold any out: each class must keep one for training. Add rows, give "
            "a validation_file, or set validation_split to 0"
        )
        raise file_error(rows.source, message)
    return held_out


def _report(plan: TrainPlan, parts: _Parts, counts: ClassCounts, spec: ModelSpec) -> TrainReport:
    options, rows = plan.options, parts.train.rows
    num_train, num_validation = len(parts.train.indices), len(parts.validation.indices)
    check_options(options, parts.trained, parts.labels, num_validation=num_validation)
    metric = resolve_metric(options, parts.trained)
    tokenizer = read_tokenizer(plan.base.path)
    max_length = resolve_max_length(options.max_length, spec, tokenizer, has_pairs="text_pair" in rows.columns)
    lengths = measure(parts.files, tokenizer, max_length)
    steps_per_epoch, max_steps = resolve_steps(options, num_train)
    return TrainReport(
        task=parts.task,
        problem_type=parts.problem_type,
        labels=parts.labels,
        columns=rows.columns,
        num_train=num_train,
        num_validation=num_validation,
        class_counts=counts,
        lengths=lengths,
        max_length=max_length,
        metric=metric,
        learning_rate=resolve_learning_rate(options),
        steps_per_epoch=steps_per_epoch,
        max_steps=max_steps,
        warnings=[
            *label_warnings(rows, parts.labels),
            *_count_warnings(parts, counts),
            *_chat_warnings(parts),
            *duplicate_warnings(parts.train, parts.validation),
            *_length_warnings(lengths, max_length, sum(len(file) for file in parts.files)),
        ],
    )


def _check_unchanged(report: TrainReport, parts: _Parts, counts: ClassCounts) -> None:
    found = {
        "task": parts.task,
        "problem_type": parts.problem_type,
        "labels": parts.labels,
        "columns": parts.train.rows.columns,
        "num_train": len(parts.train.indices),
        "num_validation": len(parts.validation.indices),
        "class_counts": counts,
    }
    changed = [name for name in _FROZEN_FIELDS if getattr(report, name) != found[name]]
    if changed:
        message = f"the training data are not what was checked ({', '.join(changed)} differ); submit a new job"
        raise InvalidPayload(message, param=parts.train.rows.source.param, code="training_data_changed")


def _encode(part: Part, labels: list[str]) -> list[TextExample] | list[TokenExample]:
    ids = {name: i for i, name in enumerate(labels)}
    if isinstance(part.rows, TokenRows):
        return [_token_example(part.rows, index, ids) for index in part.indices]
    return [_text_example(part.rows, index, ids) for index in part.indices]


def _text_example(rows: TextRows, index: int, ids: dict[str, int]) -> TextExample:
    pair = rows.pairs[index] if rows.pairs is not None else None
    if rows.problem_type == REGRESSION:
        return TextExample(rows.texts[index], pair, rows.scores[index])
    found = sorted(ids[name] for name in rows.labels[index])
    return TextExample(rows.texts[index], pair, found if rows.is_multi_label else found[0])


def _token_example(rows: TokenRows, index: int, ids: dict[str, int]) -> TokenExample:
    tags = [ids[tag] for tag in rows.tags[index]]
    if rows.has_entities:
        return TokenExample(rows.tokens[index], tags, rows.texts[index], rows.spans[index])
    return TokenExample(rows.tokens[index], tags)


def _is_regression(rows: Examples) -> bool:
    return isinstance(rows, TextRows) and rows.problem_type == REGRESSION


def _count_warnings(parts: _Parts, counts: ClassCounts) -> list[str]:
    if not parts.validation.indices:
        return ["there are no validation rows: no metric is computed, and the last step is published"]
    unseen = [name for name, number in counts.validation.items() if not number and counts.train[name]]
    if not unseen:
        return []
    return [f"{len(unseen):,} of {len(parts.labels):,} labels have no validation row: {listed(unseen)}"]


def _chat_warnings(parts: _Parts) -> list[str]:
    number = sum(file.num_system_messages for file in parts.files if isinstance(file, TextRows))
    return [f"{number:,} rows have a system message, which is not trained on"] if number else []


def _length_warnings(lengths: TokenLengths, max_length: int, num_rows: int) -> list[str]:
    if not lengths.num_cut:
        return []
    share = 100 * lengths.num_cut / num_rows
    return [f"{lengths.num_cut:,} of {num_rows:,} rows ({share:.1f} %) are cut to max_length {max_length:,} tokens"]
