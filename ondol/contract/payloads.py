"""What may be asked: requests as pydantic models. Unknown fields are refused; NaN and infinity are no numbers here."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator

from ondol.contract.kinds import JobKind
from ondol.contract.model_ref import NAME_PATTERN
from ondol.contract.model_spec import PoolingMode
from ondol.contract.states import Priority

MAX_METADATA_BYTES = 16_384
MAX_DEPTH = 64
"""Lists and objects within each other in a free-form field; some JSON encoders end at 254, with what stands around."""
_INTEGERS = range(-(2**63), 2**64)
"""What every JSON encoder writes."""

TokenIds = Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], Field(min_length=1)]
Text = Annotated[StrictStr, Field(min_length=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Truncate = Literal["right", "left", "error"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class EmbeddingOptions(_Strict):
    """Options of an embedding; the defaults are the model's own where they say None."""

    pooling: PoolingMode | None = None
    layer: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = -1
    normalize: bool = True
    dimensions: Annotated[int, Field(strict=True, ge=1, le=65_536)] | None = None
    prompt: Annotated[str, Field(max_length=10_000)] | None = None
    prompt_name: Annotated[str, Field(max_length=128)] | None = None
    input_type: Literal["query", "document"] | None = None
    max_length: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    truncate: Truncate = "right"
    long_text: Literal["truncate", "window"] = "truncate"
    encoding: Literal["float", "base64"] = "float"
    dtype: Dtype = "auto"

    @model_validator(mode="after")
    def _one_prompt(self) -> EmbeddingOptions:
        given = [name for name in ("prompt", "prompt_name", "input_type") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        return self


class TextClassificationOptions(_Strict):
    """Options of a text classification; the defaults are those of the Hugging Face pipeline."""

    top_k: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    max_length: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    truncate: Truncate = "right"
    dtype: Dtype = "auto"


class TokenClassificationOptions(_Strict):
    """Options of a token classification. Texts are never cut: longer ones go in windows that overlap by `stride`."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    stride: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] | None = None
    """Tokens that neighbouring windows share; None: a quarter of the window."""
    ignore_labels: tuple[Annotated[str, Field(max_length=256)], ...] = ("O",)
    offset_unit: Literal["codepoint", "utf16"] = "codepoint"
    max_length: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    dtype: Dtype = "auto"


class TextPair(_Strict):
    """Two texts that go through the model together, as the Hugging Face pipeline takes them."""

    text: Text
    text_pair: Text


class ImportOptions(_Strict):
    """Options of an import: the name the model gets."""

    name: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
    convert_bin: bool = False


class ImportInput(_Strict):
    """Where the files are: a folder on the server, which only an administrator may name."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]


class InputColumns(_Strict):
    """Which columns of an input file hold what; without `id` the column `id` is taken if there is one."""

    text: Annotated[str, Field(min_length=1, max_length=256)] = "text"
    text_pair: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class JobRequest(_Strict):
    """`POST /v1/jobs`: one job of any kind; `input` and `options` are checked by kind in `parse_job`.

    `input` and `input_file` exclude each other. Priority by default: normal, and bulk with an `input_file`.
    """

    kind: JobKind
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    input: Any = None
    input_file: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    input_columns: InputColumns | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    priority: Priority | None = None
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    not_before: Annotated[float, Field(ge=0, le=1e11)] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    webhook: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """URL that is told, by a signed POST, how the job ended."""

    @field_validator("options", "metadata")
    @classmethod
    def _whole_characters(cls, value: dict[str, Any]) -> dict[str, Any]:
        """What no JSON encoder would write again is refused here: it would spoil every list that shows the job."""
        _check_plain(value, 1)
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as exc:
            raise ValueError("a text in it has a lone surrogate, which is no character") from exc
        return value

    @field_validator("metadata")
    @classmethod
    def _small_metadata(cls, value: dict[str, Any]) -> dict[str, Any]:
        size_bytes = len(json.dumps(value))
        if size_bytes > MAX_METADATA_BYTES:
            raise ValueError(f"metadata has {size_bytes} bytes; at most {MAX_METADATA_BYTES} are kept")
        return value


class JobBatchRequest(_Strict):
    """`POST /v1/jobs/batch`: up to 1,000 jobs, each with an outcome of its own."""

    jobs: Annotated[list[Any], Field(min_length=1, max_length=1000)]


def _check_plain(value: Any, depth: int) -> None:
    """Return if `value`, at this depth, is JSON that every encoder writes; else ValueError."""
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise ValueError(f"it must be plain JSON, not nested deeper than {MAX_DEPTH}")
        for name in value if isinstance(value, dict) else ():
            if not isinstance(name, str):
                raise ValueError("it must be plain JSON: names are texts")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_plain(inner, depth + 1)
    elif isinstance(value, bool | str) or value is None:
        return
    elif isinstance(value, int):
        if value not in _INTEGERS:
            raise ValueError("an integer in it has over 64 bits; write it as a text")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise ValueError("it must be plain JSON, without NaN or infinity")
