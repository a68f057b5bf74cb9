"""What of an inference request can be refused without running the model: checked against the version's spec.

The api and the call route share these checks; texts are not tokenised here, so their length is the worker's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ondol.contract.errors import InvalidPayload, ModelCannot, ModelStoreError
from ondol.contract.jobs import InferenceOptions, Inputs
from ondol.contract.kinds import JobKind
from ondol.contract.model_spec import ModelSpec, PoolingMode
from ondol.contract.payloads import EmbeddingOptions, TokenClassificationOptions

SPECIAL_TOKENS = 2
MIN_PAIR_TOKENS = 6
_SPEC: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


def read_spec(stored: dict[str, Any], *, ref: str) -> ModelSpec:
    """The spec that a version record holds; ModelStoreError if it is none."""
    try:
        return _SPEC.validate_python(stored)
    except ValidationError as exc:
        raise ModelStoreError(f"the spec of {ref} is not readable: {exc.errors()[0]['msg']}") from exc


def check_inference(
    kind: JobKind,
    options: InferenceOptions,
    inputs: Inputs,
    spec: ModelSpec,
    *,
    prefix: str = "options",
    has_pairs: bool = False,
) -> None:
    """Return if the model can do this; ModelCannot or InvalidPayload naming the field if it cannot.

    `prefix` is the path under which the options stood in the request, empty where they stood at the top. `has_pairs`
    says whether there are text pairs where `inputs` is empty, as they stand in a file.
    """
    check_head(kind, spec)
    if isinstance(options, EmbeddingOptions):
        check_embedding(options, inputs, spec, prefix=prefix)
        return
    path = f"{prefix}." if prefix else ""
    _check_max_length(options.max_length, spec, path)
    if isinstance(options, TokenClassificationOptions):
        _check_stride(options, spec, path)
    elif (has_pairs or any(isinstance(item, dict) for item in inputs)) and spec.max_length < MIN_PAIR_TOKENS:
        raise ModelCannot(f"the model takes {spec.max_length} tokens, too few for a pair of texts", param="input")


def check_embedding(options: EmbeddingOptions, inputs: Inputs, spec: ModelSpec, *, prefix: str = "options") -> None:
    """Return if the model can do this; ModelCannot or InvalidPayload naming the field if it cannot.

    `prefix` is the path under which the options stood in the request, empty where they stood at the top.
    """
    path = f"{prefix}." if prefix else ""
    if options.pooling == PoolingMode.POOLER and not spec.has_pooler:
        raise ModelCannot(
            "the model has no trained pooler; it can pool by mean, cls, max or last",
            param=f"{path}pooling",
            code="model_has_no_pooler",
        )
    _check_layer(options, spec, f"{path}layer")
    _check_lengths(options, spec, path)
    _check_prompt(options, inputs, spec, path)
    if inputs and isinstance(inputs[0], list):
        _check_token_ids(inputs, spec.vocab_size)


def check_head(kind: JobKind, spec: ModelSpec) -> None:
    """Return if the version has the trained head that jobs of this kind need; an embedding needs none."""
    if kind is not JobKind.EMBEDDING and spec.task != kind:
        can = "embedding" if spec.task == JobKind.EMBEDDING else f"{spec.task} and embedding"
        raise ModelCannot(f"the model has no trained head for {kind}; it can do {can}", param="model")


def vector_width(options: EmbeddingOptions, spec: ModelSpec) -> int:
    """Length of the vectors before cutting: a named pooling or another layer leaves the model's modules out."""
    if options.pooling is None and options.layer in (-1, spec.num_layers):
        return spec.dimensions
    modes = spec.pooling.modes if options.pooling is None else (options.pooling,)
    return spec.hidden_size * len(modes)


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """How many tokens a text is likely to take, by the version's tokens a byte; `max_tokens` None: no bound."""

    tokens_per_byte: float
    max_tokens: int | None

    def of_text(self, num_bytes: int) -> int:
        """Tokens of one input (a text, or a pair of texts) of so many UTF-8 bytes."""
        estimate = int(num_bytes * self.tokens_per_byte) + SPECIAL_TOKENS
        return estimate if self.max_tokens is None else min(estimate, self.max_tokens)


def token_estimate(options: InferenceOptions, spec: ModelSpec) -> TokenEstimate:
    """How texts are estimated under these options; what goes in windows is not cut."""
    goes_in_windows = isinstance(options, EmbeddingOptions) and options.long_text == "window"
    if goes_in_windows or isinstance(options, TokenClassificationOptions):
        return TokenEstimate(spec.tokens_per_byte, None)
    return TokenEstimate(spec.tokens_per_byte, options.max_length or spec.max_length)


def estimate_tokens(inputs: Inputs, num_bytes: int, options: InferenceOptions, spec: ModelSpec) -> int:
    """Tokens that the inputs will take in all; token ids count themselves."""
    if inputs and isinstance(inputs[0], list):
        return sum(map(len, inputs))
    by_text = token_estimate(options, spec)
    estimate = int(num_bytes * by_text.tokens_per_byte) + SPECIAL_TOKENS * len(inputs)
    return estimate if by_text.max_tokens is None else min(estimate, len(inputs) * by_text.max_tokens)


def _check_layer(options: EmbeddingOptions, spec: ModelSpec, param: str) -> None:
    if options.pooling == PoolingMode.POOLER and options.layer not in (-1, spec.num_layers):
        raise InvalidPayload("the pooler belongs to the last layer", param=param)
    if not -(spec.num_layers + 1) <= options.layer <= spec.num_layers:
        raise InvalidPayload(
            f"the model has {spec.num_layers} layers; give {-(spec.num_layers + 1)} to {spec.num_layers}", param=param
        )


def _check_lengths(options: EmbeddingOptions, spec: ModelSpec, path: str) -> None:
    _check_max_length(options.max_length, spec, path)
    width = vector_width(options, spec)
    if options.dimensions is not None and options.dimensions > width:
        raise InvalidPayload(f"the vectors have {width} dimensions; ask for at most that", param=f"{path}dimensions")


def _check_max_length(max_length: int | None, spec: ModelSpec, path: str) -> None:
    if max_length is not None and max_length > spec.max_length:
        raise InvalidPayload(f"the model takes at most {spec.max_length} tokens", param=f"{path}max_length")


def _check_stride(options: TokenClassificationOptions, spec: ModelSpec, path: str) -> None:
    room = (options.max_length or spec.max_length) - SPECIAL_TOKENS
    if options.stride is not None and options.stride >= room:
        raise InvalidPayload(
            f"windows hold {room} tokens of the text; a stride of {options.stride} would not move them on",
            param=f"{path}stride",
        )


def _check_prompt(options: EmbeddingOptions, inputs: Inputs, spec: ModelSpec, path: str) -> None:
    if options.prompt_name is not None and options.prompt_name not in spec.prompts:
        names = ", ".join(sorted(spec.prompts)) or "none"
        raise InvalidPayload(
            f"the model has no prompt {options.prompt_name!r}; it has {names}", param=f"{path}prompt_name"
        )
    if not inputs or not isinstance(inputs[0], list):
        return
    for name in ("prompt", "prompt_name", "input_type"):
        if getattr(options, name) is not None:
            raise InvalidPayload("token ids are taken as they come; a prompt needs texts", param=f"{path}{name}")


def _check_token_ids(rows: Sequence[Any], vocab_size: int) -> None:
    for i, row in enumerate(rows):
        highest = max(row)
        if highest >= vocab_size:
            raise InvalidPayload(
                f"token id {highest} is outside the vocabulary of {vocab_size} tokens", param=f"input[{i}]"
            )
