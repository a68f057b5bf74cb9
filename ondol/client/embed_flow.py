"""The flow behind `embed`: a call for a few short texts, a durable job for more. N inputs, H hidden."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ondol.client.bulk_flow import BulkRequest, Ways, inputs_given, run_inputs
from ondol.client.errors import ItemError
from ondol.client.flow import Flow, Request, exchange_json, idempotent
from ondol.client.inputs import Input, Inputs
from ondol.client.job_flows import OnProgress, get_vectors
from ondol.client.records import JobFields
from ondol.client.retry import RetryPolicy
from ondol.client.vectors import Vectors, vectors_from_call
from ondol.contract.errors import InvalidPayload

# The route of calls ignores fields that it does not know; a job refuses them by name, so others go that way.
_CALL_OPTIONS = frozenset(
    {
        "dimensions",
        "dtype",
        "input_type",
        "layer",
        "long_text",
        "max_length",
        "normalize",
        "pooling",
        "prompt",
        "prompt_name",
        "truncate",
    }
)


@dataclass(frozen=True, slots=True)
class PartialVectors:
    """Float32 [N, H], NaN in the rows of the inputs that failed, and why they failed."""

    vectors: Vectors
    errors: Mapping[int, ItemError]


def embed_request(
    texts: str | Iterable[str],
    model: str,
    options: Mapping[str, Any],
    *,
    as_job: bool = False,
    priority: str | None = None,
) -> BulkRequest:
    """The checked request: InvalidPayload for what is no text, and for options whose vectors are no [N, H]."""
    inputs, given = check_texts(texts), rectangular_options(options)
    # Where inputs fail the vectors come item by item: base64 is a quarter of the size, and no number is parsed.
    return BulkRequest("embedding", inputs, model, _CALL_OPTIONS, given, as_job, priority, {"encoding": "base64"})


def check_texts(texts: str | Iterable[str]) -> Inputs:
    """The texts; InvalidPayload names the one that is none."""
    return inputs_given(Inputs([texts] if isinstance(texts, str) else texts, _text), to="do")


def rectangular_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given (None means: not given); InvalidPayload for one whose vectors are no [N, H]."""
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("pooling") == "none":
        raise InvalidPayload(
            "pooling 'none' gives one vector a token, which is no [N, H] array; use client.jobs.create and its result",
            param="options.pooling",
        )
    return given


def embed(request: BulkRequest, policy: RetryPolicy, on_progress: OnProgress | None = None) -> Flow[PartialVectors]:
    """Vectors in input order."""
    return run_inputs(request, Ways(_call, _collect), policy, on_progress)


def _call(request: BulkRequest, policy: RetryPolicy) -> Flow[PartialVectors]:
    body: dict[str, Any] = {
        "truncate": "right",  # the route's own default refuses long texts; the SDK promises to cut them
        **request.options,
        "input": list(request.inputs.held),
        "model": request.model,
        "encoding_format": "base64",
    }
    send = Request("POST", "/v1/embeddings", body=body, headers=idempotent())
    answer = yield from exchange_json(send, policy)
    return PartialVectors(vectors_from_call(answer, num_inputs=len(request.inputs.held)), {})


def _collect(job: JobFields, policy: RetryPolicy) -> Flow[PartialVectors]:
    return PartialVectors(*(yield from get_vectors(job.id, policy)))


def _text(item: object, index: int) -> Input:
    if not isinstance(item, str):
        raise InvalidPayload(f"a text is expected, not {type(item).__name__}", param=f"input[{index}]")
    return item
