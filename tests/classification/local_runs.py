"""The worker's side of a task without a worker: rows run through transformers, each alone, in this process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ondol.contract.jobs import InferenceOptions, Inputs
from ondol.contract.kinds import JobKind
from ondol.contract.model_spec import SPEC_FILE, parse_model_spec
from ondol.contract.states import Priority
from ondol.sql.records import VersionRecord
from workers.file_pins import FilePin
from workers.inference_task import Answer, InferenceTask, TaskRequest
from workers.model_library import ServedVersion
from workers.rows import DeviceModel, FloatArray, Row
from workers.tasks import task_of


def begun(folder: Path, options: InferenceOptions, inputs: Inputs) -> InferenceTask:
    """The task of these inputs, whose rows wait to be run."""
    version = _version(folder)
    model = DeviceModel(f"{folder.name}:float32", version.record.ref, str(folder), "float32")
    task = task_of(version, model, options, inputs)
    request = TaskRequest("job_1", JobKind(version.spec.task), "ver_1", {}, inputs, Priority.NORMAL)
    task.begin(request, load_s=0.0, tokenize_s=0.0)
    return task


def answered(folder: Path, options: InferenceOptions, inputs: Inputs) -> Answer:
    """What the worker answers, given the model's own logits."""
    task = begun(folder, options, inputs)
    for row in task.work.rows:
        task.work.settle(row, logits_of(folder, row), None)
    return task.answer()


def logits_of(folder: Path, row: Row) -> FloatArray:
    """What the device answers for a row: [C], or [T, C] of a tagger."""
    import torch

    inputs: dict[str, Any] = {"input_ids": torch.as_tensor(row.ids[None].astype(np.int64))}
    if row.type_ids is not None:
        inputs["token_type_ids"] = torch.as_tensor(row.type_ids[None].astype(np.int64))
    with torch.inference_mode(), _one_thread():
        found: FloatArray = pipeline_of(folder).model(**inputs).logits[0].numpy()
    return found


def hugging_face(folder: Path, inputs: Any, **options: Any) -> Any:
    """What the live pipeline answers."""
    with _one_thread(), warnings.catch_warnings():
        # Its own words on tokenizers that do not mark the inside of words; we are held to what it answers there too.
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        return pipeline_of(folder)(inputs, **options)


@cache
def pipeline_of(folder: Path) -> Any:
    """The live Hugging Face pipeline of the folder."""
    import transformers

    make: Any = transformers.pipeline
    task = parse_model_spec((folder / SPEC_FILE).read_bytes(), ref=folder.name).task
    return make(task, model=str(folder), tokenizer=str(folder), device="cpu")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tiny matrices are slower on several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version(folder: Path) -> ServedVersion:
    spec = parse_model_spec((folder / SPEC_FILE).read_bytes(), ref=folder.name)
    record = VersionRecord(
        id="ver_1",
        model_id="mod_1",
        project_id="prj_1",
        name=folder.name,
        number=1,
        task=spec.task,
        manifest_digest=folder.name,
        size_bytes=0,
        spec={},
        aliases=(),
        job_id=None,
        lineage={},
        created_at=0.0,
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return ServedVersion(record, spec, folder, tokenizer, FilePin(folder.name))
