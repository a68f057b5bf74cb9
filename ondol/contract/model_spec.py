"""What a worker must know of a model version to serve it: the file `ondol.json` beside the weights.

Written once at import or publish by the side that may import transformers; read by workers that may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from ondol.contract.errors import ModelStoreError

SPEC_FILE = "ondol.json"


class PoolingMode(StrEnum):
    """How token vectors [T, H] become one vector; concatenations are lists of modes."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST = "last"
    POOLER = "pooler"
    MEAN_SQRT_LEN = "mean_sqrt_len"
    WEIGHTED_MEAN = "weightedmean"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """The model's own pooling: modes concatenated in order; whether prompt tokens count."""

    modes: tuple[PoolingMode, ...] = (PoolingMode.MEAN,)
    include_prompt: bool = True


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A sentence-transformers module behind the pooling: dense, layer_norm or normalize.

    `path` is the folder of its `model.safetensors` (names as sentence-transformers writes them: `linear.weight`,
    `norm.weight`); `activation` is one of the names in `workers.device.modules.ACTIVATIONS`.
    """

    type: str
    path: str = ""
    in_features: int = 0
    out_features: int = 0
    has_bias: bool = True
    activation: str = "identity"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a version that serving needs besides weights and tokenizer."""

    architecture: str
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    num_parameters: int
    max_length: int
    """Effective maximum in tokens, special tokens counted."""
    max_positions: int
    dimensions: int
    """Length of the vectors that the model's own pooling and modules give."""
    task: str = "embedding"
    format: int = 1
    pooling: PoolingSpec = PoolingSpec()
    modules: tuple[ModuleSpec, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    query_prompt_name: str | None = None
    """Prompt that `input_type: query` picks; likewise `document_prompt_name`."""
    document_prompt_name: str | None = None
    has_pooler: bool = False
    missing_weights: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    threshold: float | None = None
    """Score from which a label counts as predicted; None: 0.5."""
    type_vocab_size: int = 0
    position_offset: int = 0
    """First position id of a text: 0, or padding id + 1 for the roberta family."""
    pad_token_id: int = 0
    sliding_window: int | None = None
    truncate: str | None = None
    """The direction in which calls may cut texts; None: calls refuse texts that are too long."""
    tokens_per_byte: float = 0.4
    """Estimated tokens a UTF-8 byte, from built-in sentences, for admission before tokenising."""
    weights_dtype: str = "float32"
    warnings: tuple[str, ...] = ()


_ADAPTER: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


def dump_model_spec(spec: ModelSpec) -> bytes:
    """`spec` as the bytes of `ondol.json`."""
    return _ADAPTER.dump_json(spec, indent=1)


def parse_model_spec(data: bytes, *, ref: str) -> ModelSpec:
    """The spec in `data`; ModelStoreError when it is not one."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as exc:
        raise ModelStoreError(f"{SPEC_FILE} of {ref} is not readable: {exc.errors()[0]['msg']}") from exc
