"""The flows behind `classify` and `tag`: a call for a few short inputs, a durable job for more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ondol.client.bulk_flow import BulkRequest, Ways, inputs_given, run_inputs
from ondol.client.embed_flow import check_texts
from ondol.client.errors import BadAnswer, ItemError
from ondol.client.flow import Flow, Json, Request, exchange
from ondol.client.inputs import Input, Inputs
from ondol.client.job_flows import OnProgress, get_items
from ondol.client.labels import Entity, LabelScore, PartialResults, parse_entities, parse_label_scores
from ondol.client.records import JobFields, parse_item_error
from ondol.client.retry import RetryPolicy
from ondol.contract.errors import InvalidPayload
from ondol.contract.model_ref import parse_model_ref
from ondol.contract.payloads import TextClassificationOptions, TokenClassificationOptions

T = TypeVar("T")
Pair = tuple[str, str] | Mapping[str, str]
"""Two texts that go through the model together: a tuple, or `{"text", "text_pair"}`."""

_PAIR_FIELDS = frozenset({"text", "text_pair"})


def classify_request(
    inputs: str | Pair | Iterable[str | Pair],
    model: str,
    options: Mapping[str, Any],
    *,
    as_job: bool = False,
    priority: str | None = None,
) -> BulkRequest:
    """The checked request; InvalidPayload names an input that is neither text nor pair, or a wrong model.

    A lone pair is a mapping: a tuple of two texts would be a list of two inputs.
    """
    items = [inputs] if isinstance(inputs, str | Mapping) else inputs
    checked = inputs_given(Inputs(items, _text_or_pair), to="classify")
    parse_model_ref(model)
    known = frozenset(TextClassificationOptions.model_fields)
    return BulkRequest("text-classification", checked, model, known, _given(options), as_job, priority)


def tag_request(
    texts: str | Iterable[str],
    model: str,
    options: Mapping[str, Any],
    *,
    as_job: bool = False,
    priority: str | None = None,
) -> BulkRequest:
    """The checked request; InvalidPayload names what is no text, or a wrong model."""
    parse_model_ref(model)
    known = frozenset(TokenClassificationOptions.model_fields)
    return BulkRequest("token-classification", check_texts(texts), model, known, _given(options), as_job, priority)


def classify(
    request: BulkRequest, policy: RetryPolicy, on_progress: OnProgress | None = None
) -> Flow[PartialResults[list[LabelScore]]]:
    """Label scores in input order, best first."""
    return run_inputs(request, _ways(parse_label_scores), policy, on_progress)


def tag(
    request: BulkRequest, policy: RetryPolicy, on_progress: OnProgress | None = None
) -> Flow[PartialResults[list[Entity]]]:
    """Entities in input order."""
    return run_inputs(request, _ways(parse_entities), policy, on_progress)


def _ways(parse: Callable[[Any], T]) -> Ways[PartialResults[T]]:
    return Ways(lambda request, policy: _call(request, policy, parse), lambda job, policy: _collect(job, policy, parse))


def _call(request: BulkRequest, policy: RetryPolicy, parse: Callable[[Any], T]) -> Flow[PartialResults[T]]:
    parameters = dict(request.options)
    if request.kind == "text-classification":
        parameters.setdefault("truncate", "right")  # the route refuses long texts; the SDK promises to cut them
    body = {"inputs": list(request.inputs.held), "parameters": parameters}
    send = Request("POST", f"/models/{request.model}/{request.kind}", body=body)
    answer = yield from exchange(send, policy)
    found = _list_of(answer.content, num_inputs=len(request.inputs.held))
    return PartialResults([parse(item) for item in found], {})


def _collect(job: JobFields, policy: RetryPolicy, parse: Callable[[Any], T]) -> Flow[PartialResults[T]]:
    results: list[T | None] = []
    errors: dict[int, ItemError] = {}

    def take(item: Json) -> None:
        error = parse_item_error(item.get("error"))
        if error is not None:
            errors[len(results)] = error
        results.append(parse(item.get("output")) if error is None else None)

    def restart() -> None:
        results.clear()
        errors.clear()

    yield from get_items(job.id, take, restart, policy)
    return PartialResults(results, errors)


def _list_of(content: bytes, *, num_inputs: int) -> list[Any]:
    try:
        found = json.loads(content)
    except ValueError as exc:
        raise BadAnswer(f"the server's answer is not JSON: {content[:80]!r}") from exc
    if not isinstance(found, list) or len(found) != num_inputs:
        raise BadAnswer(f"the server's answer does not hold {num_inputs} results: {content[:80]!r}")
    return found


def _text_or_pair(item: object, index: int) -> Input:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping) and item.keys() == _PAIR_FIELDS:
        item = (item["text"], item["text_pair"])
    if isinstance(item, tuple | list) and len(item) == len(_PAIR_FIELDS) and all(isinstance(t, str) for t in item):
        return {"text": item[0], "text_pair": item[1]}
    raise InvalidPayload(
        f'a text or a pair of texts is expected, ("a", "b") or {{"text", "text_pair"}}, not {str(item)[:80]}',
        param=f"input[{index}]",
    )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
