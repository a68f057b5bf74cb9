"""Data files written by the tests, and a base of which only tokenizer and spec exist: the data need no weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ondol.contract.errors import InvalidPayload
from ondol.contract.fine_tune import FineTuneOptions
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, dump_model_spec
from workers.training.data.dataset import load_dataset
from workers.training.data.examples import Dataset, Examples
from workers.training.data.reading import read_examples
from workers.training.plan import BaseVersion, DataFile, DataFiles, TrainPlan

FILE_ID = "file_" + "0" * 26
MAX_LENGTH = 1_024

Write = Callable[[str, str | bytes], Path]
Read = Callable[..., Examples]
MakePlan = Callable[..., TrainPlan]
Load = Callable[..., Dataset]


def options_of(**changes: Any) -> FineTuneOptions:
    return FineTuneOptions.model_validate({"output_name": "sentiment", "train_file": FILE_ID} | changes)


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_of(*rows: tuple[str, str], header: str = "text,label") -> str:
    return "".join(f"{line}\n" for line in (header, *(",".join(row) for row in rows)))


def message_of(caught: pytest.ExceptionInfo[InvalidPayload]) -> str:
    return caught.value.message


def write_base(folder: Path, **spec: Any) -> Path:
    """One token a word or punctuation mark, two special tokens a text and three a pair."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_layers": 1,
        "vocab_size": 3,
        "num_parameters": 1,
        "max_positions": MAX_LENGTH,
    }
    named = {"architecture": "BertModel", "model_type": "bert", "max_length": MAX_LENGTH, "dimensions": 8}
    (folder / SPEC_FILE).write_bytes(dump_model_spec(ModelSpec(**(sizes | named | spec))))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture
def read(write: Write) -> Read:
    """Write a file and read it, with options by name."""

    def read_file(name: str, content: str | bytes, **options: Any) -> Examples:
        return read_examples(write(name, content), filename=name, options=options_of(**options))

    return read_file


@pytest.fixture
def make_plan(write: Write, tmp_path: Path) -> MakePlan:
    """A plan over files written here; `base` are fields of the base's spec."""

    def make(
        train: tuple[str, str | bytes],
        validation: tuple[str, str | bytes] | None = None,
        *,
        base: dict[str, Any] | None = None,
        **options: Any,
    ) -> TrainPlan:
        base_folder = tmp_path / "base"
        if not base_folder.exists():
            write_base(base_folder, **(base or {}))
        files = DataFiles(DataFile(write(*train), train[0]))
        if validation is not None:
            options["validation_file"] = FILE_ID
            files = DataFiles(files.train, DataFile(write(*validation), validation[0]))
        return TrainPlan("job_1", 1, BaseVersion("base:1", base_folder), files, options_of(**options), tmp_path)

    return make


@pytest.fixture
def load(make_plan: MakePlan) -> Load:
    """The data set of files written here."""

    def load_files(*files: Any, **options: Any) -> Dataset:
        return load_dataset(make_plan(*files, **options))

    return load_files
