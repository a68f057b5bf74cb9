"""`client.classify` and `client.tag`, blocking."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, overload

from ondol.client import classify_flow
from ondol.client.classify_flow import Pair, classify_request, tag_request
from ondol.client.flow import Flow
from ondol.client.labels import Entity, LabelScore, PartialResults, unwrap
from ondol.client.progress import reporting
from ondol.client.retry import RetryPolicy

T = TypeVar("T")


class LabelCalls(ABC):
    """The part of `Ondol` that gives labels."""

    policy: RetryPolicy

    @abstractmethod
    def run(self, flow: Flow[T]) -> T:
        """What `flow` returns, performing what it asks for; blocks."""

    @overload
    def classify(
        self,
        inputs: str | Mapping[str, str],
        *,
        model: str,
        errors: Literal["raise"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> list[LabelScore]: ...

    @overload
    def classify(
        self,
        inputs: Iterable[str | Pair],
        *,
        model: str,
        errors: Literal["raise"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> list[list[LabelScore]]: ...

    @overload
    def classify(
        self,
        inputs: str | Mapping[str, str] | Iterable[str | Pair],
        *,
        model: str,
        errors: Literal["return"],
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> PartialResults[list[LabelScore]]: ...

    def classify(
        self,
        inputs: str | Mapping[str, str] | Iterable[str | Pair],
        *,
        model: str,
        errors: Literal["raise", "return"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> list[LabelScore] | list[list[LabelScore]] | PartialResults[list[LabelScore]]:
        """Labels with scores, best first: one list for a text, a list of lists for a list, in its order; blocks.

        A pair is `{"text", "text_pair"}` or, in a list, a tuple of two texts. Options: top_k, function_to_apply,
        threshold, max_length, truncate, dtype. Up to 64 short inputs go as a call, more as one durable job (`as_job`
        forces that). Texts that are too long are cut unless `truncate="error"`. Inputs that fail raise ItemErrors with
        the partial result, or come back with `errors="return"`.
        """
        request = classify_request(inputs, model, options, as_job=as_job, priority=priority)
        with reporting(f"classifying with {model}" if progress else None) as on_progress:
            outcome = self.run(classify_flow.classify(request, self.policy, on_progress))
        return outcome if errors == "return" else unwrap(outcome, is_one=isinstance(inputs, str | Mapping))

    @overload
    def tag(
        self,
        texts: str,
        *,
        model: str,
        errors: Literal["raise"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> list[Entity]: ...

    @overload
    def tag(
        self,
        texts: Iterable[str],
        *,
        model: str,
        errors: Literal["raise"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> list[list[Entity]]: ...

    @overload
    def tag(
        self,
        texts: str | Iterable[str],
        *,
        model: str,
        errors: Literal["return"],
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> PartialResults[list[Entity]]: ...

    def tag(
        self,
        texts: str | Iterable[str],
        *,
        model: str,
        errors: Literal["raise", "return"] = "raise",
        progress: bool = False,
        as_job: bool = False,
        priority: str | None = None,
        **options: Any,
    ) -> list[Entity] | list[list[Entity]] | PartialResults[list[Entity]]:
        """Entities: one list for a str, a list of lists for a list, in its order; blocks.

        Options: aggregation_strategy, stride, ignore_labels, offset_unit, max_length, dtype. Texts are never cut.
        Calls, jobs and errors as with `classify`.
        """
        request = tag_request(texts, model, options, as_job=as_job, priority=priority)
        with reporting(f"tagging with {model}" if progress else None) as on_progress:
            outcome = self.run(classify_flow.tag(request, self.policy, on_progress))
        return outcome if errors == "return" else unwrap(outcome, is_one=isinstance(texts, str))
