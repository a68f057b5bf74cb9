"""Hugging Face's inference shapes on the wire: `{"inputs", "parameters"}` in, the task's lists out.

Beside Hugging Face's own parameters ours of the same kind are taken; fields that nobody knows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from api.errors import error_response, status_of
from api.inference_call import Inferred, check_num_inputs
from api.label_scores import LabelView
from api.stored_items import encode
from ondol.contract.errors import InvalidPayload, ModelCannot, OndolError
from ondol.contract.inference_checks import check_inference
from ondol.contract.jobs import INFERENCE_OPTIONS, InferenceOptions, InputLimits, Inputs, parse_inputs, validated
from ondol.contract.kinds import JobKind
from ondol.contract.model_spec import ModelSpec

TASKS = {
    "feature-extraction": JobKind.EMBEDDING,
    "text-classification": JobKind.TEXT_CLASSIFICATION,
    "token-classification": JobKind.TOKEN_CLASSIFICATION,
}
"""Hugging Face's names of what is answered here."""

_CUTTING = ("truncate", "truncation", "truncation_direction")
_NOT_TAKEN = frozenset({"encoding", "truncate"})
"""Options of ours that the shape has no place for, or that have a meaning of Hugging Face's beside ours."""


@dataclass(frozen=True, slots=True)
class HuggingFaceCall:
    """A checked call, complete but for the model's own defaults. `prefix`: where its parameters stood."""

    kind: JobKind
    inputs: Inputs
    is_one: bool
    num_bytes: int
    given_options: dict[str, Any]
    prefix: str

    def options_for(self, spec: ModelSpec) -> InferenceOptions:
        """The options with the version's defaults. As in a pipeline, texts that are too long are cut only if asked."""
        given = dict(self.given_options)
        if self.kind is not JobKind.TOKEN_CLASSIFICATION:
            given = {"truncate": spec.truncate or "error"} | given
        options = validated(INFERENCE_OPTIONS[self.kind], given, prefix=self.prefix)
        check_inference(self.kind, options, self.inputs, spec, prefix=self.prefix)
        return options


def kind_of(task: str | None, spec: ModelSpec) -> JobKind:
    """What a task's name means, by default the version's own; InvalidPayload for one that is not answered here."""
    if task is not None and task not in TASKS:
        raise InvalidPayload(f"{task[:80]!r} is not answered here; there are {', '.join(TASKS)}", param="task")
    kind = TASKS[task] if task is not None else next((kind for kind in TASKS.values() if kind == spec.task), None)
    if kind is None:
        raise ModelCannot(f"the model's own task, {spec.task}, is not answered here; name another", param="model")
    return kind


def parse_call(body: Any, kind: JobKind, limits: InputLimits) -> HuggingFaceCall:
    """The call that `body` states; ContractError naming the field."""
    if not isinstance(body, dict):
        raise InvalidPayload("the body must be a JSON object with inputs and, if you like, parameters")
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidPayload("parameters must be an object", param="parameters")
    prefix = "parameters"
    given: dict[str, Any] = parameters or {}
    if kind is JobKind.EMBEDDING:  # whose parameters Hugging Face's client puts beside `inputs`
        prefix = "parameters" if parameters else ""
        given = {name: value for name, value in body.items() if name not in ("inputs", "parameters")} | given
    value = body.get("inputs")
    check_num_inputs(value, param="inputs")
    inputs, num_bytes = parse_inputs(value, limits, param="inputs", kind=kind)
    return HuggingFaceCall(
        kind=kind,
        inputs=inputs,
        is_one=not isinstance(value, list),
        num_bytes=num_bytes,
        given_options=_options(kind, given, prefix),
        prefix=prefix,
    )


def answer_json(call: HuggingFaceCall, done: Inferred) -> bytes:
    """The task's answer: vectors [N, H]; a list of labels an input; entities, one list an input where several came."""
    if call.kind is JobKind.EMBEDDING:
        return encode(list(done.vectors))
    if call.kind is JobKind.TEXT_CLASSIFICATION:
        assert isinstance(done.vectors, np.ndarray), "scores are one array [N, C]"
        return encode(LabelView.of(done.about).show(done.vectors))
    assert done.outputs is not None, "a token classification answers with outputs"
    return encode(done.outputs[0] if call.is_one else done.outputs)


def refusal(error: OndolError) -> Response:
    """The refusal in Hugging Face's shape: `error` is a sentence; `error_type` and `param` are for programs."""
    response = error_response(error)
    param = _param_of(error)
    message = error.message if not param or param in error.message else f"{param}: {error.message}"
    body = orjson.dumps({"error": message, "error_type": error.code, "param": param})
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Response(body, status_of(error), headers)


def _options(kind: JobKind, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    known = INFERENCE_OPTIONS[kind].model_fields.keys() - _NOT_TAKEN
    options = {name: given[name] for name in known if given.get(name) is not None}
    if kind is not JobKind.TOKEN_CLASSIFICATION:
        options |= _truncation({name: given[name] for name in _CUTTING if given.get(name) is not None}, prefix)
    return options


def _truncation(given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`truncate`, or `truncation` as the pipelines name it: true, false, or one of our words for a direction."""
    path = f"{prefix}." if prefix else ""
    direction = str(given.get("truncation_direction", "right")).lower()
    if direction not in ("left", "right"):
        raise InvalidPayload("truncation_direction must be left or right", param=f"{path}truncation_direction")
    wanted = given.get("truncate", given.get("truncation"))
    if wanted is None:
        return {}
    if isinstance(wanted, bool):
        return {"truncate": direction if wanted else "error"}
    if wanted not in ("left", "right", "error"):
        name = "truncate" if "truncate" in given else "truncation"
        raise InvalidPayload(f"{name} must be true or false", param=f"{path}{name}")
    return {"truncate": wanted}


def _param_of(error: OndolError) -> str | None:
    """The field at fault as this shape names it."""
    if error.param is not None and error.param.partition("[")[0] == "input":
        return error.param.replace("input", "inputs", 1)
    return error.param
