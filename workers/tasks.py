"""The one way from a job's attempt or a call to its task, whatever its kind."""

from __future__ import annotations

import time
from typing import cast

from ondol.contract.errors import InvalidPayload
from ondol.contract.inference_checks import check_head
from ondol.contract.jobs import INFERENCE_OPTIONS, InferenceOptions, Inputs, Pair, validated
from ondol.contract.payloads import EmbeddingOptions, TextClassificationOptions
from workers.classification import TextClassificationTask
from workers.embedding import EmbeddingTask
from workers.inference_task import InferenceTask, TaskRequest
from workers.model_library import ModelLibrary, ServedVersion
from workers.rows import DeviceModel
from workers.token_classification import TokenClassificationTask


def prepare(library: ModelLibrary, request: TaskRequest) -> InferenceTask:
    """Tokenise the inputs and make their rows; blocks while the model is brought here and loaded.

    InvalidPayload for a kind that has no rows or options that are wrong, ModelCannot where the head is missing.
    """
    wanted_at = time.monotonic()
    if request.kind not in INFERENCE_OPTIONS:
        raise InvalidPayload(f"{request.kind} is not run on the device here", param="kind")
    options = validated(INFERENCE_OPTIONS[request.kind], request.options, prefix="options")
    version = library.version(request.version_id)
    check_head(request.kind, version.spec)
    model = library.device_model(version, options.dtype)
    started_at = time.monotonic()
    task = task_of(version, model, options, request.inputs)
    task.begin(request, load_s=started_at - wanted_at, tokenize_s=time.monotonic() - started_at)
    return task


def task_of(version: ServedVersion, model: DeviceModel, options: InferenceOptions, inputs: Inputs) -> InferenceTask:
    """The inputs tokenised by what `options` are of; its rows are made by `begin`."""
    if isinstance(options, EmbeddingOptions):
        return EmbeddingTask(version, model, options, inputs)
    if isinstance(options, TextClassificationOptions):
        return TextClassificationTask(version, model, options, cast(list[str | Pair], inputs))
    return TokenClassificationTask(version, model, options, cast(list[str], inputs))
