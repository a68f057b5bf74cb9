"""The flow behind `embed`: a call for a few short texts, durable jobs for more. N inputs, H hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondol.client.bulk_flow import BulkRequest, Ways, run_inputs
from ondol.client.errors import ItemError
from ondol.client.flow import Flow, Request, exchange_json, idempotent
from ondol.client.job_flows import OnProgress, get_vectors
from ondol.client.records import JobFields
from ondol.client.retry import RetryPolicy
from ondol.client.vectors import Vectors, join_vectors, vectors_from_call
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
    texts: str | Sequence[str],
    model: str,
    options: Mapping[str, Any],
    *,
    as_job: bool = False,
    priority: str | None = None,
) -> BulkRequest:
    """The checked request: InvalidPayload for what is no text, and for options whose vectors are no [N, H]."""
    checked = check_texts(texts)
    return BulkRequest("embedding", checked, model, _CALL_OPTIONS, rectangular_options(options), as_job, priority)


def check_texts(texts: str | Sequence[str]) -> tuple[str, ...]:
    """The texts as a tuple; InvalidPayload names the one that is none."""
    checked = (texts,) if isinstance(texts, str) else tuple(texts)
    if not checked:
        raise InvalidPayload("there is nothing to do: the list of texts is empty", param="input")
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InvalidPayload(f"a text is expected, not {type(text).__name__}", param=f"input[{index}]")
    return checked


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
        "input": list(request.inputs),
        "model": request.model,
        "encoding_format": "base64",
    }
    send = Request("POST", "/v1/embeddings", body=body, headers=idempotent())
    answer = yield from exchange_json(send, policy)
    return PartialVectors(vectors_from_call(answer, num_inputs=len(request.inputs)), {})


def _collect(jobs: Sequence[JobFields], policy: RetryPolicy) -> Flow[PartialVectors]:
    parts: list[Vectors] = []
    errors: dict[int, ItemError] = {}
    start = 0
    for job in jobs:
        vectors, failed = yield from get_vectors(job.id, policy)
        errors |= {start + index: error for index, error in failed.items()}
        start += len(vectors)
        parts.append(vectors)
    return PartialVectors(join_vectors(parts), errors)
