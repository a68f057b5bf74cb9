"""`/v1/embeddings` on the wire: OpenAI's request with our extra fields, and OpenAI's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from api.inference_call import check_num_inputs
from api.stored_items import encode
from api.vectors import Array, to_base64
from ondol.contract.errors import InvalidPayload
from ondol.contract.inference_checks import check_embedding
from ondol.contract.jobs import InputLimits, Inputs, parse_inputs, validated
from ondol.contract.model_spec import ModelSpec
from ondol.contract.payloads import EmbeddingOptions
from ondol.contract.states import Priority

MAX_MODEL_CHARS = 256
OPTION_FIELDS = frozenset(EmbeddingOptions.model_fields) - {"encoding"}


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """A checked call, complete but for the model's own defaults."""

    model: str
    inputs: Inputs
    num_bytes: int
    given_options: dict[str, Any]
    encoding: str
    priority: Priority
    is_stored: bool

    def options_for(self, spec: ModelSpec) -> EmbeddingOptions:
        """The options with the version's defaults: calls refuse long texts unless the version says otherwise."""
        given = {"truncate": spec.truncate or "error", **self.given_options, "encoding": self.encoding}
        options = validated(EmbeddingOptions, given)
        check_embedding(options, self.inputs, spec, prefix="")
        return options


def parse_call(body: Any, limits: InputLimits) -> EmbeddingCall:
    """The call that `body` states; ContractError naming the field. Fields that nobody knows are ignored."""
    if not isinstance(body, dict):
        raise InvalidPayload("the body must be a JSON object with model and input")
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARS:
        raise InvalidPayload("model must be the name of a model, for example all-minilm-l6-v2", param="model")
    value = body.get("input")
    check_num_inputs(value, param="input")
    inputs, num_bytes = parse_inputs(value, limits, param="input")
    return EmbeddingCall(
        model=model,
        inputs=inputs,
        num_bytes=num_bytes,
        given_options={name: body[name] for name in OPTION_FIELDS & body.keys() if body[name] is not None},
        encoding=_one_of(body, "encoding_format", ("float", "base64")),
        priority=Priority(_one_of(body, "priority", tuple(Priority))),
        is_stored=_flag(body, "store"),
    )


def answer_json(vectors: Array | Sequence[Array], *, encoding: str, model: str, num_tokens: int) -> bytes:
    """OpenAI's answer for float32 [N, H], or one [T_i, H] an input; these have their `shape` beside the base64."""
    as_base64 = encoding == "base64"
    if not as_base64 and isinstance(vectors, np.ndarray):
        vectors = np.ascontiguousarray(vectors)
    data = [_item(i, vector, as_base64=as_base64) for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    document = {"object": "list", "data": data, "model": model, "usage": usage}
    return orjson.dumps(document) if as_base64 else encode(document)


def _item(index: int, vector: Array, *, as_base64: bool) -> dict[str, Any]:
    if not as_base64:
        return {"object": "embedding", "index": index, "embedding": vector}
    item: dict[str, Any] = {"object": "embedding", "index": index, "embedding": to_base64(vector)}
    if vector.ndim > 1:
        item["shape"] = list(vector.shape)
    return item


def _one_of(body: dict[str, Any], name: str, allowed: Sequence[str]) -> str:
    value = body.get(name)
    if value is None:
        return allowed[0]
    if not isinstance(value, str) or value not in allowed:
        raise InvalidPayload(f"{name} must be one of {', '.join(allowed)}", param=name)
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidPayload(f"{name} must be true or false", param=name)
    return bool(value)
